"""Where a slab goes: power of two choices between peers that hold slabs of this device and peers that hold none.

After section 4.2 of the paper, which prefers machines without a slab of the device and takes the less loaded of two.
Pure decisions: who asks the peers, and how long that takes, is the mapper's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from infiniswap.shared.clock import Clock

COOL_DOWN_S = 5.0  # a peer that failed or took a slab back is left alone for so long
COOL_DOWN_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that is up: its slot, and how many slabs of this device it holds."""

    slot: int
    slabs: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a candidate answered when asked just now. taken_before: what OnTheWay.asked() told when it was asked."""

    slot: int
    slabs: int
    free_bytes: int
    taken_before: int = 0


class CoolDown:
    """Peers to leave alone for a while, longer each time they fail again; never for good."""

    def __init__(self, clock: Clock, first_s: float = COOL_DOWN_S) -> None:
        """clock: monotonic seconds. first_s: after the first failure."""
        self._clock = clock
        self._first_s = first_s
        self._until_s: dict[int, float] = {}
        self._length_s: dict[int, float] = {}

    def start(self, slot: int) -> None:
        """The peer has just failed or evicted a slab of ours; failures while it cools down already are the same one."""
        if self.active(slot):
            return
        now_s = self._clock()
        length_s = self._length_s.get(slot, self._first_s / 2) * 2
        if now_s - self._until_s.get(slot, float("-inf")) > COOL_DOWN_S_MAX:
            length_s = self._first_s
        self._length_s[slot] = min(length_s, COOL_DOWN_S_MAX)
        self._until_s[slot] = now_s + self._length_s[slot]

    def forget(self, slot: int) -> None:
        """Another peer has that slot now."""
        self._until_s.pop(slot, None)
        self._length_s.pop(slot, None)

    def active(self, slot: int) -> bool:
        """Whether the peer is still to be left alone."""
        return self._clock() < self._until_s.get(slot, float("-inf"))

    def usable(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of candidates that are not cooling down."""
        return [candidate for candidate in candidates if not self.active(candidate.slot)]


class OnTheWay:
    """Slabs that peers are being asked to take, several at once: what an offer cannot know of yet.

    Choices that run at the same time see the same offers; without this they would all make the same choice.
    """

    def __init__(self) -> None:
        """Nothing is on its way to anybody."""
        self._sent: dict[int, int] = {}  # by slot: slabs sent and not refused, ever growing but for refusals
        self._taken: dict[int, int] = {}

    def asked(self, slot: int) -> int:
        """The peer is about to be asked for an offer: what that offer knows of. Goes into Offer.taken_before."""
        return self._taken.get(slot, 0)

    def begin(self, slot: int) -> None:
        """A slab is sent to the peer."""
        self._sent[slot] = self._sent.get(slot, 0) + 1

    def end(self, slot: int, *, taken: bool) -> None:
        """The peer has answered for a slab that was sent, or will not any more."""
        if taken:
            self._taken[slot] = self._taken.get(slot, 0) + 1
        else:
            self._sent[slot] -= 1

    def unknown_to(self, offer: Offer) -> int:
        """Slabs under way to the peer now or since its offer was asked for.

        One that was under way when the peer was asked may be in the offer already; it is counted all the same, for too
        little is promised rather than too much.
        """
        return self._sent.get(offer.slot, 0) - offer.taken_before


def pairs(candidates: Sequence[Candidate], rng: Random) -> Iterator[tuple[Candidate, ...]]:
    """Random pairs to ask, one of the holders and one of the others while both last, each peer at most once."""
    holders = [candidate for candidate in candidates if candidate.slabs > 0]
    others = [candidate for candidate in candidates if candidate.slabs == 0]
    rng.shuffle(holders)
    rng.shuffle(others)
    while holders or others:
        first = others or holders
        pair = [first.pop()]
        second = holders or others
        if second:
            pair.append(second.pop())
        yield tuple(pair)


def ranked(offers: Iterable[Offer], slab_bytes: int, on_the_way: OnTheWay | None = None) -> list[Offer]:
    """Offers with room for a slab, most free bytes first; between equals the one that holds fewer slabs of ours.

    What is on its way to a peer counts as taken, for the order alone: whether there is room the peer knows best. Full
    equals stay in the order in which they were asked, which is random.
    """

    def order(offer: Offer) -> tuple[int, int]:
        coming = 0 if on_the_way is None else on_the_way.unknown_to(offer)
        return coming * slab_bytes - offer.free_bytes, offer.slabs + coming

    return sorted((offer for offer in offers if offer.free_bytes >= slab_bytes), key=order)
