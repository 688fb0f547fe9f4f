"""Takes lent memory back when the host needs it: free memory first, then the least active slabs, in batches.

A batch: of E + E' sampled slabs the owners tell the activity (all asked at once, ASK_S), the E least active get notice,
and a device that has not given one up by its deadline (GIVE_UP_S) loses it by force. Nobody who is silent is waited
for: without a word a slab counts as cold. Taking by force loses nothing, for every page is on the device's backup, or
waits at the device for its way there.

One task does all this, woken after each look at the host, when memory comes back, and when a deadline has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from infiniswap.daemon.leases import Lease
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.streams import Stream, Streams, in_messages
from infiniswap.policy.eviction import Holding, least_active, sample
from infiniswap.shared.clock import Clock
from infiniswap.shared.sizes import format_size
from infiniswap.shared.stream_messages import MESSAGE_SLABS_MAX, Evict, Taken

log = logging.getLogger(__name__)

ASK_S = 0.15  # for the owners' answers; they have them at hand
GIVE_UP_S = 0.8  # from notice to force: with a second until the host is looked at, its headroom is restored within two
BATCH_SLABS_MAX = 1024
IDLE_S = 5.0  # between looks when nobody calls
SURVEY_S = 10.0  # between questions that only keep figures at hand for when there is no time to ask


class Evictor:
    """The task, and what others may have it do. start() once, then close() once."""

    def __init__(
        self,
        lender: Lender,
        streams: Streams,
        *,
        clock: Clock,
        rng: Random,
        ask_s: float = ASK_S,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """clock: monotonic seconds, the one of the leases."""
        self._lender = lender
        self._streams = streams
        self._clock = clock
        self._rng = rng
        self._ask_s = ask_s
        self._give_up_s = give_up_s
        self._notices = itertools.count(1)
        self._surveyed_s = clock()
        self._task: asyncio.Task[None] | None = None
        streams.opened = self._tell_again

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="evictor")

    async def close(self) -> None:
        """Stop; who has notice keeps it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def wake(self) -> None:
        """The host may need memory: look now."""
        self._lender.changed.set()

    # ---- what is done ----

    async def step(self) -> None:
        """Take what is overdue; when memory is missing, free pools, or give notice of another batch."""
        self._take_overdue()
        missing = self._missing_bytes()
        if missing > 0 and self._lender.give_way(missing):  # what nobody has asked for since its lease lapsed
            missing = self._missing_bytes()
        if missing > 0 and await self._free_pools():
            missing = self._missing_bytes()
        if missing > 0:
            await self.evict(missing, deadline_s=self._give_up_s, enough=self._missing_bytes)

    async def evict(self, wanted_bytes: int, *, deadline_s: float, enough: Callable[[], int] | None = None) -> int:
        """Give notice of the least active slabs, of wanted_bytes together where there are so many; of how many bytes.

        enough: tells how much is still wanted once the owners have answered.
        """
        holdings = self._holdings()
        if not holdings:
            return 0
        most = BATCH_SLABS_MAX * min(holding.slab_bytes for holding in holdings)
        picked = sample(holdings, min(wanted_bytes, most), self._rng)
        await self._ask(picked)
        holdings = self._holdings()  # some may have gone meanwhile
        there = {holding.owner: set(holding.slabs) for holding in holdings}
        picked = {lease: [s for s in slabs if s in there.get(lease, ())] for lease, slabs in picked.items()}
        if enough is not None:
            wanted_bytes = min(wanted_bytes, enough())
        answers = {lease: lease.activity for lease in picked if not self._streams.silent(lease)}
        chosen = self._choose(holdings, picked, answers, min(wanted_bytes, most))
        self.give_notice(chosen, deadline_s=deadline_s)
        return _size_bytes(chosen)

    def give_notice(self, slabs: Mapping[Lease, Iterable[int]], *, deadline_s: float, now: bool = False) -> None:
        """Have the owners give these slabs up within deadline_s, or they are taken by force; an earlier deadline stays.

        now: owners should not begin anything that takes time.
        """
        until_s = self._clock() + deadline_s
        for lease, wanted in slabs.items():
            mine = [slab for slab in wanted if slab in lease.slabs]
            for slab in mine:
                lease.leaving[slab] = min(until_s, lease.leaving.get(slab, until_s))
            stream = self._streams.find(lease)
            if stream is not None:
                self._tell(stream, mine, deadline_s, now=now)
        self.wake()  # a deadline may be nearer than all the others

    def force_now(self, wanted_bytes: int) -> int:
        """Take the least active slabs by what was told of them last, at once and asking nobody; how many bytes."""
        given_bytes = self._lender.give_way(wanted_bytes)
        wanted_bytes = max(0, wanted_bytes - given_bytes)
        holdings = [
            Holding(lease, list(lease.slabs), lease.slab_bytes) for lease in self._lender.leases.leases() if lease.slabs
        ]
        everything = {holding.owner: holding.slabs for holding in holdings}
        known = {lease: lease.activity for lease in everything}
        chosen = self._choose(holdings, everything, known, wanted_bytes)
        self._take(chosen)
        return given_bytes + _size_bytes(chosen)

    # ---- how ----

    def _choose(
        self,
        holdings: Sequence[Holding[Lease]],
        sampled: Mapping[Lease, Sequence[int]],
        activity: Mapping[Lease, Mapping[int, float]],
        wanted_bytes: int,
    ) -> dict[Lease, list[int]]:
        """As least_active(), by lease."""
        chosen: dict[Lease, list[int]] = {}
        for lease, slab in least_active(holdings, sampled, activity, wanted_bytes, self._rng):
            chosen.setdefault(lease, []).append(slab)
        return chosen

    def _missing_bytes(self) -> int:
        """What is still to be taken back, beside what is leaving."""
        leaving = sum(len(self._soon(lease)) * lease.slab_bytes for lease in self._lender.leases.leases())
        return max(0, self._lender.shortage_bytes() - leaving)

    def _soon(self, lease: Lease) -> frozenset[int]:
        """Slabs that will have left when others would that get notice now; a drain's may take much longer."""
        until_s = self._clock() + self._give_up_s
        return frozenset(slab for slab, due_s in lease.leaving.items() if due_s <= until_s)

    def _holdings(self) -> list[Holding[Lease]]:
        """What may be sampled: all but what is leaving soon."""
        soon = {lease: self._soon(lease) for lease in self._lender.leases.leases()}
        return [
            Holding(lease, slabs, lease.slab_bytes)
            for lease, leaving in soon.items()
            if (slabs := [slab for slab in lease.slabs if slab not in leaving])
        ]

    async def _free_pools(self) -> bool:
        """Give back what waits registered for devices; whether there was something."""
        lender = self._lender
        lender.keys.pause()
        blocks = [
            (lender.keys.drain(lease, pooled), lease.slab_bytes)
            for lease in lender.leases.leases()
            if (pooled := lender.keys.pooled(lease))
        ]
        await asyncio.gather(*(lender.clearing.recover(offsets, size_bytes) for offsets, size_bytes in blocks))
        return bool(blocks)

    async def survey(self) -> None:
        """Have figures of all slabs at hand, of a random part where a lease has more than a message takes."""
        self._surveyed_s = self._clock()
        leases = [lease for lease in self._lender.leases.leases() if lease.slabs]
        await self._ask(
            {lease: self._rng.sample(list(lease.slabs), min(len(lease.slabs), MESSAGE_SLABS_MAX)) for lease in leases},
            forget=False,
        )

    async def _ask(self, picked: Mapping[Lease, list[int]], *, forget: bool = True) -> None:
        """Have the activity of these slabs on record, as far as their owners tell it in time.

        forget: without an answer in time there is no figure.
        """

        async def ask(lease: Lease, stream: Stream, slabs: list[int]) -> None:
            told = await stream.ask(slabs[:MESSAGE_SLABS_MAX], self._ask_s)
            for slab in slabs if forget or told is not None else ():
                lease.activity.pop(slab, None)
            if told is None:
                self._lender.counts.ask_timeouts += 1
                return
            lease.activity.update((slab, rate) for slab, rate in told.items() if slab in lease.slabs)

        asked = [(lease, self._streams.find(lease), slabs) for lease, slabs in picked.items()]
        await asyncio.gather(
            *(ask(lease, stream, slabs) for lease, stream, slabs in asked if stream is not None and not stream.silent)
        )

    def _tell(self, stream: Stream, slabs: list[int], deadline_s: float, *, now: bool = False) -> None:
        for part in in_messages(slabs):
            self._lender.counts.notices += 1
            stream.send(Evict(next(self._notices), part, max(0, int(deadline_s * 1000)), now))

    def _tell_again(self, stream: Stream) -> None:
        """A device that has just opened its stream may not know what it is to give up."""
        now_s = self._clock()
        by_deadline: dict[float, list[int]] = {}
        for slab, until_s in stream.lease.leaving.items():
            by_deadline.setdefault(until_s, []).append(slab)
        for until_s, slabs in by_deadline.items():
            self._tell(stream, slabs, until_s - now_s)

    def _take_overdue(self) -> None:
        now_s = self._clock()
        overdue = {
            lease: [slab for slab, until_s in lease.leaving.items() if until_s <= now_s]
            for lease in self._lender.leases.leases()
            if lease.leaving
        }
        self._take({lease: slabs for lease, slabs in overdue.items() if slabs})

    def _take(self, slabs: Mapping[Lease, list[int]]) -> None:
        """By force; the owners are told, if they listen.

        First taken, then told: messages and lines of a log take memory, and there may be none until some is free.
        """
        for lease, mine in slabs.items():
            for slab in mine:
                self._lender.take_by_force(lease, slab)
        for lease, mine in slabs.items():
            size = format_size(len(mine) * lease.slab_bytes)
            log.warning("lease %s: %s of device %s taken back by force", lease.lease_id, size, lease.device)
            stream = self._streams.find(lease)
            for part in in_messages(mine):
                if stream is not None:
                    stream.send(Taken(part))

    async def _run(self) -> None:
        changed = self._lender.changed
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await changed.wait()
            changed.clear()
            try:
                await self.step()
                if self._clock() - self._surveyed_s >= SURVEY_S:
                    await self.survey()
            except Exception:
                log.exception("taking memory back went wrong; it is tried again")
                await asyncio.sleep(self._ask_s)

    def _pause_s(self) -> float:
        """Until the next deadline, or IDLE_S."""
        deadlines = [min(lease.leaving.values()) for lease in self._lender.leases.leases() if lease.leaving]
        return min([IDLE_S, *(max(0.0, until_s - self._clock()) for until_s in deadlines)])


def _size_bytes(slabs: Mapping[Lease, Sequence[int]]) -> int:
    return sum(len(mine) * lease.slab_bytes for lease, mine in slabs.items())
