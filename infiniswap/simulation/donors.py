"""The donors' side: what each lends, when it wants some back, and which slabs go then.

Decided by policy/headroom.py and policy/eviction.py, as in the daemon. Owners are asked without delay; one that is down
does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from infiniswap.policy.activity import Activity
from infiniswap.policy.eviction import Holding, least_active, sample
from infiniswap.policy.headroom import Headroom, HostMemory
from infiniswap.simulation.cluster import Cluster
from infiniswap.simulation.figures import Tally
from infiniswap.simulation.scenario import HOT_PAGE_IOS, Scenario


class Donors:
    """All donors of a cluster."""

    def __init__(
        self,
        scenario: Scenario,
        cluster: Cluster,
        activity: Activity,
        tally: Tally,
        rng: Random,
        notify: Callable[[int, int], None],
    ) -> None:
        """notify: tells a slab's device that a donor wants it back."""
        self._cluster = cluster
        self._activity = activity
        self._tally = tally
        self._rng = rng
        self._notify = notify
        self._spare = scenario.spare
        self._headroom_share = scenario.headroom_percent / 100.0
        self._growable = np.zeros(cluster.machines, dtype=np.int64)
        self._headroom = [self._first_look(machine) for machine in range(cluster.machines)]

    def free_bytes(self, donor: int) -> int:
        """What it would offer now, in whole slabs: as the daemon does, it looks at the host again."""
        cluster = self._cluster
        if not cluster.up[donor]:
            return 0
        spare = int(self._growable[donor]) - int(cluster.lent[donor]) * cluster.slab_bytes
        return max(0, spare) // cluster.slab_bytes * cluster.slab_bytes

    def lendable_bytes(self, donor: int) -> int:
        """What it can lend in all, as its offer tells: with what is lent."""
        return max(int(self._growable[donor]), int(self._cluster.lent[donor]) * self._cluster.slab_bytes)

    def restart(self, donor: int) -> None:
        """The machine is back, with nothing lent."""
        self._headroom[donor] = self._first_look(donor)
        self._growable[donor] = self._headroom[donor].growable_bytes

    def second(self) -> None:
        """Look at each host, and take back what it needs."""
        cluster = self._cluster
        for donor in np.flatnonzero(cluster.up).tolist():
            headroom = self._headroom[donor]
            lent_bytes = int(cluster.lent[donor]) * cluster.slab_bytes
            headroom.sample(self._look(donor), lent_bytes)
            if lent_bytes:
                if headroom.hard_pressed:
                    self._force(donor, headroom.missing_bytes)
                staying_bytes = int(cluster.lent[donor] - cluster.leaving[donor]) * cluster.slab_bytes
                if staying_bytes > headroom.lendable_bytes:
                    self._evict(donor, staying_bytes - headroom.lendable_bytes)
            self._growable[donor] = headroom.growable_bytes

    def _first_look(self, donor: int) -> Headroom:
        total_bytes = int(self._cluster.memory_bytes[donor])
        return Headroom(self._look(donor), 0, headroom_bytes=int(total_bytes * self._headroom_share))

    def _look(self, donor: int) -> HostMemory:
        return HostMemory(int(self._cluster.memory_bytes[donor]), self._cluster.available_bytes(donor))

    def _holdings(self, donor: int) -> list[Holding[int]]:
        """What each owner holds that is not leaving already."""
        cluster = self._cluster
        found = []
        for owner, slabs in cluster.by_donor[donor].items():
            staying = [slab for slab in sorted(slabs) if not cluster.is_leaving[slab]]
            if staying:
                found.append(Holding(owner, staying, cluster.slab_bytes))
        return found

    def _answers(self, sampled: dict[int, list[int]]) -> dict[int, dict[int, float]]:
        values = self._activity.values
        return {
            owner: {slab: float(values[slab]) for slab in slabs}
            for owner, slabs in sampled.items()
            if self._cluster.up[owner]
        }

    def _evict(self, donor: int, wanted_bytes: int) -> None:
        holdings = self._holdings(donor)
        sampled = sample(holdings, wanted_bytes, self._rng, spare=self._spare)
        answers = self._answers(sampled)
        self._tally.asked += len(answers)
        for owner, slab in least_active(holdings, sampled, answers, wanted_bytes, self._rng):
            self._note(slab)
            if self._cluster.up[owner]:
                self._notify(slab, donor)
            else:
                self._cluster.lose(slab)

    def _force(self, donor: int, wanted_bytes: int) -> None:
        """Free memory here and now: what is coming and leaving first, then the least active of all."""
        cluster = self._cluster
        for slab in np.flatnonzero(cluster.target == donor).tolist():
            cluster.give_up_target(slab)
            wanted_bytes -= cluster.slab_bytes
        leaving = [s for slabs in cluster.by_donor[donor].values() for s in sorted(slabs) if cluster.is_leaving[s]]
        for slab in leaving:
            if wanted_bytes <= 0:
                return
            cluster.lose(slab)
            self._tally.forced += 1
            wanted_bytes -= cluster.slab_bytes
        if wanted_bytes <= 0:
            return
        holdings = self._holdings(donor)
        everything = {holding.owner: list(holding.slabs) for holding in holdings}
        for _, slab in least_active(holdings, everything, self._answers(everything), wanted_bytes, self._rng):
            self._note(slab)
            cluster.lose(slab)
            self._tally.forced += 1

    def _note(self, slab: int) -> None:
        self._tally.evicted += 1
        self._tally.evicted_hot += bool(self._activity.values[slab] >= HOT_PAGE_IOS)
        self._tally.evicted_page_ios += float(self._activity.values[slab])
