"""How a device chooses a donor: what it does, and what else was tried.

two-free and whatever else the policy does by itself run the very code of policy/; the others are here alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from infiniswap.policy.mapping import MappingPolicy
from infiniswap.policy.placement import Candidate, Offer
from infiniswap.simulation.scenario import GIB, Strategy


@dataclass(frozen=True, slots=True)
class HostOffer(Offer):
    """An offer with what donors do not tell, and some strategies would ask."""

    lendable_bytes: int = 0  # with what is lent
    host_bytes: int = 0
    host_used_bytes: int = 0


class Chooser:
    """One strategy for one device."""

    def __init__(self, strategy: Strategy, policy: MappingPolicy, slab_bytes: int, rng: Random) -> None:
        """rng: for the strategies that do not leave chance to the policy."""
        self._strategy = strategy
        self._policy = policy
        self._slab_bytes = slab_bytes
        self._rng = rng

    def to_ask(self, candidates: Sequence[Candidate], meant: int | None) -> Iterator[tuple[Candidate, ...]]:
        """Whom to ask together, one group after the other."""
        if self._strategy is Strategy.ONE:
            return iter([(candidate,) for candidate in self._rng.sample(candidates, len(candidates))])
        if self._strategy is Strategy.MOST_FREE:
            return iter([tuple(candidates)])
        return self._policy.to_ask(candidates, meant)

    def ranked(self, offers: Iterable[HostOffer]) -> Sequence[Offer]:
        """Those with room, best first."""
        if self._strategy is Strategy.TWO_FREE:
            return self._policy.ranked(offers)
        fitting = [offer for offer in offers if offer.free_bytes >= self._slab_bytes]
        return sorted(fitting, key=self._key)

    def _key(self, offer: HostOffer) -> tuple[float, int]:
        if self._strategy is Strategy.MOST_FREE:  # the original asks in whole GiB, and knows of nothing on its way
            return float(-(offer.free_bytes // GIB)), 0
        coming = self._policy.on_the_way.unknown_to(offer)
        if self._strategy is Strategy.TWO_HOST:
            used = (offer.host_used_bytes + coming * self._slab_bytes) / offer.host_bytes
        else:
            used = 1.0 - (offer.free_bytes - coming * self._slab_bytes) / offer.lendable_bytes
        return used, offer.slabs + coming
