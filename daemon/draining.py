"""Taking the daemon out of service: cordon (no new slabs), drain (those that are lent go back), and uncordon.

A drain gives notice of a few slabs of each lease at a time, so that what has not gone yet serves on meanwhile, the
least active ones first; once half of the time is over, of all. The evictor takes what is not given up by the deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from infiniswap.daemon.leases import Lease, LeaseTable
from infiniswap.shared.clock import Clock
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.operator_messages import DEADLINE_S_DEFAULT, DonorState, Drain, DrainState, Holding

log = logging.getLogger(__name__)

LOOK_S = 0.05  # between looks at what has gone
WINDOW_SLABS = 16  # of a lease that have notice at a time
ALL_AT_ONCE_SHARE = 0.5  # of the time that was given, after which all of them have
LATE_S = 5.0  # after the deadline, until it is said that slabs are still there


class Notices(Protocol):
    """What draining needs of the evictor."""

    def give_notice(self, slabs: Mapping[Lease, Iterable[int]], *, deadline_s: float) -> None:
        """See Evictor."""

    def wake(self) -> None:
        """See Evictor."""


class Listeners(Protocol):
    """What draining needs of the streams."""

    draining: bool

    def tell_policy(self) -> None:
        """See Streams."""


class Lending(Protocol):
    """What draining needs of the lender."""

    lending: bool

    @property
    def leases(self) -> LeaseTable:
        """See Lender."""


@dataclass(slots=True)
class _Run:
    """A drain. Times by the daemon's clock."""

    begun_s: float
    given_s: float  # when the deadline was set
    deadline_s: float
    slabs: int
    taken_before: dict[Lease, int]  # leases that held something, and what they had lost by force until then
    stop: bool = False
    state: DrainState = DrainState.RUNNING
    over_s: float = 0.0  # this and the rest once it is over
    left: int = 0
    forced: tuple[Holding, ...] = ()


class Draining:
    """One daemon's willingness to lend."""

    def __init__(self, lender: Lending, notices: Notices, streams: Listeners, clock: Clock) -> None:
        """clock: that of the leases."""
        self._lender = lender
        self._notices = notices
        self._streams = streams
        self._clock = clock
        self._complaints = Complaints(log, clock)
        self._run: _Run | None = None
        self._task: asyncio.Task[None] | None = None
        self.is_over = asyncio.Event()  # no drain goes on
        self.is_over.set()
        self.stop_wanted = asyncio.Event()  # a drain that was to end in a stop is done

    @property
    def state(self) -> DonorState:
        """What the daemon does with its memory."""
        if self._lender.lending:
            return DonorState.LENDING
        if self._run is not None and self._run.state is DrainState.RUNNING:
            return DonorState.DRAINING
        done = self._run is not None and self._run.state is DrainState.DONE
        return DonorState.DRAINED if done else DonorState.CORDONED

    def left(self) -> int:
        """Slabs that are lent."""
        return sum(len(lease.slabs) for lease in self._lender.leases.leases())

    def shown(self) -> Drain | None:
        """The last drain, or the one that goes on."""
        run = self._run
        if run is None:
            return None
        running = run.state is DrainState.RUNNING
        now = self._clock() if running else run.over_s
        return Drain(
            state=run.state,
            slabs=run.slabs,
            left=self.left() if running else run.left,
            elapsed_s=round(now - run.begun_s, 3),
            deadline_in_s=round(max(0.0, run.deadline_s - now), 3),
            forced=self._forced(run) if running else run.forced,
            stop=run.stop,
        )

    def cordon(self) -> None:
        """Lend nothing new; a drain goes on."""
        if self._lender.lending:
            log.info("cordoned: no new slabs are lent")
        self._lend(lending=False)

    def uncordon(self) -> None:
        """Lend again. A drain ends where it is: what has gone is gone."""
        if self._task is not None:
            self._task.cancel()
        run = self._run
        if run is not None and run.state is DrainState.RUNNING:
            self._end(run, DrainState.ENDED)
            log.info("the drain was ended by uncordon; %d slabs are left", self.left())
        elif run is not None and run.state is DrainState.DONE:
            self._run = None  # whatever is lent from now on, it says nothing about
        self._forget_notices()
        self._lend(lending=True)

    def begin(self, deadline_s: float | None = None, *, stop: bool = False) -> None:
        """Cordon, and have everything given back within deadline_s; then it is taken.

        Where a drain goes on this one joins it; a deadline takes the place of the one that it had.
        """
        now = self._clock()
        run = self._run
        if run is not None and run.state is DrainState.RUNNING:
            run.stop |= stop
            if deadline_s is not None:
                run.given_s, run.deadline_s = now, now + deadline_s
                self._forget_notices()  # they are given anew, with the new deadline
            return
        until_s = now + (DEADLINE_S_DEFAULT if deadline_s is None else deadline_s)
        holders = {lease: lease.taken for lease in self._lender.leases.leases() if lease.slabs}
        run = self._run = _Run(now, now, until_s, self.left(), holders, stop)
        self.is_over.clear()
        self._lend(lending=False)
        log.info("draining %d slabs within %.0f s", run.slabs, until_s - now)
        self._task = asyncio.create_task(self._drain(run), name="drain")

    def hasten(self, deadline_s: float) -> None:
        """As begin() with stop, but a drain that is to be over sooner keeps its deadline."""
        run = self._run
        running = run is not None and run.state is DrainState.RUNNING
        sooner = run is not None and run.deadline_s <= self._clock() + deadline_s
        self.begin(None if running and sooner else deadline_s, stop=True)

    async def close(self) -> None:
        """End the drain where it is; the lender lends no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # ---- how ----

    async def _drain(self, run: _Run) -> None:
        while self.left():
            try:
                self._step(run)
            except Exception:
                log.exception("the drain went wrong; it goes on")
            await asyncio.sleep(LOOK_S)
        self._end(run, DrainState.DONE)
        log.info("drained: %d slabs went back, %d of them by force", run.slabs, sum(h.slabs for h in run.forced))
        for holding in run.forced:
            message = "device %s of %s did not give %d slabs back in time: they were taken by force"
            log.warning(message, holding.device, holding.host, holding.slabs)
        if run.stop:
            self.stop_wanted.set()

    def _step(self, run: _Run) -> None:
        """Give notice of what may go next."""
        now = self._clock()
        all_of_them = now - run.given_s >= ALL_AT_ONCE_SHARE * (run.deadline_s - run.given_s)
        wanted: dict[Lease, list[int]] = {}
        for lease in self._lender.leases.leases():
            waiting = [slab for slab in lease.slabs if slab not in lease.leaving]
            if not all_of_them:
                waiting.sort(key=lambda slab: lease.activity.get(slab, 0.0))
                del waiting[max(0, WINDOW_SLABS - len(lease.leaving)) :]
            if waiting:
                wanted[lease] = waiting
        if wanted:
            self._notices.give_notice(wanted, deadline_s=max(0.0, run.deadline_s - now))
        if now > run.deadline_s + LATE_S:
            message = f"{self.left()} slabs are still there after the drain's deadline"
            self._complaints.say("late", message, logging.WARNING)

    def _forget_notices(self) -> None:
        """What is to be given up, and by when, is decided anew; the evictor does so, too, where memory is short."""
        for lease in self._lender.leases.leases():
            lease.leaving.clear()
        self._notices.wake()

    def _lend(self, *, lending: bool) -> None:
        self._lender.lending = lending
        self._streams.draining = self.state in (DonorState.DRAINING, DonorState.DRAINED)
        self._streams.tell_policy()

    def _forced(self, run: _Run) -> tuple[Holding, ...]:
        """What devices have lost by force since the drain began."""
        lost = [(lease, lease.taken - before) for lease, before in run.taken_before.items()]
        return tuple(Holding(lease.device, lease.host, slabs, lease.slab_bytes) for lease, slabs in lost if slabs)

    def _end(self, run: _Run, state: DrainState) -> None:
        run.state = state
        run.over_s = self._clock()
        run.left, run.forced = self.left(), self._forced(run)
        run.taken_before.clear()
        self.is_over.set()
