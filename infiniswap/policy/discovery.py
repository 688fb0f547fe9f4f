"""Which peers discovery wants: what its sources named last, and for a while what they named before.

A source that cannot be asked, or says nonsense, is one that has not changed its mind: losing discovery drops nobody. A
peer that no source names for the grace time is to leave, in order. Pure decisions; who asks the sources, and how, is
device/discovery.py's affair.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done now, each in a fixed order."""

    add: tuple[HostPort, ...]
    remove: tuple[HostPort, ...]


class Discovery:
    """The sources of one device."""

    def __init__(self, sources: Iterable[str], grace_s: float, clock: Clock, known: Iterable[HostPort] = ()) -> None:
        """sources: by names. known: what they named when the device served last; counts until each was heard.

        clock: monotonic seconds.
        """
        self.grace_s = grace_s
        self._clock = clock
        self._named: dict[str, frozenset[HostPort] | None] = dict.fromkeys(sources)
        self._known = frozenset(known)
        self._last_s = dict.fromkeys(self._known, clock())  # by peer: when a source last named it

    def heard(self, source: str, named: Iterable[HostPort]) -> bool:
        """A source names these; whether that is news."""
        before = self._named[source]
        self._named[source] = frozenset(named)
        return before != self._named[source]

    @property
    def named(self) -> frozenset[HostPort]:
        """What the sources name, as far as is known."""
        named = frozenset().union(*(each for each in self._named.values() if each is not None))
        return named | self._known if None in self._named.values() else named

    @property
    def ours(self) -> tuple[HostPort, ...]:
        """Named now or within the grace time: for the next start to know."""
        return tuple(sorted(self._last_s))

    def step(
        self, present: Collection[HostPort], others: Collection[HostPort], refused: Collection[HostPort]
    ) -> Wanted:
        """What follows now. present: peers that there are and stay. others: those that are peers in any case.

        refused: not to be added, though named.
        """
        now_s = self._clock()
        named = self.named
        self._last_s.update(dict.fromkeys(named, now_s))
        over = {peer for peer, last_s in self._last_s.items() if peer not in named and now_s - last_s >= self.grace_s}
        for peer in over:
            del self._last_s[peer]
        add = sorted(peer for peer in named if peer not in present and peer not in refused)
        remove = sorted(peer for peer in over if peer in present and peer not in others)
        return Wanted(tuple(add), tuple(remove))
