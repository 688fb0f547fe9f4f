"""Leases live by heartbeats, are found by their own token alone, and never say what the token was."""

from __future__ import annotations

import pytest

from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.daemon.refused import Refusal, RefusedError
from tests.support.clock import FakeClock

MIB = 1 << 20


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> LeaseTable:
    """Room for three leases of at most 64 slabs, which live 60 s."""
    return LeaseTable(clock, ttl_s=60.0, leases_max=3, lease_slabs_max=64)


def create(table: LeaseTable, size_bytes: int = 8 * MIB, slab_bytes: int = MIB) -> tuple[Lease, str]:
    """A lease with sizes that do not matter to the test."""
    return table.create(device="d", device_id="id", size_bytes=size_bytes, slab_bytes=slab_bytes)


def test_a_lease_is_found_by_its_own_token_only(table: LeaseTable) -> None:
    """Neither another lease's token nor a part of the right one opens a lease."""
    first, first_token = create(table)
    second, second_token = create(table)
    assert table.authenticate(first.lease_id, first_token) is first
    assert table.authenticate(second.lease_id, second_token) is second
    for lease_id, token in [
        (first.lease_id, second_token),
        (first.lease_id, first_token[:-1]),
        (first.lease_id, ""),
        (first.lease_id, "\udcff"),
        ("nobody", first_token),
        ("", ""),
    ]:
        assert table.authenticate(lease_id, token) is None


def test_exports_are_found_by_the_full_name_only(table: LeaseTable) -> None:
    """The export's name is the secret: no part of it and no lease id finds anything."""
    lease, token = create(table)
    assert table.by_export("lease-" + token) is lease
    for name in ("", "lease-", token, "lease-" + token[:-1], "lease-" + lease.lease_id, "LEASE-" + token):
        assert table.by_export(name) is None


def test_tokens_are_long_different_and_not_kept(table: LeaseTable) -> None:
    """256 bits of randomness; the table cannot give a token away, as it does not have it."""
    lease, token = create(table)
    other = create(table)[1]
    assert token != other
    assert len(token) >= 43
    everything = repr(lease) + repr(vars(table)) + repr([getattr(lease, name) for name in Lease.__slots__])
    assert token not in everything


def test_only_heartbeats_keep_a_lease(table: LeaseTable, clock: FakeClock) -> None:
    """A lease ends ttl_s after its last heartbeat, to the tick."""
    kept, _ = create(table)
    lost, _ = create(table)
    clock.now_s += 59.0
    table.renew(kept)
    assert table.expired() == []
    assert table.remaining_s(lost) == 1.0
    clock.now_s += 1.0
    assert table.expired() == [lost]
    assert table.remaining_s(lost) == 0.0
    assert table.remaining_s(kept) == 59.0


def test_a_removed_lease_is_gone_for_good(table: LeaseTable) -> None:
    """Its token opens nothing, its slot is free again."""
    leases = [create(table) for _ in range(3)]
    lease, token = leases[1]
    table.remove(lease)
    assert table.authenticate(lease.lease_id, token) is None
    assert table.by_export("lease-" + token) is None
    assert not table.is_live(lease)
    assert len(table) == 2
    create(table)


def test_time_that_the_daemon_slept_is_forgiven(table: LeaseTable, clock: FakeClock) -> None:
    """A daemon that stood still for an hour does not throw its devices out."""
    create(table)
    clock.now_s += 3600.0
    table.forgive(3600.0)
    assert table.expired() == []
    clock.now_s += 60.0
    assert len(table.expired()) == 1


def test_lease_slots_run_out_with_503(table: LeaseTable) -> None:
    """The fourth of three leases is refused and changes nothing."""
    for _ in range(3):
        create(table)
    with pytest.raises(RefusedError, match="all 3 leases") as refusal:
        create(table)
    assert refusal.value.reason is Refusal.UNAVAILABLE
    assert len(table) == 3


@pytest.mark.parametrize(
    ("size_bytes", "slab_bytes"),
    [(0, MIB), (4095, MIB), (-4096, MIB), (MIB, 3 * MIB), (MIB, 0), (MIB, 2 << 30), (65 * MIB, MIB), (1 << 80, MIB)],
)
def test_sizes_that_make_no_device(table: LeaseTable, size_bytes: int, slab_bytes: int) -> None:
    """No multiple of a page, no power of two, too many slabs: 400 and no lease."""
    with pytest.raises(RefusedError) as refusal:
        create(table, size_bytes, slab_bytes)
    assert refusal.value.reason is Refusal.INVALID
    assert len(table) == 0


def test_the_last_slab_may_be_cut_short(table: LeaseTable) -> None:
    """A device of one slab and a page has two slabs, 0 and 1."""
    lease, _ = create(table, MIB + 4096, MIB)
    assert lease.slab_count == 2
    table.check_index(lease, 1)
    for index in (-1, 2, 1 << 63):
        with pytest.raises(RefusedError, match="outside the device's 2 slabs"):
            table.check_index(lease, index)
