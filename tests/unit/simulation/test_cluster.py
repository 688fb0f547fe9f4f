"""A slab is in exactly one place, and what is counted is what is there, whatever happens to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.simulation.cluster import NOBODY, Cluster

SLAB = 1 << 30
MACHINES, SLABS = 4, 3


def make_cluster() -> Cluster:
    """Four machines of eight slabs' memory; each device has three slabs."""
    return Cluster([8 * SLAB] * MACHINES, [SLABS] * MACHINES, SLAB)


def test_a_slab_goes_and_comes_back() -> None:
    """By hand: it takes memory at one end, at both while it moves, then at the other, then nowhere."""
    cluster = make_cluster()
    cluster.take(0, 1, 5.0)
    assert cluster.lent.tolist() == [0, 1, 0, 0]
    assert cluster.used_bytes.tolist() == [0, SLAB, 0, 0]
    cluster.leave(0, 2)
    assert cluster.lent.tolist() == [0, 1, 1, 0]
    assert not cluster.mapped.any()
    assert not cluster.unmapped[0]
    assert cluster.arrive(0, 9.0) == 2
    assert cluster.lent.tolist() == [0, 0, 1, 0]
    assert cluster.since_s[0] == 9.0
    assert cluster.by_device[0] == {2: {0}}
    assert cluster.by_donor[2] == {0: {0}}
    cluster.leave(0)
    assert cluster.arrive(0, 11.0) == NOBODY
    assert cluster.unmapped.all()
    assert not cluster.lent.any()
    assert cluster.contradictions() == []


def test_a_journey_of_before_is_known() -> None:
    """What ends a journey, or begins another one, changes the generation that the first was begun with."""
    cluster = make_cluster()
    cluster.take(0, 1, 0.0)
    generation = cluster.leave(0, 2)
    cluster.lose(0)
    cluster.take(0, 3, 1.0)
    assert cluster.leave(0) != generation


@pytest.mark.parametrize("wrong", ["take", "leave twice", "leave", "lose"])
def test_what_cannot_be_is_refused(wrong: str) -> None:
    """A slab is not taken twice, does not leave twice, and cannot be lost where it is not."""
    cluster = make_cluster()
    cluster.take(0, 1, 0.0)
    cluster.leave(0)
    steps: dict[str, Callable[[], object]] = {
        "take": lambda: cluster.take(0, 2, 0.0),
        "leave twice": lambda: cluster.leave(0),
        "leave": lambda: cluster.leave(1),
        "lose": lambda: cluster.lose(1),
    }
    with pytest.raises(ValueError, match="slab"):
        steps[wrong]()
    assert cluster.contradictions() == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "leave", "move", "arrive", "lose", "no target"]),
        st.integers(0, MACHINES * SLABS - 1),
        st.integers(0, MACHINES - 1),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_tables_agree_whatever_is_done(steps: list[tuple[str, int, int]]) -> None:
    """Any steps that are possible, in any order."""
    cluster = make_cluster()
    for number, (step, slab, machine) in enumerate(steps):
        nowhere, leaving = cluster.holder[slab] == NOBODY, bool(cluster.is_leaving[slab])
        other = machine not in (cluster.owner[slab], cluster.holder[slab])
        room = cluster.available_bytes(machine) >= SLAB
        if step == "take" and nowhere and other and room:
            cluster.take(slab, machine, float(number))
        elif step == "leave" and not nowhere and not leaving:
            cluster.leave(slab)
        elif step == "move" and not nowhere and not leaving and other and room:
            cluster.leave(slab, machine)
        elif step == "arrive" and leaving:
            cluster.arrive(slab, float(number))
        elif step == "lose" and not nowhere:
            cluster.lose(slab)
        elif step == "no target" and cluster.target[slab] != NOBODY:
            cluster.give_up_target(slab)
        assert cluster.contradictions() == []


@pytest.mark.parametrize("harm", ["lent", "memory", "down", "own", "tables", "leaving"])
def test_contradictions_are_found(harm: str) -> None:
    """The check of this test finds what it is for."""
    cluster = make_cluster()
    cluster.take(0, 1, 0.0)
    if harm == "lent":
        cluster.lent[2] += 1
    elif harm == "memory":
        cluster.own_bytes[1] = 8 * SLAB
    elif harm == "down":
        cluster.up[1] = False
    elif harm == "own":
        cluster.owner[0] = 1
    elif harm == "tables":
        cluster.by_donor[1][0].add(1)
    else:
        cluster.is_leaving[0] = True
    assert cluster.contradictions()
