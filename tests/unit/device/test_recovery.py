"""Recovery: which version a half-written page holds is proved by checksums; what cannot be proved is never served."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.device import recovery
from infiniswap.device.daemon_client import (
    DaemonClient,
    LeaseGoneError,
    PeerError,
)
from infiniswap.device.heartbeats import Heartbeats
from infiniswap.device.lease_book import RecordedLease
from infiniswap.device.recovery import drop_remote, read_intents, recover, settle_page, written_through
from infiniswap.device.state import Header, Phase, StateDirectory, StateFile
from infiniswap.engine.binding import INTENT_DTYPE, PAGE_BYTES, PAGE_DTYPE, PageFlag
from infiniswap.engine.checksum import SEED_BYTES, PageChecksum
from infiniswap.shared.address import HostPort
from tests.support.clock import SteadyClock
from tests.support.fake_daemon import FakeClient
from tests.support.lease import make_lease

REMOTE, DISK, WRITING = int(PageFlag.REMOTE), int(PageFlag.DISK), int(PageFlag.WRITING)
PUNCH, LOST = int(PageFlag.PUNCH), int(PageFlag.LOST)
SLAB_BYTES = 1 << 20
SLAB_PAGES = SLAB_BYTES // PAGE_BYTES
OLD, NEW, TORN = b"o" * PAGE_BYTES, b"n" * PAGE_BYTES, b"n" * 100 + b"o" * (PAGE_BYTES - 100)

SEED = bytes(range(SEED_BYTES))
checksum = PageChecksum(SEED)


def entry_of(meta: int, checksum_before: int) -> np.ndarray[Any, np.dtype[Any]]:
    """A page table entry."""
    entry = np.zeros(1, PAGE_DTYPE)
    entry["meta"], entry["checksum"] = meta, checksum_before
    return entry


@pytest.mark.parametrize(
    ("meta", "remote", "expected", "content"),
    [
        # the write had not reached the peer: what was current stays current
        (REMOTE | WRITING, OLD, REMOTE, OLD),
        (REMOTE | DISK | WRITING, OLD, REMOTE | DISK, OLD),
        # it had: the new version is current, what the backup has is old
        (REMOTE | WRITING, NEW, REMOTE, NEW),
        (REMOTE | DISK | WRITING, NEW, REMOTE, NEW),
        (DISK | WRITING, NEW, REMOTE, NEW),
        (WRITING, NEW, REMOTE, NEW),
        (LOST | WRITING, NEW, REMOTE, NEW),
        (PUNCH | WRITING, NEW, REMOTE, NEW),
        # half of it had: only the backup can tell the old version
        (REMOTE | DISK | WRITING, TORN, DISK, None),
        (DISK | WRITING, TORN, DISK, None),
        (REMOTE | WRITING, TORN, LOST, None),
        (LOST | WRITING, TORN, LOST, None),
        # never acknowledged: the backup has zeroes or the new version, and either stays from now on; or still trimmed
        (WRITING, TORN, DISK, None),
        (PUNCH | WRITING, TORN, PUNCH, None),
        # a remote copy that was not current does not become so because an old checksum happens to fit
        (DISK | WRITING, OLD, DISK, None),
        (WRITING, OLD, DISK, None),
    ],
)
def test_settled_by_checksum(meta: int, remote: bytes, expected: int, content: bytes | None) -> None:
    """Every combination of what the page was and of how far the write came."""
    entry = entry_of(meta, checksum(OLD))
    lost = settle_page(entry, checksum(remote), {checksum(NEW)})
    assert entry["meta"][0] == expected
    assert lost == (expected == LOST and not meta & LOST)
    if content is not None:
        assert entry["checksum"][0] == checksum(content)


@pytest.mark.parametrize(
    ("meta", "remote", "expected"),
    [
        (REMOTE | DISK | WRITING, OLD, REMOTE),  # the backup may be ahead of it
        (REMOTE | WRITING, OLD, REMOTE),
        (DISK | WRITING, TORN, DISK),
        (REMOTE | DISK | WRITING, TORN, DISK),
    ],
)
def test_settled_while_the_backup_was_written(meta: int, remote: bytes, expected: int) -> None:
    """Two copies that may be of two versions do not both count: a read would see one today and the other tomorrow."""
    entry = entry_of(meta, checksum(OLD))
    assert settle_page(entry, checksum(remote), {checksum(NEW)}, through=True) == 0
    assert entry["meta"][0] == expected


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (REMOTE | WRITING, REMOTE),  # there is nothing else: what arrived of a write that was never acknowledged
        (REMOTE | DISK | WRITING, DISK),  # the backup has the old version whole
        (DISK | WRITING, DISK),
        (LOST | WRITING, LOST),
        (WRITING, DISK),
    ],
)
def test_torn_over_rdma(meta: int, expected: int) -> None:
    """A page that arrived in part is taken as it is only where the old version is nowhere else."""
    entry = entry_of(meta, checksum(OLD))
    assert settle_page(entry, checksum(TORN), {checksum(NEW)}, torn=True) == 0
    assert entry["meta"][0] == expected
    if expected == REMOTE:
        assert entry["checksum"][0] == checksum(TORN)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from([0, REMOTE, DISK, WRITING, PUNCH, LOST, REMOTE | DISK, REMOTE | WRITING]), max_size=50))
def test_dropping_the_remote_copy(flags: list[int]) -> None:
    """No page claims a remote copy afterwards; those without another are lost, the others keep what they had."""
    meta = np.array(flags, dtype=np.uint32)
    lost = drop_remote(meta)
    for before, after in zip(flags, meta.tolist(), strict=True):
        assert not after & (REMOTE | WRITING)
        if before == WRITING:
            assert after == DISK
        else:
            assert after == (LOST if before & REMOTE and not before & DISK else before & ~(REMOTE | WRITING))
    assert lost == sum(bool(f & REMOTE and not f & DISK) for f in flags)


def test_written_through() -> None:
    """Only intents that are under way and reached the backup tell of pages that may be there already."""
    table = np.zeros(4, INTENT_DTYPE)
    table[0] = (7, 2, 1, np.zeros(64))
    table[1] = (20, 3, 0, np.zeros(64))
    table[2] = (30, 0, 1, np.zeros(64))
    table[3] = (100, 9999, 1, np.zeros(64))
    assert written_through(table) == {7, 8, *range(100, 164)}


def test_intents() -> None:
    """Free intents do not count; a length beyond the table is cut."""
    table = np.zeros(4, INTENT_DTYPE)
    table["checksum"][:] = 1
    table[1]["first_page"], table[1]["pages"] = 10, 2
    table["checksum"][1][:2] = [7, 8]
    table[2]["first_page"], table[2]["pages"] = 11, 0xFFFFFFFF
    found = read_intents(table)
    assert found[10] == {7}
    assert found[11] == {8, 1}
    assert len(found) == 65


class FakeSocket:
    """Only closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


class FakeReader:
    """An NbdClient over remote pages of the test."""

    pages: dict[int, bytes] = {}  # noqa: RUF012 - set anew by each test
    broken = False

    def __init__(self, *_: object) -> None:
        pass

    def read(self, offset: int, length: int) -> bytes:
        if self.broken:
            raise ConnectionResetError
        first = offset // PAGE_BYTES
        return b"".join(self.pages.get(first + i, bytes(PAGE_BYTES)) for i in range(length // PAGE_BYTES))

    def close(self) -> None:
        pass


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    """A device of four slabs, nothing written."""
    state = StateDirectory(tmp_path).create(
        Header(Phase.IN_USE, 4 * SLAB_BYTES, SLAB_BYTES, "b", "d", checksum_seed=SEED), [], keep_lost=False
    )
    yield state
    state.close()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> type[FakeReader]:
    """Remote pages without daemons."""

    async def no_connections(*_: object) -> tuple[FakeSocket, FakeSocket]:
        return FakeSocket(), FakeSocket()

    fake = type("Reader", (FakeReader,), {"pages": {}})
    monkeypatch.setattr(recovery, "NbdClient", fake)
    monkeypatch.setattr(recovery, "open_connections", no_connections)
    monkeypatch.setattr(recovery, "ASK_AGAIN_S", 0.01)
    return fake


def run(
    state: StateFile,
    slabs: dict[int, frozenset[int]],
    clients: dict[int, FakeClient],
    timeout_s: float = 0.2,
    *,
    over_rdma: bool = False,
    ttl_s: float = 60.0,
) -> recovery.Recovered:
    """Recover with one lease per key, holding these slabs by our record."""
    entries = [
        RecordedLease(HostPort("h", number), replace(make_lease(number), rdma=over_rdma, ttl_s=ttl_s), held, over_rdma)
        for number, held in slabs.items()
    ]

    def client(address: HostPort) -> DaemonClient:
        return clients[address.port]  # type: ignore[return-value]

    async def begin() -> recovery.Recovered:
        beats = Heartbeats()
        try:
            return await recover(
                state,
                entries,
                slab_bytes=SLAB_BYTES,
                client=client,
                timeout_s=timeout_s,
                connect_timeout_s=1.0,
                beats=beats,
                clock=SteadyClock(),
            )
        finally:
            await beats.stop()

    return asyncio.run(begin())


def put(state: StateFile, page: int, meta: int, content: bytes = OLD, intended: bytes | None = None) -> None:
    """A page table entry, and an intent if one is under way."""
    state.pages[page] = (checksum(content), meta)
    if intended is not None:
        free = int(np.flatnonzero(state.intents["pages"] == 0)[0])
        state.intents[free]["first_page"], state.intents[free]["pages"] = page, 1
        state.intents["checksum"][free][0] = checksum(intended)


def meta(state: StateFile, *pages: int) -> list[int]:
    """Flags of these pages."""
    return [int(state.pages["meta"][page]) for page in pages]


def test_living_leases_are_renewed_while_a_dead_peer_is_waited_for(state: StateFile, reader: type[FakeReader]) -> None:
    """The wait may be longer than a lease lives."""
    put(state, 0, REMOTE)
    put(state, SLAB_PAGES, REMOTE)
    clients = {1: FakeClient(frozenset({0})), 2: FakeClient(PeerError("no answer"))}
    result = run(state, {1: frozenset({0}), 2: frozenset({1})}, clients, timeout_s=0.5, ttl_s=0.06)
    assert [a.slabs for a in result.adoptions] == [{0}]
    assert clients[1].asked >= 4, "0.5 s are many lives of this lease"
    assert reader.pages == {}


def test_living_leases_are_taken_up(state: StateFile, reader: type[FakeReader]) -> None:
    """Slabs that the daemon and our record both name are adopted; half-written pages there are settled."""
    put(state, 0, REMOTE)
    put(state, 1, REMOTE | WRITING, OLD, NEW)
    put(state, 2, REMOTE | WRITING, OLD, NEW)
    put(state, 5, REMOTE | WRITING, OLD, NEW)
    put(state, SLAB_PAGES, REMOTE)
    put(state, SLAB_PAGES + 1, REMOTE | DISK)
    put(state, 3 * SLAB_PAGES, REMOTE)
    reader.pages = {1: OLD, 2: NEW, 5: TORN}
    # slab 0 lives; slab 1 is gone at its daemon; slab 2 was never on our record; slab 3's daemon does not know us
    clients = {1: FakeClient(frozenset({0, 2})), 2: FakeClient(LeaseGoneError("gone"))}
    result = run(state, {1: frozenset({0, 1}), 2: frozenset({3})}, clients)
    assert [(a.entry.peer.port, a.slabs) for a in result.adoptions] == [(1, {0})]
    assert meta(state, 0, 1, 2, 5) == [REMOTE, REMOTE, REMOTE, LOST]
    assert state.pages["checksum"][2] == checksum(NEW)
    assert meta(state, SLAB_PAGES, SLAB_PAGES + 1, 3 * SLAB_PAGES) == [LOST, DISK, LOST]
    assert (result.settled, result.lost) == (3, 3)
    assert not state.intents["pages"].any()


def test_an_rdma_path_is_cut_before_anything_is_read(state: StateFile, reader: type[FakeReader]) -> None:
    """What the dead device has sent cannot land any more; of a page that arrived in part over RDMA, the part counts."""
    put(state, 0, REMOTE | WRITING, OLD, NEW)
    put(state, 1, REMOTE | DISK | WRITING, OLD, NEW)
    reader.pages = {0: TORN, 1: TORN}
    client = FakeClient(frozenset({0}))
    result = run(state, {1: frozenset({0})}, {1: client}, over_rdma=True)
    assert client.calls == ["close rdma", "heartbeat"]
    assert (meta(state, 0, 1), result.lost) == ([REMOTE, DISK], 0)
    assert state.pages["checksum"][0] == checksum(TORN)


def test_peer_that_answers_late_is_waited_for_while_pages_depend_on_it(
    state: StateFile, reader: type[FakeReader]
) -> None:
    """A daemon that cannot be reached at first may hold the only copy."""
    assert reader.pages == {}
    put(state, 0, REMOTE)
    client = FakeClient(PeerError("no answer"), PeerError("no answer"), frozenset({0}))
    result = run(state, {1: frozenset({0})}, {1: client}, timeout_s=10.0)
    assert (client.asked, meta(state, 0), result.lost) == (3, [REMOTE], 0)


def test_last_writes_of_the_dead_process_are_waited_for(
    state: StateFile, reader: type[FakeReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its connections are open at the daemon, pages there may still change; the wait has a limit."""
    assert reader.pages == {}
    client = FakeClient(frozenset({0}), connections=(2, 1, 0))
    result = run(state, {1: frozenset({0})}, {1: client})
    assert (client.asked, len(result.adoptions)) == (3, 1)
    monkeypatch.setattr(recovery, "LAST_WRITES_TIMEOUT_S", 0.05)
    result = run(state, {1: frozenset({0})}, {1: FakeClient(frozenset({0}), connections=(1,))})
    assert len(result.adoptions) == 1


def test_peer_without_needed_pages_is_asked_once(state: StateFile, reader: type[FakeReader]) -> None:
    """Waiting would only keep the clients waiting."""
    assert reader.pages == {}
    put(state, 0, REMOTE | DISK)
    client = FakeClient(PeerError("no answer"))
    run(state, {1: frozenset({0})}, {1: client}, timeout_s=10.0)
    assert (client.asked, meta(state, 0)) == (1, [DISK])


def test_peer_that_never_answers_is_given_up(state: StateFile, reader: type[FakeReader]) -> None:
    """The wait has a limit; what depended on the peer is lost, and said to be."""
    assert reader.pages == {}
    put(state, 0, REMOTE)
    result = run(state, {1: frozenset({0})}, {1: FakeClient(PeerError("no answer"))})
    assert (meta(state, 0), result.lost, result.adoptions) == ([LOST], 1, [])


def test_peer_that_cannot_be_read(state: StateFile, reader: type[FakeReader]) -> None:
    """A slab whose half-written pages cannot be read is not adopted, the others of that peer are."""
    reader.broken = True
    put(state, 0, REMOTE | DISK | WRITING, OLD, NEW)
    put(state, SLAB_PAGES, REMOTE)
    result = run(state, {1: frozenset({0, 1})}, {1: FakeClient(frozenset({0, 1}))})
    assert [a.slabs for a in result.adoptions] == [{1}]
    assert meta(state, 0, SLAB_PAGES) == [DISK, REMOTE]


def test_slab_claimed_by_two_leases_is_taken_up_once(state: StateFile, reader: type[FakeReader]) -> None:
    """A damaged record must not lead to two owners of one slab."""
    assert reader.pages == {}
    clients = {1: FakeClient(frozenset({0})), 2: FakeClient(frozenset({0, 1}))}
    result = run(state, {1: frozenset({0}), 2: frozenset({0, 1})}, clients)
    assert [a.slabs for a in result.adoptions] == [{0}, {1}]


def test_nothing_on_record(state: StateFile) -> None:
    """Without leases every page falls back to the backup."""
    put(state, 0, REMOTE | DISK)
    put(state, 1, WRITING, OLD, NEW)
    put(state, 2, DISK)
    result = run(state, {}, {})
    assert (meta(state, 0, 1, 2), result.lost) == ([DISK, DISK, DISK], 0)


@settings(deadline=None)  # a busy machine is no failure
@given(
    pages=st.lists(
        st.tuples(
            st.sampled_from([0, DISK, REMOTE, REMOTE | DISK, LOST]),
            st.booleans(),
            st.sampled_from([OLD, NEW, TORN]),
        ),
        min_size=1,
        max_size=20,
    ),
    alive=st.booleans(),
)
def test_no_page_is_ever_wrong(pages: list[tuple[int, bool, bytes]], alive: bool) -> None:
    """For any table: REMOTE only with the peer's checksum, DISK only where the old version is current."""
    table = np.zeros(len(pages), PAGE_DTYPE)
    for page, (flags, writing, remote) in enumerate(pages):
        table[page] = (checksum(OLD), flags | (WRITING if writing else 0))
        if not writing and flags & REMOTE:
            assert remote is not None
    for page, (flags, writing, remote) in enumerate(pages):
        entry = table[page : page + 1]
        if alive and writing:
            settle_page(entry, checksum(remote), {checksum(NEW)})
        elif not alive:
            drop_remote(entry["meta"])
        after = int(entry["meta"][0])
        assert not after & WRITING or not writing
        if after & REMOTE and writing:
            assert int(entry["checksum"][0]) == checksum(remote)
        if after & DISK:
            assert flags & DISK or (writing and not flags)
            assert not (after & REMOTE and remote == NEW and writing)
        if not after & (REMOTE | DISK | LOST):
            assert not flags & (REMOTE | DISK | LOST), "an acknowledged page must not become unwritten"
