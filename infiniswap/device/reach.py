"""How far a device reaches: with whom it may speak, and whether what it sends is sealed.

On the loopback interface nobody but this host's own programs takes part. Beyond it a peer is to show a certificate and
pages are to be sealed, unless the user says otherwise: there is no way in between, and none back while a device serves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from infiniswap.device.config import DeviceConfig
from infiniswap.device.state import DamagedState, Header, Phase
from infiniswap.identity.files import how_to_get_one
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.host_names import is_address, known_addresses
from infiniswap.shared.loopback import all_loopback, is_loopback

log = logging.getLogger(__name__)


UNSEALED = (
    "is not on this host, and pages are not sealed, as all peers were here when the device was started: stop it and "
    "start it with this peer, with --encrypt, or with --no-encrypt to send pages as they are"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """local_only: why peers beyond this host are refused, as the end of a sentence about one; None: they are not.

    far: a peer may be beyond this host: one is, or its name is not known, or discovery may name one.
    """

    local_only: str | None = None
    far: bool = False

    def refuse(self, address: HostPort, hosts: Iterable[str] = ()) -> None:
        """UserError where a peer is beyond this host and must not be. hosts: addresses that its name has now."""
        known = [address.host] if is_address(address.host) else list(hosts)
        if self.local_only is not None and known and not all_loopback(known):
            raise UserError(f"peer {address} {self.local_only}", ExitCode.REFUSED)

    async def check(self, peers: Iterable[HostPort]) -> None:
        """UserError where one of these is beyond this host and must not be. Names that are unknown may come."""
        if self.local_only is None:
            return
        found = await beyond(peers)
        if found.beyond:
            raise UserError(f"peer {found.beyond[0]} {self.local_only}", ExitCode.REFUSED)


@dataclass(frozen=True, slots=True)
class Beyond:
    """Of some peers those that are beyond this host, and those of which nobody knows where they are."""

    beyond: tuple[HostPort, ...]
    unknown: tuple[HostPort, ...]


async def beyond(peers: Iterable[HostPort]) -> Beyond:
    """Where peers are, as far as their names are known now."""
    asked = [peer for peer in peers if not is_loopback(peer.host)]
    named = await known_addresses(peer for peer in asked if not is_address(peer.host))
    unknown = tuple(peer for peer in asked if not is_address(peer.host) and peer not in named)
    near = {peer for peer, found in named.items() if all_loopback(host for host, _ in found)}
    return Beyond(tuple(peer for peer in asked if peer not in near and peer not in unknown), unknown)


async def reach_of(config: DeviceConfig) -> Reach:
    """How far this device reaches. UserError: one of its peers is beyond that."""
    if config.tls is not None or config.insecure:
        if config.encrypt is not None or config.encrypt_key_file is not None:
            return Reach()  # it decides nothing, and a name service that is silent would cost a start its time
        found = await beyond(config.peers)
        return Reach(far=config.discovers or bool(found.beyond or found.unknown))
    reach = Reach(
        f"is not on this host, and there is no certificate to show: {how_to_get_one()}; or give --insecure, and "
        "whoever is on the network may take part"
    )
    await reach.check(config.peers)
    return reach


def settle_sealing(
    config: DeviceConfig, reach: Reach, header: Header | DamagedState | None
) -> tuple[DeviceConfig, Reach]:
    """Whether pages are sealed, where the user has not said so, and what follows for the reach.

    header: of the state file; one that is to be recovered goes on sealed where it was.
    """
    if config.encrypt is not None:
        return config, reach
    before = isinstance(header, Header) and header.phase is Phase.IN_USE and header.sealed
    sealed = reach.far or before or config.encrypt_key_file is not None
    if not sealed and reach.local_only is None:
        reach = replace(reach, local_only=UNSEALED)
    return replace(config, encrypt=sealed), reach
