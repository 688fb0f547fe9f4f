"""An invitation: whom it lets in, as what, and how often somebody may try. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from infiniswap.identity import HOST_DAYS
from infiniswap.shared.errors import UserError

JOIN_PORT = 7403
LOCAL = ("localhost", "127.0.0.1", "::1")  # as a host's own commands reach its daemon
VALID_S_DEFAULT, VALID_S_MAX = 600.0, 86_400.0
CLOCKS_APART_MAX = timedelta(hours=1)  # else a certificate that is issued now is of no use there
NETWORK_TRIES_MAX = 4  # wrong codes from one address; it is then not listened to
TRIES_MAX = 32  # from all; the invitation then ends


@dataclass(frozen=True, slots=True)
class Invitation:
    """One host, called so and no other way; more: further addresses and names that it may be reached by."""

    host: str
    more: tuple[str, ...] = ()
    days: float = HOST_DAYS

    def check(self, claims: Sequence[str]) -> None:
        """UserError unless it is that host's; claims: how the one that answers calls itself, then its addresses.

        This finds the line that was typed on another host. Who has the code can claim what he wants, and gets a
        certificate for this host all the same.
        """
        if self.host in claims or _same_host(self.host, claims[0]):
            return
        raise UserError(
            f"the invitation is for '{self.host}', and the host that joins calls itself '{claims[0]}': join on "
            f"{self.host}, or with '--name {self.host}' if that is the one"
        )

    def names(self, claims: Sequence[str], source: str) -> list[str]:
        """What its certificate is for, the host itself first; source: the address that the connection came from.

        Of what it claims only that address counts, and only if it says it has it itself (else it is a router's). With
        any other it could show itself as a host that it is not, or match a pattern of --may-drain.
        """
        seen = (source,) if source in claims else ()
        return list(dict.fromkeys((self.host, *self.more, *seen, *LOCAL)))


def _same_host(invited: str, called: str) -> bool:
    """Whether both are the same name, one of them perhaps without its domain."""
    one, _, domain = invited.partition(".")
    other, _, other_domain = called.partition(".")
    return one == other and (not domain or not other_domain or domain == other_domain)


def check_clocks(there: datetime, here: datetime, name: str) -> None:
    """UserError when they are too far apart; name: of the host there."""
    if abs(there - here) > CLOCKS_APART_MAX:
        raise UserError(
            f"the clocks are not the same: '{name}' has {there:%Y-%m-%d %H:%M} UTC, the authority's host "
            f"{here:%Y-%m-%d %H:%M} UTC; set the one that is wrong, and join again"
        )


class Tries:
    """Wrong codes, by the network that they came from."""

    def __init__(self) -> None:
        """There were none."""
        self._of: Counter[str] = Counter()  # at most TRIES_MAX, for then it is over

    def add(self, network: str) -> None:
        """One more."""
        self._of[network] += 1

    def is_shut_out(self, network: str) -> bool:
        """Whether it is not to be listened to."""
        return self._of[network] >= NETWORK_TRIES_MAX

    @property
    def is_over(self) -> bool:
        """Whether there were too many."""
        return self._of.total() >= TRIES_MAX
