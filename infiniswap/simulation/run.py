"""One simulation: a cluster, a strategy, second after second."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from infiniswap.policy.activity import Activity
from infiniswap.shared.errors import UserError
from infiniswap.simulation.cluster import Cluster
from infiniswap.simulation.devices import Devices, hot_unmapped
from infiniswap.simulation.donors import Donors
from infiniswap.simulation.figures import PERCENT, Outcome, Series, Tally
from infiniswap.simulation.pages import Pages
from infiniswap.simulation.scenario import SLABS_MAX, Scenario, Strategy
from infiniswap.simulation.workload import Workload

LEASE_TTL_S = 60  # the daemon's default


class Simulation:
    """A cluster in which time is what second() says."""

    def __init__(self, scenario: Scenario, strategy: Strategy) -> None:
        """UserError: the containers do not fit, or there are too many slabs."""
        self.scenario = scenario
        self.strategy = strategy
        self.now_s = 0.0
        self.tally, self.series = Tally(), Series()
        # What happens to the cluster, and how its pages arrive, is the same for every strategy.
        self.workload = Workload(scenario, _generator(scenario.seed, 0))
        slabs = self.workload.slabs_of_device.tolist()
        if sum(slabs) > SLABS_MAX:
            raise UserError(f"{sum(slabs)} slabs are more than {SLABS_MAX}; name larger ones or fewer containers")
        memory = [scenario.memory_of(machine) for machine in range(scenario.machines)]
        self.cluster = Cluster(memory, slabs, scenario.slab_bytes)
        self.pages = Pages(self.cluster, _generator(scenario.seed, 1))
        self.activity = Activity(self.pages.ins + self.pages.outs)
        rng = Random(f"{scenario.seed}/{strategy}")
        self.donors = Donors(scenario, self.cluster, self.activity, self.tally, rng, self._notify)
        self.devices = Devices(
            scenario,
            strategy,
            self.cluster,
            self.donors,
            self.pages,
            self.activity,
            self.tally,
            rng,
            lambda: self.now_s,
        )
        self._plan = self._plan_failures(Random(f"{scenario.seed}/failures"))

    def _notify(self, slab: int, donor: int) -> None:
        self.devices.wanted_back(slab, donor)

    def _plan_failures(self, rng: Random) -> dict[int, list[Callable[[], None]]]:
        """What is to be done in which second."""
        plan: dict[int, list[Callable[[], None]]] = {}
        for failure in sorted(self.scenario.failures, key=lambda each: each.at_s):
            for machine in rng.sample(range(self.scenario.machines), failure.machines):
                plan.setdefault(failure.at_s, []).append(lambda m=machine: self._fail(m))  # type: ignore[misc]
                if failure.back_after_s > LEASE_TTL_S:
                    late = plan.setdefault(failure.at_s + LEASE_TTL_S, [])
                    late.append(lambda m=machine: self._expire(m))  # type: ignore[misc]
                back = plan.setdefault(failure.at_s + failure.back_after_s, [])
                back.append(lambda m=machine: self._return(m))  # type: ignore[misc]
        return plan

    def _fail(self, machine: int) -> None:
        if self.cluster.up[machine]:
            self.cluster.up[machine] = False
            self.devices.machine_failed(machine)
            self.workload.stop(machine)

    def _expire(self, machine: int) -> None:
        if not self.cluster.up[machine]:
            self.devices.leases_expired(machine)

    def _return(self, machine: int) -> None:
        if not self.cluster.up[machine]:
            self.devices.device_forgotten(machine)
            self.cluster.up[machine] = True
            self.cluster.own_bytes[machine] = 0
            self.donors.restart(machine)
            self.devices.machine_back(machine, self.now_s)
            self.workload.restart(machine, self.now_s)

    def second(self) -> None:
        """Live through one second."""
        self.now_s += 1.0
        for step in self._plan.pop(int(self.now_s), ()):
            step()
        self.cluster.own_bytes[:] = self.workload.second(self.now_s) * self.cluster.up
        if self.scenario.policy == "eager":
            self.devices.touched(self.workload.page_ios + self.workload.filling)
        pages, remote_pages = self.pages.second(self.workload.page_ios, self.workload.filling, self.activity)
        self.donors.second()
        self.devices.second()
        waiting = len(hot_unmapped(self.cluster, self.activity))
        self.tally.pages += pages
        self.tally.remote_pages += remote_pages
        self.tally.hot_unmapped_s += waiting
        self.series.second(self.cluster, self.tally, pages=pages, remote_pages=remote_pages, hot_unmapped=waiting)

    def run(self, progress: Callable[[float], None] = lambda _: None) -> Outcome:
        """Live through all of it; progress: told the seconds that have passed."""
        while self.now_s < self.scenario.duration_s:
            self.second()
            progress(self.now_s)
        cluster = self.cluster
        used, own = (
            (PERCENT * each / cluster.memory_bytes).round(3).tolist()
            for each in (cluster.used_bytes, cluster.own_bytes)
        )
        return Outcome(str(self.strategy), self.scenario.seed, self.tally, self.series, used, own)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))
