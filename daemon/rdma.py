"""This host's RDMA device: opened when there is one, closed when it vanishes, opened again when one is back.

A device that is being removed leaves sysfs at once, while its removal waits for those who have it open. So vanished()
looks; whoever has made something of the device closes it before close() is called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address

from infiniswap.daemon.libibverbs import load_verbs
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.verbs import Device, Verbs, VerbsError
from infiniswap.rdma.devices import Gid, Port, device_names, list_ports
from infiniswap.rdma.path import Address, RdmaUnavailableError, choose_gid, choose_port
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import ExitCode, UserError

log = logging.getLogger(__name__)

REOPEN_INTERVAL_S = 2.0  # between looks for a device where there is none


class RdmaMode(StrEnum):
    """Whether the daemon uses RDMA: where there is a device, not at all, or it does not start without."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRED = "required"


class RdmaState(StrEnum):
    """What /v1/stats tells."""

    OFF = "off"
    UNAVAILABLE = "unavailable"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class RdmaOptions:
    """Which port and GID; None: a fitting one is found."""

    mode: RdmaMode = RdmaMode.AUTO
    device: str | None = None
    port: int | None = None
    gid_index: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A device in use: its handle, the port through which it was chosen, and what it told when it was opened."""

    device: Device
    port: Port
    gid: Gid
    mtu_bytes: int


class RdmaHost:
    """The one RDMA device that the daemon has open, if any."""

    def __init__(
        self,
        options: RdmaOptions,
        *,
        local: Address | None = None,
        load: Callable[[], Verbs] = load_verbs,
        ports: Callable[[], tuple[Port, ...]] = list_ports,
        names: Callable[[], frozenset[str]] = device_names,
        clock: Clock = time.monotonic,
    ) -> None:
        """local: the address at which devices reach this host, where known. The rest is the world, for tests."""
        self.options = options
        self.opened: Opened | None = None
        self.reason = "switched off by --rdma never" if options.mode is RdmaMode.NEVER else "not looked for yet"
        self._local = local
        self._load = load
        self._ports = ports
        self._names = names
        self._clock = clock
        self._verbs: Verbs | None = None
        self._hopeless = options.mode is RdmaMode.NEVER
        self._next_try_s = clock()

    @property
    def state(self) -> RdmaState:
        """What there is of RDMA now."""
        if self.options.mode is RdmaMode.NEVER:
            return RdmaState.OFF
        return RdmaState.UNAVAILABLE if self.opened is None else RdmaState.READY

    def start(self) -> None:
        """Look for the device. UserError: it is required and there is none."""
        if self.options.mode is RdmaMode.NEVER:
            return
        if self.try_open():
            return
        if self.options.mode is RdmaMode.REQUIRED:
            raise UserError(f"--rdma required: {self.reason}", ExitCode.RESOURCES)
        log.info("page I/O goes over TCP only: %s", self.reason)

    def try_open(self) -> bool:
        """Open the device if there is one by now; at most every REOPEN_INTERVAL_S when there was none."""
        now_s = self._clock()
        if self._hopeless or self.opened is not None or now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + REOPEN_INTERVAL_S
        try:
            self.opened = self._open()
        except (RdmaUnavailableError, VerbsError) as error:
            if self.reason != str(error):
                log.debug("no RDMA: %s", error)
            self.reason = str(error)
            return False
        self.reason = ""
        log.info("RDMA through %s, GID %s", self.opened.port, self.opened.gid.address)
        return True

    def _open(self) -> Opened:
        options = self.options
        port = choose_port(self._ports(), device=options.device, number=options.port, local=self._local)
        gid = choose_gid(port, index=options.gid_index, local=self._local)
        if self._verbs is None:
            try:
                self._verbs = self._load()
            except RdmaUnavailableError:
                self._hopeless = True  # what is not installed now will not be imported by this process
                raise
        device = self._verbs.open(port.device)
        try:
            return Opened(device, port, gid, device.mtu_bytes(port.number))
        except BaseException:
            device.close()
            raise

    def vanished(self) -> bool:
        """Whether the device that is open is gone, or is waiting to go."""
        opened = self.opened
        return opened is not None and (opened.port.device not in self._names() or not opened.device.alive())

    def close(self, reason: str) -> None:
        """Close the device, of which nothing is open any more. It may be opened again."""
        opened, self.opened = self.opened, None
        self.reason = reason
        if opened is None:
            return
        try:
            opened.device.close()
        except VerbsError as error:
            log.warning("%s", error)

    def require(self) -> Opened:
        """The device in use; RefusedError when there is none."""
        if self.opened is None:
            raise RefusedError(Refusal.NO_RDMA, f"this daemon has no RDMA: {self.reason}")
        return self.opened

    def end(self, remote: IPv6Address, local: Address | None) -> tuple[Port, Gid]:
        """Port and GID of the open device that can reach remote; as sysfs tells now, because addresses change.

        RdmaUnavailableError when there are none.
        """
        opened = self.require()
        options = self.options
        number = options.port or (opened.port.number if local is None else None)
        local = local or self._local
        port = choose_port(self._ports(), device=opened.port.device, number=number, local=local)
        return port, choose_gid(port, index=options.gid_index, local=local, remote=remote)

    @property
    def link_layer(self) -> str | None:
        """Of the port in use; None without RDMA."""
        return None if self.opened is None else str(self.opened.port.link_layer)
