"""The table of leases that outlives the daemon: right after a kill at any step, and refused when it is not whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.daemon import record as record_module
from infiniswap.daemon.leases import Lease
from infiniswap.daemon.record import LeaseRecord, RecordError, record_bytes
from tests.support.daemon_api import MIB
from tests.support.kept_memory import (
    BLOCKS,
    INCARNATION,
    INODE,
    LEASES_MAX,
    KilledError,
    MortalRecord,
    Shown,
    make_lease,
    make_record,
    reopened,
    shown,
)


@pytest.fixture
def record() -> Iterator[LeaseRecord]:
    """An empty one."""
    made = make_record()
    yield made
    made.close()


def put(record: LeaseRecord, lease: Lease, index: int, offset: int, *, punchable: bool = True) -> None:
    """A slab of a lease gets its block."""
    lease.slabs[index] = offset
    if punchable:
        lease.punchable.add(index)
    record.mapped(lease, index)


def take(record: LeaseRecord, lease: Lease, index: int) -> None:
    """And loses it."""
    lease.punchable.discard(index)
    record.unmapped(lease.slabs.pop(index))


def test_all_comes_back(record: LeaseRecord) -> None:
    """Every field of a lease, its slabs, what is left of its time, the incarnation and the ports."""
    name = '"\\' * 60 + "Gerät " * 20
    first, second = make_lease(1, device=name), make_lease(2, 2 * MIB)
    for lease in (first, second):
        record.granted(lease)
    put(record, first, 3, 5 * MIB)
    put(record, first, 0, 0, punchable=False)
    put(record, second, 7, 14 * MIB)
    record.ports(7401, 65535)
    record.tick(4.0, [first, second])
    copy = reopened(record)
    restored = copy.read(INODE)
    assert (restored.incarnation, restored.http_port, restored.data_port) == (INCARNATION, 7401, 65535)
    for (found, left_s), lease in zip(restored.leases, (first, second), strict=True):
        assert left_s == pytest.approx(6.0)
        for name in ("lease_id", "token_digest", "device", "device_id", "size_bytes", "slab_bytes", "host", "slabs"):
            assert getattr(found, name) == getattr(lease, name), name
        assert (found.punchable, found.owner) == (lease.punchable, "web1")
    copy.close()


def test_a_cordon_is_on_record() -> None:
    """Set and taken back; a table of before, which has nothing there, lends; anything else is damage."""
    record = make_record()
    for cordoned in (False, True, True, False):
        if cordoned:
            record.cordoned(True)
        else:
            record.cordoned(False)
        copy = reopened(record)
        assert copy.read(INODE).cordoned is cordoned
        copy.close()
    copy = reopened(record)
    copy._store(record_module._CORDON, 1)
    with pytest.raises(RecordError, match="whether it lends"):
        copy.read(INODE)
    copy.close()
    record.close()


def life(record: LeaseRecord) -> Iterator[None]:
    """Grants, maps, unmaps and ends in every order that matters, a step at a time."""
    first, second, third = make_lease(1), make_lease(2, 4 * MIB), make_lease(3)
    steps: list[Callable[[], None]] = [
        lambda: record.granted(first),
        lambda: put(record, first, 0, 0),
        lambda: put(record, first, 1, 1 * MIB, punchable=False),
        lambda: record.granted(second),
        lambda: put(record, second, 2, 4 * MIB),
        lambda: take(record, first, 0),
        lambda: put(record, first, 5, 0),
        lambda: record.tick(1.0, [first, second]),
        lambda: record.ended(first),
        lambda: record.granted(third),
        lambda: put(record, third, 0, 1 * MIB),
        lambda: record.ports(1, 2),
        lambda: record.cordoned(True),
        lambda: record.cordoned(False),
        lambda: record.ended(second),
        lambda: put(record, third, 1, 4 * MIB),
    ]
    for step in steps:
        step()
        yield


def read_copy(record: LeaseRecord) -> Shown:
    """What the next daemon reads; a second reading says the same."""
    copy = reopened(record)
    try:
        found = shown(copy.read(INODE))
        assert shown(copy.read(INODE)) == found
        return found
    finally:
        copy.close()


def test_killed_at_every_step() -> None:
    """Wherever the kill comes, the table says what was true before the change or what is true after it."""
    whole = make_record(MortalRecord)
    states = [read_copy(whole), *(read_copy(whole) for _ in life(whole))]
    whole.close()
    for steps in itertools.count():
        record = make_record(MortalRecord)
        assert isinstance(record, MortalRecord)
        record.steps_left = steps
        done = 0
        try:
            for _ in life(record):
                done += 1
        except KilledError:
            assert read_copy(record) in (states[done], states[done + 1]), f"after {steps} steps"
        else:
            assert steps > len(states)
            record.close()
            return
        record.close()


def test_what_a_kill_left_of_an_ended_lease_is_nobodys() -> None:
    """A lease that takes the slot of one whose blocks were not all through gets none of them."""
    record = make_record(MortalRecord)
    assert isinstance(record, MortalRecord)
    old = make_lease(1)
    record.granted(old)
    for index in range(3):
        put(record, old, index, index * MIB)
    record.steps_left = 2  # the lease's word, and the first block
    with pytest.raises(KilledError):
        record.ended(old)
    copy = reopened(record)
    assert shown(copy.read(INODE)) == {}
    new = make_lease(2)
    copy.granted(new)
    assert shown(copy.read(INODE)) == {new.lease_id: ({}, set())}
    copy.close()
    record.close()


def filled() -> LeaseRecord:
    """Two leases with three slabs."""
    record = make_record()
    first, second = make_lease(1), make_lease(2, 2 * MIB)
    record.granted(first)
    record.granted(second)
    put(record, first, 0, 0)
    put(record, first, 1, MIB)
    put(record, second, 0, 2 * MIB)
    record.ports(7401, 7402)
    return record


@settings(max_examples=300, deadline=None)
@given(byte=st.integers(0, record_bytes(BLOCKS * MIB, MIB, LEASES_MAX) - 1), flip=st.integers(1, 255))
def test_a_damaged_byte_is_seen(byte: int, flip: int) -> None:
    """Any byte that is changed is seen, or says nothing about who holds what."""
    record = filled()
    before = read_copy(record)
    record._map[byte] ^= flip
    copy = reopened(record)
    try:
        found = shown(copy.read(INODE))
    except RecordError:
        pass
    else:
        assert found == before
    finally:
        copy.close()
        record.close()


@pytest.mark.parametrize("word", range(11))
def test_a_damaged_head_is_seen(word: int) -> None:
    """Whatever word of the head is wrong, it is seen, but for the time of the last tick, which is bounded elsewhere."""
    record = filled()
    record._words[word] ^= 1 << 40
    copy = reopened(record)
    if word == 10:
        copy.read(INODE)
    else:
        with pytest.raises(RecordError):
            copy.read(INODE)
    copy.close()
    record.close()


def test_slabs_that_overlap_are_damage() -> None:
    """Two slabs in one place, a slab that hangs over the end, one that is there twice: none of it is believed."""
    for index, offset in ((1, 3 * MIB), (0, 6 * MIB), (1, 15 * MIB)):
        record = filled()
        wrong = make_lease(3, 2 * MIB)
        record.granted(wrong)
        put(record, wrong, 0, 4 * MIB)
        put(record, wrong, index, offset)
        copy = reopened(record)
        with pytest.raises(RecordError, match="cannot be what it says"):
            copy.read(INODE)
        copy.close()
        record.close()


def test_others_memory_is_refused(record: LeaseRecord) -> None:
    """Of another version, of other sizes, for other slabs, or never completed: said in a sentence."""
    copy = reopened(record)
    with pytest.raises(RecordError, match="do not belong together"):
        copy.read(INODE + 1)
    copy._words[1] = 2
    with pytest.raises(RecordError, match="version 2, and this is version 1"):
        copy.read(INODE)
    copy._words[0] = 0
    with pytest.raises(RecordError, match="never complete"):
        copy.read(INODE)
    copy.close()
