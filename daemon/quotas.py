"""How much one host may borrow in all: leases, memory, page connections; by the name in its certificate. Pure.

Where control is not secured a host is known by its address alone, and anybody may have many: there one address gets
half of the leases at most, so that no single host, by mistake or not, keeps all others out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

from infiniswap.daemon.lapsed import held_bytes
from infiniswap.daemon.leases import Lease
from infiniswap.shared.crowd import network_of
from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import exact_size, format_size, parse_size

ADDRESS_SHARE = 2  # without certificates one address may have this part (1/n) of all leases
RULES_MAX = 256
COUNT_MAX = 1 << 20  # more than there is of anything
PATTERN = re.compile(r"[\w.:*?\[\]!-]{1,255}", re.ASCII)
_LIMIT = re.compile(r"(leases|memory|connections)=(\S+)")


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that one host may have; None: as much as there is."""

    leases: int | None = None
    memory: int | None = None  # bytes in mapped slabs
    connections: int | None = None  # for page I/O over TCP


# A quarter of a daemon's leases, and of its page connections: with four such hosts it is full.
DEFAULT = Quota(leases=64, connections=256)


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of names (fnmatch), and the quota of each host that it fits; what it leaves out is as in DEFAULT."""

    pattern: str
    quota: Quota

    def __str__(self) -> str:
        """As the user may write it."""
        told = {one.name: getattr(self.quota, one.name) for one in fields(self.quota)}
        limits = [f"{name}={exact_size(value) if name == 'memory' else value}" for name, value in told.items() if value]
        return " ".join([self.pattern, *limits])


def parse_rule(option: str, text: object) -> Rule:
    """A rule such as 'web* leases=4 memory=8GiB connections=16'; UserError."""
    pattern, *limits = (text.split() if isinstance(text, str) else []) or [""]
    found = [_LIMIT.fullmatch(limit) for limit in limits]
    if PATTERN.fullmatch(pattern) is None or not found or None in found:
        example = "web* leases=4 memory=8GiB connections=16"
        raise UserError(f"{option} '{text}' is no quota; write for example '{example}', or less of that")
    told: dict[str, int] = {}
    for limit in found:
        assert limit is not None
        name, value = limit.groups()
        if name in told:
            raise UserError(f"{option} '{text}' says {name} twice")
        told[name] = _amount(option, name, value)
    return Rule(pattern.lower(), Quota(**told))


def _amount(option: str, name: str, value: str) -> int:
    if name == "memory":
        try:
            return parse_size(value)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
    if re.fullmatch(r"[0-9]{1,7}", value) is None or not 0 < int(value) <= COUNT_MAX:
        raise UserError(f"{option}: {name}={value} must be a whole number from 1 to {COUNT_MAX}")
    return int(value)


@dataclass(slots=True)
class Quotas:
    """Rules, the first of which that fits a host counts. Refusals are sentences, "" where there is none."""

    rules: Sequence[Rule] = ()

    def of(self, owner: str) -> Quota:
        """That of a host by its name (see Lease.owner)."""
        for rule in self.rules:
            if fnmatchcase(owner, rule.pattern):
                own = rule.quota
                return Quota(own.leases or DEFAULT.leases, own.memory, own.connections or DEFAULT.connections)
        return DEFAULT

    def lease_refusal(self, owner: str, host: str, leases: Iterable[Lease], leases_max: int) -> str:
        """Why a host gets no further lease; owner: "" where control is not secured, and its address counts."""
        if owner:
            most, own = self.of(owner).leases, sum(1 for lease in leases if lease.owner == owner)
            return f"{owner} may have {most} leases here, and has them" if most is not None and own >= most else ""
        network, most = network_of(host), max(1, leases_max // ADDRESS_SHARE)
        if not network or sum(1 for lease in leases if network_of(lease.host) == network) < most:
            return ""
        return f"your address may have {most} of the {leases_max} leases of this daemon, and has them"

    def room_bytes(self, owner: str, leases: Iterable[Lease]) -> int | None:
        """Memory that a host may still map, below 0 where it has too much already; None: as much as there is."""
        most = self.of(owner).memory if owner else None
        return None if most is None else most - sum(held_bytes(lease) for lease in leases if lease.owner == owner)

    def memory_refusal(self, owner: str) -> str:
        """What a host is told that has no room for another slab."""
        return f"{owner} may hold {format_size(self.of(owner).memory or 0)} here in all its leases, and does"

    def connection_refusal(self, lease: Lease, leases: Iterable[Lease], connections: Callable[[Lease], int]) -> str:
        """Why a lease gets no further connection for page I/O; connections: that a lease has."""
        most = self.of(lease.owner).connections if lease.owner else None
        if most is None or sum(connections(one) for one in leases if one.owner == lease.owner) < most:
            return ""
        return f"{lease.owner} may have {most} connections here, and has them"
