"""Who has to go when a door is full: of strangers the one used longest ago, of the address that has the most of them.

Pure: connections are whatever keys the caller has for them. A connection is a stranger's until a request on it has
proved a lease (or whatever counts as known there). So one host that floods a door ends its own connections and not
those of others, and nobody ends those by which leases live.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

IPV6_PREFIX = 64  # whoever has one address of such a network has all of them

_Key = TypeVar("_Key", bound=Hashable)


def network_of(address: str) -> str:
    """What counts as one client's: an IPv4 address, or the /64 of an IPv6 address; "" for all that are no addresses."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_PREFIX), strict=False))


@dataclass(slots=True)
class _Guest:
    network: str
    holder: Hashable | None = None  # whose it is, once that is proved


class Crowd(Generic[_Key]):
    """Connections at one door, the one that was used longest ago first."""

    def __init__(self) -> None:
        """Nobody is there."""
        self._guests: dict[_Key, _Guest] = {}
        self._strangers: Counter[str] = Counter()  # by network
        self._holders: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._guests)

    def __contains__(self, key: object) -> bool:
        return key in self._guests

    def keys(self) -> list[_Key]:
        """All of them, the one that was used longest ago first."""
        return list(self._guests)

    def enter(self, key: _Key, network: str) -> None:
        """A stranger comes from network (see network_of)."""
        self.leave(key)
        self._guests[key] = _Guest(network)
        self._strangers[network] += 1

    def leave(self, key: _Key) -> None:
        """It has gone; nothing to do when it was not there."""
        guest = self._guests.pop(key, None)
        if guest is not None:
            self._uncount(guest)

    def keep(self, alive: Collection[_Key]) -> None:
        """All others have gone."""
        for key in [key for key in self._guests if key not in alive]:
            self.leave(key)

    def use(self, key: _Key) -> None:
        """It is in use now: others go before it."""
        if (guest := self._guests.pop(key, None)) is not None:
            self._guests[key] = guest

    def prove(self, key: _Key, holder: Hashable | None) -> None:
        """It is known as the holder's from now on; None: as nobody's any more."""
        guest = self._guests.get(key)
        if guest is None or guest.holder == holder:
            return
        self._uncount(guest)
        guest.holder = holder
        if holder is None:
            self._strangers[guest.network] += 1
        else:
            self._holders[holder] += 1

    def network(self, key: _Key) -> str:
        """Where it came from; "" when it is not there."""
        guest = self._guests.get(key)
        return "" if guest is None else guest.network

    def strangers(self, network: str) -> int:
        """Connections from network that have proved nothing."""
        return self._strangers[network]

    def held(self, holder: Hashable) -> int:
        """Connections that are known as the holder's."""
        return self._holders[holder]

    def stranger(self, may_go: Callable[[_Key], bool], network: str | None = None) -> _Key | None:
        """The stranger who is to go: of network, or of the network that has the most of those who may go."""
        for one in [network] if network is not None else [name for name, _ in self._strangers.most_common()]:
            for key, guest in self._guests.items():
                if guest.holder is None and guest.network == one and may_go(key):
                    return key
        return None

    def extra(self, may_go: Callable[[_Key], bool], holder: Hashable | None = None) -> _Key | None:
        """One more than its holder needs: of this holder, or of the one with the most; nobody loses its only one."""
        for one in [holder] if holder is not None else [name for name, _ in self._holders.most_common()]:
            if self._holders[one] <= 1:
                break
            for key, guest in self._guests.items():
                if guest.holder == one and may_go(key):
                    return key
        return None

    def _uncount(self, guest: _Guest) -> None:
        if guest.holder is None:
            self._strangers[guest.network] -= 1
            if not self._strangers[guest.network]:
                del self._strangers[guest.network]
        else:
            self._holders[guest.holder] -= 1
            if not self._holders[guest.holder]:
                del self._holders[guest.holder]
