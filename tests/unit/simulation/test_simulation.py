"""Whole simulations: everything stays in its place, seeds replay, and small ones come out as one would say by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.simulation.cluster import NOBODY
from infiniswap.simulation.figures import Balance, mean_rows, nothing_lent
from infiniswap.simulation.run import LEASE_TTL_S, Simulation
from infiniswap.simulation.scenario import GIB, POLICIES, Failure, Load, Scenario, Strategy

HARSH = Scenario(
    machines=6,
    containers=17,
    duration_s=150,
    spread=4.0,
    failures=(Failure(60, 2, 20), Failure(70, 1, 70)),
    loads=(Load(50, 3, size_bytes=40 * GIB, for_s=40), Load(100, 6, percent=30.0, for_s=30)),
    cold_page_ios=2.0,
)


@pytest.mark.parametrize("strategy", Strategy)
def test_everything_is_somewhere_each_second(strategy: Strategy) -> None:
    """Machines that fail and loads that come: no slab is in two places, no memory used twice, no table wrong."""
    simulation = Simulation(HARSH, strategy)
    for _ in range(HARSH.duration_s):
        simulation.second()
        assert simulation.cluster.contradictions() == [], simulation.now_s
    tally = simulation.tally
    assert min(tally.mapped, tally.evicted, tally.lost, tally.moved) > 0, "the scenario was to be harsh"
    gone = tally.lost + tally.forced + tally.cold
    assert tally.mapped >= gone


SCENARIOS = st.builds(
    Scenario,
    machines=st.integers(4, 8),
    memory_bytes=st.sampled_from([(64 * GIB,), (32 * GIB, 96 * GIB), (128 * GIB, 64 * GIB, 64 * GIB)]),
    containers=st.integers(1, 9),
    slab_bytes=st.sampled_from([GIB, GIB // 4]),
    spread=st.floats(1.0, 6.0),
    duration_s=st.just(80),
    seed=st.integers(0, 1000),
    failures=st.lists(st.builds(Failure, st.integers(0, 80), st.integers(1, 2), st.integers(1, 70)), max_size=2).map(
        tuple
    ),
    loads=st.lists(st.builds(Load, st.integers(0, 80), st.integers(1, 4), st.integers(0, 60 * GIB)), max_size=2).map(
        tuple
    ),
    spare=st.floats(0.0, 3.0),
    headroom_percent=st.floats(1.0, 40.0),
    policy=st.sampled_from(POLICIES),
    rebalance=st.booleans(),
    move=st.booleans(),
)


@settings(deadline=None, max_examples=15)  # a busy machine is no failure
@given(SCENARIOS, st.sampled_from(Strategy))
def test_everything_is_somewhere_in_any_scenario(scenario: Scenario, strategy: Strategy) -> None:
    """Looked at every few seconds."""
    simulation = Simulation(scenario, strategy)
    for second in range(scenario.duration_s):
        simulation.second()
        if second % 4 == 0:
            assert simulation.cluster.contradictions() == []
    assert (
        simulation.series.hot_unmapped == [] or sum(simulation.series.hot_unmapped) == simulation.tally.hot_unmapped_s
    )


def test_a_seed_replays() -> None:
    """All numbers of every second are the same again; another seed has others."""

    def run(seed: int) -> dict[str, Any]:
        return asdict(Simulation(replace(HARSH, seed=seed), Strategy.TWO_FREE).run())

    assert run(3) == run(3)
    assert run(3)["series"] != run(4)["series"]


def test_strategies_live_through_the_same() -> None:
    """What hosts use and what is paged does not depend on where slabs are: only so can they be compared."""
    runs = [Simulation(HARSH, strategy).run() for strategy in (Strategy.ONE, Strategy.MOST_FREE)]
    assert runs[0].series.own_percent == runs[1].series.own_percent
    assert runs[0].tally.pages == runs[1].tally.pages
    assert runs[0].series.utilisation_percent != runs[1].series.utilisation_percent


def settled(scenario: Scenario, strategy: Strategy = Strategy.TWO_FREE) -> Simulation:
    """A simulation whose containers have grown."""
    simulation = Simulation(scenario, strategy)
    while simulation.now_s < 170:
        simulation.second()
    return simulation


def test_two_machines_by_hand() -> None:
    """One container of 5.5 GiB with three quarters of it: 1.375 GiB beyond, two slabs, both on the other machine."""
    simulation = settled(Scenario(machines=2, containers=1, seed=2))
    cluster = simulation.cluster
    machine = int(simulation.workload.containers.machine[0])
    assert cluster.slabs == 2
    assert cluster.holder.tolist() == [1 - machine] * 2
    assert cluster.lent[1 - machine] == 2
    assert simulation.tally.mapped == 2


def test_nobody_has_room() -> None:
    """Donors whose headroom is all they have: slabs stay nowhere, hot ones wait, all pages come from the backup."""
    simulation = settled(Scenario(machines=4, containers=8, headroom_percent=90.0, memory_bytes=(64 * GIB,)))
    assert simulation.tally.mapped == 0
    assert simulation.tally.no_room > 0
    assert simulation.tally.hot_unmapped_s > 0
    assert simulation.tally.remote_pages == 0


def test_a_machine_that_fails_and_comes_back() -> None:
    """What it held is lost and mapped elsewhere; what its device held stays until the lease ends."""
    scenario = Scenario(machines=4, containers=11, duration_s=600, failures=(Failure(171, 1, LEASE_TTL_S + 40),))
    simulation = settled(scenario)
    before = simulation.cluster.lent.copy()
    held = [sum(len(slabs) for slabs in held.values()) for held in simulation.cluster.by_device]
    simulation.second()
    dead = int(np.flatnonzero(~simulation.cluster.up)[0])
    assert simulation.tally.lost == before[dead]
    assert simulation.cluster.lent[dead] == 0
    part = simulation.cluster.of_device(dead)
    assert (simulation.cluster.holder[part] != NOBODY).sum() == held[dead]
    for _ in range(LEASE_TTL_S):
        simulation.second()
    assert (simulation.cluster.holder[part] == NOBODY).all()
    for _ in range(200):
        simulation.second()
    assert simulation.cluster.up.all()


def test_a_host_that_needs_its_memory_gets_it() -> None:
    """A program takes 50 GiB of each donor: slabs go, and the host has its memory, every second."""
    scenario = Scenario(machines=4, containers=11, spread=8.0, loads=(Load(171, 4, size_bytes=50 * GIB),))
    simulation = settled(scenario)
    lent = int(simulation.cluster.lent.sum())
    for _ in range(60):
        simulation.second()
        assert (simulation.cluster.used_bytes <= simulation.cluster.memory_bytes).all()
    assert simulation.tally.evicted > 0
    assert simulation.cluster.lent.sum() < lent


def test_moving_keeps_pages_remote() -> None:
    """What is copied from donor to donor need not come from the backup."""
    scenario = Scenario(machines=8, containers=22, spread=3.0, loads=(Load(100, 3, percent=45.0),), duration_s=200)
    moved, drained = (Simulation(replace(scenario, move=move), Strategy.TWO_FREE).run() for move in (True, False))
    assert moved.tally.moved_pages > 0
    assert drained.tally.moved_pages == 0
    assert moved.tally.remote_pages > drained.tally.remote_pages


def test_eager_devices_do_not_wait_until_a_slab_is_hot() -> None:
    """Small slabs are full before they are hot: mapped when first written to, all of their pages are remote."""
    scenario = Scenario(machines=4, containers=11, duration_s=170, slab_bytes=GIB // 16)
    hot, eager = (Simulation(replace(scenario, policy=policy), Strategy.TWO_FREE).run() for policy in ("hot", "eager"))
    assert eager.tally.remote_pages == eager.tally.pages == hot.tally.pages
    assert hot.tally.remote_pages < 0.9 * hot.tally.pages


def test_balance_by_hand() -> None:
    """Shares 0.2, 0.4, 0.9."""
    balance = Balance.of(np.array([2, 4, 9]), np.array([10, 10, 10]))
    assert balance.utilisation_percent == pytest.approx(50.0)
    assert balance.max_to_median == pytest.approx(2.25)
    assert balance.max_to_min == pytest.approx(4.5)
    assert balance.deviation_percent == pytest.approx(29.439, abs=0.001)


def test_rows() -> None:
    """Means of runs, and the cluster that lends nothing, from the same numbers."""
    rows = [
        Simulation(Scenario(machines=6, containers=17, seed=seed, duration_s=60), Strategy.ONE).run().summary()
        for seed in (1, 2)
    ]
    mean = mean_rows(rows)
    assert mean["mapped"] == (rows[0]["mapped"] + rows[1]["mapped"]) / 2
    assert (mean["strategy"], mean["seed"]) == ("one", 1)
    none = nothing_lent(mean)
    assert none["utilisation_percent"] == mean["own_percent"] < mean["utilisation_percent"]
    assert none["max_to_median"] == mean["own_max_to_median"]
    assert "mapped" not in none
