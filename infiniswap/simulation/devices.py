"""The devices' side: what each maps and where, and where a slab goes that a donor wants back.

Decided by policy/mapping.py, one MappingPolicy a device, as in the device service; the activity of all slabs of the
cluster is one array, of which each policy sees its part. What takes time in the world takes it here: slabs are mapped
four at once on the same offers, a slab is copied to another donor at so many bytes a second, or drained in a second.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from random import Random

import numpy as np
from numpy.typing import NDArray

from infiniswap.policy.activity import Activity, Thresholds
from infiniswap.policy.mapping import Holder, MappingPolicy
from infiniswap.policy.placement import Candidate, CoolDown
from infiniswap.shared.clock import Clock
from infiniswap.simulation.cluster import NOBODY, Cluster
from infiniswap.simulation.donors import Donors
from infiniswap.simulation.figures import Tally
from infiniswap.simulation.pages import Pages
from infiniswap.simulation.scenario import HOT_PAGE_IOS, Scenario, Strategy
from infiniswap.simulation.strategies import Chooser, HostOffer

AT_ONCE = 4  # MAPPINGS_AT_ONCE of the device's mapper
PEERS_MAX = 64  # of a device
MOVE_BYTES_PER_S = 256 << 20  # of a device, from donor to donor
DRAIN_S = 0.5  # until what a slab holds is on the backup: nearly all of it is there already
DEADLINE_S = 0.8  # of a notice, GIVE_UP_S of the daemon's evictor: what is not copied by then comes from the backup
REBALANCE_EVERY_S = 10  # MOVE_INTERVAL_S of policy/rebalance.py


class Devices:
    """All devices of a cluster, one a machine."""

    def __init__(
        self,
        scenario: Scenario,
        strategy: Strategy,
        cluster: Cluster,
        donors: Donors,
        pages: Pages,
        activity: Activity,
        tally: Tally,
        rng: Random,
        clock: Clock,
    ) -> None:
        """activity: of all slabs; brought up to date by the caller. clock: simulated seconds."""
        self._scenario = scenario
        self._cluster = cluster
        self._donors = donors
        self._pages = pages
        self._activity = activity
        self._tally = tally
        self._rng = rng
        self._clock = clock
        self._thresholds = Thresholds(HOT_PAGE_IOS, scenario.cold_page_ios)
        self._journeys: list[tuple[float, int, int]] = []  # when, slab, generation
        self._under_way: list[int] = [0] * cluster.machines  # moves of each device
        self._cool_downs = [CoolDown(clock, scenario.cool_down_s) for _ in range(cluster.machines)]
        self._policies = [self._make_policy(device) for device in range(cluster.machines)]
        self._choosers = [Chooser(strategy, policy, cluster.slab_bytes, rng) for policy in self._policies]
        # Who knows whom is the same for all strategies.
        friends = Random(f"{scenario.seed}/peers")
        everybody = range(cluster.machines)
        self._peers = [
            sorted(friends.sample([m for m in everybody if m != device], min(PEERS_MAX, cluster.machines - 1)))
            for device in everybody
        ]
        self._attached_s = np.zeros(cluster.machines)

    def _make_policy(self, device: int) -> MappingPolicy:
        cluster, part = self._cluster, self._cluster.of_device(device)
        policy = MappingPolicy(
            self._scenario.policy,
            self._thresholds,
            self._pages.ins[part],
            self._pages.outs[part],
            slab_bytes=cluster.slab_bytes,
            held_for_s=lambda slab: self._clock() - float(cluster.since_s[part.start + slab]),
            cool_down=self._cool_downs[device],
            rng=Random(self._rng.getrandbits(64)),
            clock=self._clock,
        )
        policy.activity.values = self._activity.values[part]  # a view: updating all updates this one
        return policy

    def second(self) -> None:
        """End what is due, map what is hot, give up what is cold, move what lies badly."""
        self._arrive()
        self._map()
        if self._thresholds.cold is not None:
            self._give_up_cold()
        if self._scenario.rebalance:
            self._rebalance()

    def touched(self, page_ios: NDArray[np.float64]) -> None:
        """Eager: slabs that are about to be written to and have no memory are looked after before that happens."""
        cluster = self._cluster
        slabs = np.flatnonzero(cluster.unmapped & (page_ios > 0) & cluster.up[cluster.owner])
        for slab, device in zip(slabs.tolist(), cluster.owner[slabs].tolist(), strict=True):
            self._policies[device].touch(slab - int(cluster.first[device]))
        self._map(slabs)

    def wanted_back(self, slab: int, donor: int) -> None:
        """A donor wants slab back."""
        device = int(self._cluster.owner[slab])
        self._cool_downs[device].start(donor)
        target = NOBODY
        if self._scenario.move and self._activity.values[slab] >= HOT_PAGE_IOS:
            target = self._find(device)
        self._send(slab, target, DEADLINE_S)

    def machine_failed(self, machine: int) -> None:
        """What it held is lost; what was on its way there ends at the backup."""
        cluster = self._cluster
        for slab in np.flatnonzero(cluster.target == machine).tolist():
            cluster.give_up_target(slab)
        for device in sorted(cluster.by_donor[machine]):
            self._cool_downs[device].start(machine)
        for slab in np.flatnonzero(cluster.holder == machine).tolist():
            cluster.lose(slab)
            self._tally.lost += 1

    def machine_back(self, machine: int, now_s: float) -> None:
        """It can be asked again."""
        self._attached_s[machine] = now_s
        for policy in self._policies:
            policy.came_up()

    def device_forgotten(self, machine: int) -> None:
        """The machine is back after another boot: its device takes nothing up again."""
        self.leases_expired(machine)
        self._pages.forget(self._cluster.of_device(machine))

    def leases_expired(self, machine: int) -> None:
        """The machine has been down for so long that donors have back what its device held."""
        for slab in range(*self._cluster.of_device(machine).indices(self._cluster.slabs)):
            if self._cluster.holder[slab] != NOBODY:
                self._cluster.lose(slab)

    # ---- mapping ----

    def _map(self, candidates: NDArray[np.intp] | None = None) -> None:
        """Slabs of all devices that have some among candidates (None: those that are hot and have no memory)."""
        cluster = self._cluster
        unmapped = cluster.unmapped
        if candidates is None:
            candidates = np.flatnonzero(unmapped & (self._activity.values >= HOT_PAGE_IOS))
        queues = {}
        for device in np.unique(cluster.owner[candidates]).tolist():
            wanted = self._policies[device].to_map(unmapped[cluster.of_device(device)]) if cluster.up[device] else []
            if wanted:
                queues[device] = deque(wanted)
        while queues:
            for device in self._rng.sample(list(queues), len(queues)):
                self._map_at_once(device, queues[device])
                if not queues[device]:
                    del queues[device]

    def _map_at_once(self, device: int, queue: deque[int]) -> None:
        """A few slabs together: all first offers are asked for before any slab is sent."""
        chooser, policy, first = self._choosers[device], self._policies[device], int(self._cluster.first[device])
        slabs = [queue.popleft() for _ in range(min(AT_ONCE, len(queue)))]
        candidates = self._candidates(device)
        groups = [chooser.to_ask(candidates, None) for _ in slabs]
        offers = [[self._ask(device, candidate) for candidate in next(group, ())] for group in groups]
        for slab, group, answers in zip(slabs, groups, offers, strict=True):
            donor = self._first_taker(chooser, answers)
            while donor == NOBODY and (more := next(group, None)) is not None:
                donor = self._first_taker(chooser, [self._ask(device, candidate) for candidate in more])
            if donor == NOBODY:
                self._tally.no_room += 1
                policy.no_room()
                queue.clear()
                continue
            policy.on_the_way.begin(donor)
            self._cluster.take(first + slab, donor, self._clock())
            self._pages.begin(first + slab)
            policy.mapped(slab)
            self._tally.mapped += 1
        self._land(policy, [int(self._cluster.holder[first + slab]) for slab in slabs])

    @staticmethod
    def _land(policy: MappingPolicy, taken: list[int]) -> None:
        for donor in taken:
            if donor != NOBODY:
                policy.on_the_way.end(donor, taken=True)

    def _first_taker(self, chooser: Chooser, offers: list[HostOffer]) -> int:
        """The best of those that still have room, as others may have been quicker; NOBODY."""
        for offer in chooser.ranked(offers):
            if self._donors.free_bytes(offer.slot) >= self._cluster.slab_bytes:
                return offer.slot
        return NOBODY

    def _candidates(self, device: int) -> list[Candidate]:
        held, up = self._cluster.by_device[device], self._cluster.up
        return self._policies[device].usable(
            Candidate(peer, len(held.get(peer, ()))) for peer in self._peers[device] if up[peer]
        )

    def _ask(self, device: int, candidate: Candidate) -> HostOffer:
        donor = candidate.slot
        return HostOffer(
            donor,
            candidate.slabs,
            self._donors.free_bytes(donor),
            self._policies[device].on_the_way.asked(donor),
            lendable_bytes=max(1, self._donors.lendable_bytes(donor)),
            host_bytes=int(self._cluster.memory_bytes[donor]),
            host_used_bytes=int(self._cluster.memory_bytes[donor]) - self._cluster.available_bytes(donor),
        )

    def _find(self, device: int) -> int:
        """A donor for one slab, asked now; NOBODY."""
        chooser = self._choosers[device]
        for group in chooser.to_ask(self._candidates(device), None):
            donor = self._first_taker(chooser, [self._ask(device, candidate) for candidate in group])
            if donor != NOBODY:
                return donor
        return NOBODY

    # ---- journeys ----

    def _send(self, slab: int, target: int, deadline_s: float = math.inf) -> None:
        """Slab begins to leave: to target, page by page until deadline_s have passed, or to the backup."""
        generation = self._cluster.leave(slab, target)
        takes_s = DRAIN_S
        if target != NOBODY:
            device = int(self._cluster.owner[slab])
            self._under_way[device] += 1
            copied_bytes = float(self._pages.remote[slab]) * self._cluster.slab_bytes
            takes_s = max(DRAIN_S, copied_bytes * self._under_way[device] / MOVE_BYTES_PER_S)  # they share the rate
            if takes_s > deadline_s:
                self._pages.keep(slab, deadline_s / takes_s)
                takes_s = deadline_s
        heapq.heappush(self._journeys, (self._clock() + takes_s, slab, generation))

    def _arrive(self) -> None:
        cluster = self._cluster
        while self._journeys and self._journeys[0][0] <= self._clock():
            _, slab, generation = heapq.heappop(self._journeys)
            if generation != cluster.generation[slab]:
                continue  # lost or forced meanwhile
            if cluster.arrive(slab, self._clock()) != NOBODY:
                self._tally.moved += 1
                self._tally.moved_pages += round(float(self._pages.remote[slab]) * self._pages.pages_per_slab)
        # Moves that came to nothing are over as well.
        to_somewhere = cluster.owner[cluster.target != NOBODY]
        self._under_way = np.bincount(to_somewhere, minlength=cluster.machines).tolist()

    def _give_up_cold(self) -> None:
        cluster = self._cluster
        mapped = cluster.mapped
        assert self._thresholds.cold is not None
        cold = np.flatnonzero(mapped & (self._activity.values < self._thresholds.cold))
        for device in np.unique(cluster.owner[cold]).tolist():
            part = cluster.of_device(device)
            drain = self._policies[device].cold(mapped[part])
            for slab, _ in zip(drain.slabs, range(drain.most), strict=False):
                self._tally.cold += 1
                self._send(part.start + slab, NOBODY)

    def _rebalance(self) -> None:
        """Each device has its turn every few seconds."""
        cluster, now_s = self._cluster, int(self._clock())
        mapped = cluster.mapped
        for device in range(now_s % REBALANCE_EVERY_S, cluster.machines, REBALANCE_EVERY_S):
            if not cluster.up[device] or not cluster.by_device[device]:
                continue
            part = cluster.of_device(device)
            draining = bool(cluster.is_leaving[part].any())
            drain = self._policies[device].move(
                self._holders(device), mapped[part], self._pages.ins[part], self._pages.outs[part], draining=draining
            )
            if drain is None or drain.to is None:
                continue
            for slab in drain.slabs:
                if self._donors.free_bytes(drain.to) >= cluster.slab_bytes:
                    self._tally.rebalanced += 1
                    self._send(part.start + slab, drain.to if self._scenario.move else NOBODY)

    def _holders(self, device: int) -> list[Holder]:
        held, nothing = self._cluster.by_device[device], frozenset[int]()
        return [
            Holder(peer, held.get(peer, nothing), self._donors.free_bytes(peer), float(self._attached_s[peer]))
            for peer in self._peers[device]
            if self._cluster.up[peer]
        ]


def hot_unmapped(cluster: Cluster, activity: Activity) -> NDArray[np.intp]:
    """Slabs that are hot, whose device is up, and that have no remote memory."""
    return np.flatnonzero(cluster.unmapped & (activity.values >= HOT_PAGE_IOS) & cluster.up[cluster.owner])
