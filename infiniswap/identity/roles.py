"""Who may do what, by the names in certificates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

_NAME_CHARACTERS_MAX = 255  # of what a host is called; more than a name in the DNS has


class Role(StrEnum):
    """What somebody wants to do, as a refusal names it."""

    LOOK = "look"
    BORROW = "borrow"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Roles:
    """Patterns of names (fnmatch: *, ?, [a-z]) of those who may borrow, look, and give orders.

    None: everybody whom the cluster's authority vouches for; of drain: as without certificates (operators). Who may do
    more than look may look, too.
    """

    may_borrow: tuple[str, ...] | None = None
    may_look: tuple[str, ...] | None = None
    may_drain: tuple[str, ...] | None = None

    def allow(self, role: Role, names: Iterable[str]) -> bool:
        """Whether a host of these names may."""
        names = tuple(name.lower() for name in names)
        borrows = _match(self.may_borrow, names)
        drains = self.may_drain is not None and _match(self.may_drain, names)
        if role is Role.BORROW:
            return borrows
        if role is Role.DRAIN:
            return drains
        return borrows or drains or _match(self.may_look, names)


def _match(patterns: Sequence[str] | None, names: Sequence[str]) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in names)


def called(certificate: Mapping[str, Any]) -> str:
    """By what a host is known to this daemon: the name that its certificate is called first, whatever the case."""
    names = names_in(certificate)
    return names[0].lower()[:_NAME_CHARACTERS_MAX] if names else f"serial {certificate.get('serialNumber', '?')}"


def names_in(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in a certificate as ssl.SSLObject.getpeercert() tells it: what it is called first, then the others."""
    parts = [pair for part in certificate.get("subject", ()) for pair in part]
    called = [str(value) for key, value in parts if key == "commonName"]
    others = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    return tuple(dict.fromkeys([*called, *others]))
