"""The record of leases: every slab that may hold pages is on it, at next to no cost, and it survives what it must."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infiniswap.device import lease_book as lease_book_module
from infiniswap.device.lease_book import LeaseBook
from infiniswap.device.limits import SLABS_MAX
from infiniswap.device.peer import Peer
from infiniswap.device.rdma_paths import RdmaPath
from infiniswap.device.slabs import Slabs
from infiniswap.shared.address import HostPort
from tests.support.fake_daemon import FakeClient
from tests.support.lease import make_lease

SLABS = 16


def new_peer(number: int) -> Peer:
    """A peer without a lease."""
    return Peer(number, HostPort("h", number), FakeClient(), Slabs(lambda: 0.0))  # type: ignore[arg-type]


def hold(peer: Peer, slabs: set[int]) -> None:
    """The peer holds these slabs alone."""
    peer._slabs.lose(peer.slot)
    for slab in slabs:
        peer._slabs.take(slab, peer.slot)


def peer_with(number: int, slabs: set[int]) -> Peer:
    """A peer as the record wants it."""
    peer = new_peer(number)
    peer.lease = make_lease(number)
    hold(peer, slabs)
    return peer


def begun(folder: Path, peers: list[Peer], device_id: str = "device") -> LeaseBook:
    """A book with these peers on record."""
    book = LeaseBook(folder / "leases.json")
    book.begin(device_id, SLABS, peers)
    book.write_leases()
    return book


def on_record(book: LeaseBook) -> dict[int, set[int]]:
    """Slabs by the number of their lease, as another process reads them."""
    return {entry.peer.port: set(entry.slabs) for entry in LeaseBook(book.path).read("device")}


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be replaced."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lease_book_module, "replace_file", refuse)


def test_survives_and_is_private(tmp_path: Path) -> None:
    """What is written is read again, for the same device only; the tokens are for the owner's eyes."""
    idle = new_peer(3)
    book = begun(tmp_path, [peer_with(1, {3, 1}), peer_with(2, set()), idle])
    assert book.path.stat().st_mode & 0o777 == 0o600
    assert book.table_path.stat().st_mode & 0o777 == 0o600
    entries = book.read("device")
    assert [(e.peer.port, e.slabs, e.lease) for e in entries] == [
        (1, frozenset({1, 3}), make_lease(1)),
        (2, frozenset(), make_lease(2)),
    ]
    assert [(e.lease.rdma, e.over_rdma) for e in entries] == [(False, False)] * 2
    assert book.read("another") == []
    book.remove()
    assert list(tmp_path.iterdir()) == []
    assert book.read("device") == []
    book.remove()
    book.close()


def test_tells_of_rdma(tmp_path: Path) -> None:
    """Whether a lease may have had a path, which is to be cut, and whether its pages travelled over it."""
    offered, used = peer_with(1, {1}), peer_with(2, {2})
    offered.lease, used.lease = replace(make_lease(1), rdma=True), replace(make_lease(2), rdma=True)
    used.path = RdmaPath("rxe0/1", "::1", 0, "rxe1/1", "::2", 1024, {})
    book = begun(tmp_path, [offered, used])
    assert [(e.lease.rdma, e.over_rdma) for e in book.read("device")] == [(True, False), (True, True)]


def test_slabs_come_and_go(tmp_path: Path) -> None:
    """Another process sees each slab with the lease that has it, at once."""
    first, second = peer_with(1, set()), peer_with(2, set())
    assert first.lease is not None
    assert second.lease is not None
    book = begun(tmp_path, [first, second])
    book.mapped(first.lease, 3)
    book.mapped(second.lease, 4)
    assert on_record(book) == {1: {3}, 2: {4}}
    book.unmapped(first.lease, 4)  # not its slab
    book.unmapped(first.lease, 3)
    book.mapped(second.lease, 3)
    assert on_record(book) == {1: set(), 2: {3, 4}}


def test_new_lease_inherits_no_slabs(tmp_path: Path) -> None:
    """A lease that ended takes its slabs with it; whoever gets its place on record has none of them."""
    peer = peer_with(1, {1, 2, 3})
    book = begun(tmp_path, [peer])
    for number in range(2, 700):  # more than there are rows
        peer.lease, peer.address = make_lease(number), HostPort("h", number)
        hold(peer, set())
        book.write_leases()
        assert on_record(book) == {number: set()}
        book.mapped(peer.lease, number % SLABS)
    assert on_record(book) == {699: {699 % SLABS}}


def test_taken_up_by_the_next_process(tmp_path: Path) -> None:
    """After a kill the record goes on as it is, with other peers in other places; what was not adopted is dropped."""
    begun(tmp_path, [peer_with(1, {1, 2}), peer_with(2, {5})])
    taken, added = peer_with(2, {5}), peer_with(3, set())
    book = LeaseBook(tmp_path / "leases.json")
    book.begin("device", SLABS, [added, taken])
    assert on_record(book) == {1: {1, 2}, 2: {5}}, "a start that dies here has changed nothing"
    assert taken.lease is not None
    book.keep(taken.lease, taken.slabs)
    book.write_leases()
    assert on_record(book) == {2: {5}, 3: set()}


def test_full_disk_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are on record already need no room: no lease runs out because a start cannot write."""
    begun(tmp_path, [peer_with(1, {1, 2}), peer_with(2, {5})])
    full_disk(monkeypatch)
    taken = peer_with(2, {5})
    book = LeaseBook(tmp_path / "leases.json")
    book.begin("device", SLABS, [taken])
    book.write_leases()
    assert taken.lease is not None
    book.mapped(taken.lease, 6)
    assert on_record(book)[2] == {5, 6}


def test_full_disk_while_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of leases on record go on it; a new lease cannot, says so, and does later."""
    old, new = peer_with(1, {1}), new_peer(2)
    book = begun(tmp_path, [old, new])
    with monkeypatch.context() as patched:
        full_disk(patched)
        assert old.lease is not None
        book.mapped(old.lease, 2)
        new.lease = make_lease(2)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                book.mapped(new.lease, 7)
        assert on_record(book) == {1: {1, 2}}
    book.mapped(new.lease, 7)
    assert on_record(book) == {1: {1, 2}, 2: {7}}


def test_record_of_an_earlier_version(tmp_path: Path) -> None:
    """A device that was killed, upgraded and started again finds its slabs in leases.json itself."""
    peer = peer_with(1, {1, 2})
    book = begun(tmp_path, [peer])
    content = json.loads(book.path.read_text())
    for lease in content["leases"]:
        del lease["row"]
        lease["slabs"] = [1, 2]
    book.path.write_text(json.dumps(content))
    book.table_path.unlink()
    assert on_record(book) == {1: {1, 2}}
    book = LeaseBook(book.path)
    book.begin("device", SLABS, [peer])
    assert on_record(book) == {1: {1, 2}}, "not before all of it stands in the new form"
    book.write_leases()
    assert "slabs" not in json.loads(book.path.read_text())["leases"][0]
    assert on_record(book) == {1: {1, 2}}


def test_two_thousand_slabs_a_second_cost_nothing(tmp_path: Path) -> None:
    """With 2^18 slabs on record one more takes far less than a millisecond of the event loop."""
    peer = peer_with(1, set(range(SLABS_MAX // 2)))
    book = LeaseBook(tmp_path / "leases.json")
    book.begin("device", SLABS_MAX, [peer])
    book.write_leases()
    assert peer.lease is not None
    began_s = time.process_time()
    for slab in range(SLABS_MAX // 2, SLABS_MAX // 2 + 2000):
        book.mapped(peer.lease, slab)
    assert time.process_time() - began_s < 1.0
    assert len(on_record(book)[1]) == SLABS_MAX // 2 + 2000


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"device_id": "device", "leases": [{}]}', b"\xff\x00"])
def test_damaged_record_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """The start goes on without leases, and with a new record."""
    path = tmp_path / "leases.json"
    path.write_bytes(content)
    assert LeaseBook(path).read("device") == []
    assert on_record(begun(tmp_path, [peer_with(1, {1})])) == {1: {1}}


@pytest.mark.parametrize("damage", [b"", b"ISWSLABS", bytes(64 + SLABS)])
def test_damaged_table_counts_as_none(tmp_path: Path, damage: bytes) -> None:
    """A table that is not this device's says nothing about its slabs."""
    book = begun(tmp_path, [peer_with(1, {1, 2})])
    book.table_path.write_bytes(damage)
    assert on_record(book) == {}
    assert on_record(begun(tmp_path, [peer_with(1, {3})])) == {1: {3}}


def test_token_is_in_no_text(tmp_path: Path) -> None:
    """A lease that is logged does not give its secret away."""
    book = begun(tmp_path, [peer_with(1, set())])
    assert "secret1" in book.path.read_text()
    assert "secret1" not in repr(make_lease(1))
