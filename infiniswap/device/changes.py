"""Changes to a device while it serves: options that can change, files that are read again, peers; and their memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from infiniswap.device.config import DeviceConfig
from infiniswap.device.daemon_client import DaemonClient
from infiniswap.device.discovery import Finder
from infiniswap.device.last_start import Described
from infiniswap.device.membership import DEADLINE_S_DEFAULT, Membership, MembershipEngine
from infiniswap.device.peer import Peer
from infiniswap.device.peers import Peers
from infiniswap.device.settings import Difference, Settings
from infiniswap.device.slabs import Slabs
from infiniswap.policy.activity import Thresholds
from infiniswap.policy.discovery import Discovery
from infiniswap.policy.mapping import MappingPolicy
from infiniswap.shared import logs
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import UserError

log = logging.getLogger(__name__)

ADMIT_AT_ONCE = 8  # names of discovered peers that are looked up at once


class Changed(Protocol):
    """What is needed of the device."""

    config: DeviceConfig
    peers: Peers
    slabs: Slabs

    @property
    def changing_engine(self) -> MembershipEngine:
        """The data path."""

    def stop_on_backup_error(self, stop: bool) -> None:
        """What a failing backup leads to."""


class Changes:
    """Of one device."""

    def __init__(
        self,
        device: Changed,
        settings: Settings,
        policy: MappingPolicy,
        client: Callable[[HostPort], DaemonClient],
        *,
        folder: Path,
        clock: Clock,
    ) -> None:
        """folder: of the device, where it remembers. clock: monotonic seconds."""
        self.settings = settings
        self._device = device
        self._policy = policy
        self._folder = folder

        def make(slot: int, address: HostPort) -> Peer:
            policy.slow.forget(slot)
            counted = device.changing_engine.peers[slot].copy()
            return Peer(slot, address, client(address), device.slabs, counted=counted)

        known = settings.remembered.discovered
        config = settings.in_force
        self.finder = Finder(
            file=config.discover_file,
            domain=config.discover_dns,
            server=config.discover_server,
            grace_s=config.discover_grace_s,
            known=known if config.discovers else (),
            applier=self,
            clock=clock,
        )
        self._coming: dict[HostPort, asyncio.Task[None]] = {}  # looked up, to become peers; at most ADMIT_AT_ONCE
        self._unfit: dict[HostPort, str] = {}  # named by discovery, and why they are no peers; of TARGETS_MAX at most
        self.membership = Membership(device.peers, device.slabs, device.changing_engine, make=make, clock=clock)

    def start(self) -> None:
        """The device serves."""
        self.membership.start()
        self._remember()
        self.finder.start()

    async def stop(self) -> None:
        """It does not any more."""
        await self.finder.stop()
        for task in self._coming.values():
            task.cancel()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)
        await self.membership.stop()

    def set(self, name: str, value: object) -> dict[str, Any]:
        """Set an option, or with None take back what was set at run time. UserError: nothing has changed."""
        described = self.settings.with_value(name, value)
        done = [each for each in self.settings.differences(described) if each.live]
        self._go_by(described, done)
        return {"changed": [_shown(each) for each in done], "remembered": self._remember()}

    def reload(self) -> dict[str, Any]:
        """Read the files again and do what they say. UserError: a mistake in them, and nothing has changed."""
        named_before = set(self.settings.named)
        described = self.settings.read_again()
        differences = self.settings.differences(described)
        done = [each for each in differences if each.live]
        self._go_by(described, done)
        named = self.settings.named
        came = [str(address) for address in named if address not in named_before and self._come(address)]
        went = [str(address) for address in named_before if address not in named and self._go(address)]
        for each in differences:
            if not each.live:
                log.warning("%s is %s by %s: that needs a restart", each.option, each.after, each.where)
        return {
            "changed": [_shown(each) for each in done],
            "restart": [_shown(each) for each in differences if not each.live],
            "added": sorted(came),
            "removed": sorted(went),
            "notes": list(described.notes),
            "remembered": self._remember(),
        }

    def reload_or_say(self) -> None:
        """As reload(), for a signal: what is wrong is logged."""
        try:
            result = self.reload()
        except UserError as error:
            log.error("the files are not read again, nothing has changed: %s", error)
            return
        if not any(result[key] for key in ("changed", "restart", "added", "removed")):
            log.info("the files are read again: nothing has changed")

    async def add_peer(self, address: HostPort) -> bool:
        """Add a peer by hand; False when it is one already. UserError."""
        changed = await self.membership.admit(address)
        self.settings.adopt(self.settings.with_peer(address, wanted=True))
        self._remember()
        return changed

    def remove_peer(self, address: HostPort, deadline_s: float) -> None:
        """Remove a peer by hand. UserError."""
        self.membership.remove(address, deadline_s)
        self.settings.adopt(self.settings.with_peer(address, wanted=False))
        self._remember()

    def discovered(self, discovery: Discovery) -> None:
        """Add what discovery wants, and remove what it does not want any more, in order."""
        remembered = self.settings.remembered
        present = {peer.address for peer in self._device.peers if not peer.retired}
        before = discovery.ours
        wanted = discovery.step(present, self.settings.named, remembered.removed)
        for address in wanted.remove:
            log.info("peer %s is not named by discovery any more, for %g s", address, discovery.grace_s)
            self._go(address)
        for gone in self._unfit.keys() - discovery.named:
            del self._unfit[gone]
        for address in wanted.add:
            if len(self._coming) < ADMIT_AT_ONCE and address not in self._coming:
                self._coming[address] = asyncio.create_task(self._admit(address), name=f"admit {address}")
        if discovery.ours != before or set(remembered.discovered) != set(discovery.ours):
            self.settings.adopt(self.settings.with_discovered(discovery.ours))
            self._remember()

    async def _admit(self, address: HostPort) -> None:
        try:
            await self.membership.admit(address)
            self._unfit.pop(address, None)
        except UserError as error:
            if self._unfit.get(address) != str(error):  # once, for it is tried each second
                log.warning("discovery names peer %s, which is not added: %s", address, error)
            self._unfit[address] = str(error)
        finally:
            del self._coming[address]

    def _come(self, address: HostPort) -> bool:
        try:
            return self.membership.add(address)
        except UserError as error:
            log.warning("peer %s is not added: %s", address, error)
            return False

    def _go(self, address: HostPort) -> bool:
        if self.membership.find(address) is None:
            return False
        self.membership.remove(address, DEADLINE_S_DEFAULT)
        return True

    def _go_by(self, described: Described, done: list[Difference]) -> None:
        self.settings.adopt(described)
        config = self._device.config = self.settings.in_force
        for note in described.notes:
            log.info("%s", note)
        for each in done:
            log.info("%s is %s now, was %s: %s", each.option, each.after, each.before, each.where)
        names = {each.option for each in done}
        if names & {"hot_page_ios", "cold_page_ios", "map"}:
            self._policy.change(config.map_policy, Thresholds(config.hot_page_ios, config.cold_page_ios))
        if "log_level" in names:
            logs.set_level(config.log_level)
        self.finder.policy.grace_s = config.discover_grace_s
        if "on_backup_error" in names:
            self._device.stop_on_backup_error(config.on_backup_error == "stop")

    def _remember(self) -> bool:
        try:
            self.settings.remembered.write(self._folder)
        except OSError as error:
            log.warning("the options in force cannot be remembered for the next start: %s", error.strerror)
            return False
        return True


def _shown(each: Difference) -> dict[str, Any]:
    return {"option": each.option, "before": each.before, "after": each.after, "where": each.where}
