"""Page-ins from one peer, through a device of their own: short-lived, bounded, with a lease that is given back.

The device is a real one, with engine, checksums and transports, because that is what a page-in goes through; a loop in
C asks it over its socket. What pages that go nowhere take through the same device is measured beside it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from infiniswap.device.bench.reading import ONE, StoppedError, both, figures, shuffled
from infiniswap.device.config import load_config
from infiniswap.device.device import Device
from infiniswap.device.peer import Peer
from infiniswap.device.reach import beyond
from infiniswap.device.serve import start_device
from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.engine.measure import StopFlag, measure_nbd
from infiniswap.identity.files import TlsPaths
from infiniswap.nbd.client import NbdClient, connect
from infiniswap.policy.worth import Figures, Kind, Place
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.host_names import look_up
from infiniswap.shared.sizes import format_size

Value = TypeVar("Value")
SLAB_BYTES = 4 << 20
CONNECT_TIMEOUT_S = 5.0
MAP_TIMEOUT_S = 20.0
LOOK_S = 0.05
BLOCK_BYTES = 1 << 20
REMOTE_SHARE_MIN = 0.9  # of the reads; the device asks its backup beside a peer that is late (hedging)


@dataclass(frozen=True, slots=True)
class FromPeer:
    """What was measured of a peer, and of this host's own part in that."""

    place: Place
    floor: Figures
    rdma_error: str  # why it was not RDMA, where it was asked for and is not


class PeerBench:
    """Measures one peer after the other."""

    def __init__(
        self,
        folder: Path,
        size_bytes: int,
        seconds: float,
        stop: StopFlag,
        clock: Clock,
        tls: TlsPaths | None,
        *,
        insecure: bool = False,
    ) -> None:
        """folder: for the devices' files, with a short path; size_bytes: to be borrowed, a multiple of SLAB_BYTES.

        tls: this host's certificate, for daemons that want one. insecure: none is needed, whoever the peers are.
        """
        known = {} if tls is None else asdict(tls)
        self._tls: dict[str, object] = {f"tls_{name}": str(path) for name, path in known.items() if path is not None}
        self._tls["insecure"] = insecure
        self._folder = folder
        self._size_bytes = size_bytes
        self._seconds = seconds
        self._stop = stop
        self._clock = clock
        self._rng = Random()
        self._count = 0

    async def measure(self, address: HostPort, transport: str) -> FromPeer:
        """Page-ins from the peer, by this transport (as --transport). UserError, StoppedError."""
        self._count += 1
        name = f"bench-{os.getpid()}-{self._count}"
        found = await beyond((address,))
        given: dict[str, object] = {
            "encrypt": bool(found.beyond or found.unknown),  # as it is unless somebody says otherwise
            "size": self._size_bytes,
            "slab_size": SLAB_BYTES,
            "backup": str(self._folder / f"{name}.img"),
            "sparse": True,
            "peers": [str(address)],
            "transport": transport,
            "map": "eager",
            "state_dir": str(self._folder / "state"),
            "runtime_dir": str(self._folder / "run"),
            **self._tls,
        }
        async with AsyncExitStack() as cleanup:
            device = await start_device(load_config(name, given), cleanup, clock=self._clock)
            try:
                return await self._measure(device, address)
            finally:
                await device.stop()  # gives the lease back

    async def _measure(self, device: Device, address: HostPort) -> FromPeer:
        peer = device.peers.all[0]
        await self._until(lambda: peer.takes_slabs, CONNECT_TIMEOUT_S)
        if not peer.takes_slabs:
            why = peer.last_error or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            raise UserError(f"{address} cannot be reached: {why}", ExitCode.UNREACHABLE)
        offsets = shuffled(self._size_bytes // PAGE_BYTES, self._rng)
        floor = await self._read(device, partial(figures, measure_nbd, depth=ONE), offsets)  # nothing was written yet
        await self._fill(device)
        await self._until(lambda: _mapped_or_refused(device), MAP_TIMEOUT_S)
        if (mapped := device.metrics.mapped_slabs()) < device.config.slabs:
            raise UserError(self._refused(peer, address, mapped * SLAB_BYTES), ExitCode.RESOURCES)
        await self._fill(device)  # now to where the slabs are
        before = device.metrics.counters()
        if device.metrics.mapped_slabs() < device.config.slabs:
            raise UserError(f"{address} was lost meanwhile: {peer.last_error}", ExitCode.UNREACHABLE)
        one, many = await self._read(device, partial(both, measure_nbd), offsets)
        now = device.metrics.counters()
        self._check(address, {name: now[name] - before[name] for name in now})
        way = (peer.transport or "?").upper()
        place = Place(Kind.PEER, str(address), way, one, many, here=await _is_here(address))
        return FromPeer(place, floor, peer.rdma_error)

    def _refused(self, peer: Peer, address: HostPort, lent_bytes: int) -> str:
        wanted = format_size(self._size_bytes)
        if peer.lease is None:
            return f"{address} was lost meanwhile: {peer.last_error}"
        return f"{address} lends {format_size(lent_bytes)} of the {wanted} wanted for a while; try a smaller --memory"

    @staticmethod
    def _check(address: HostPort, counted: dict[str, int]) -> None:
        reads = {name: count for name, count in counted.items() if name.startswith("reads_")}
        total = sum(reads.values())
        if not total or reads["reads_remote_pages"] < REMOTE_SHARE_MIN * total:
            share = 100 * reads["reads_remote_pages"] / max(total, 1)
            raise UserError(f"{address} answered only {share:.0f} % of the page-ins itself; try again", ExitCode.FAILED)

    async def _read(self, device: Device, measure: Callable[..., Value], offsets: list[int]) -> Value:
        sock, _ = await connect(str(device.config.socket_path), device.config.name, CONNECT_TIMEOUT_S)
        with sock:
            sock.setblocking(True)
            reading = partial(measure, fd=sock.fileno(), offsets=offsets, seconds=self._seconds, stop=self._stop)
            try:
                return await asyncio.to_thread(reading)
            except OSError as error:
                raise UserError(f"the measurement failed: {error.strerror}", ExitCode.FAILED) from None

    async def _fill(self, device: Device) -> None:
        await asyncio.to_thread(self._write, str(device.config.socket_path), device.config.name)

    def _write(self, path: str, name: str) -> None:
        """Every page, with data that no backup can make less of, until nothing of it is only on its way."""
        block = os.urandom(BLOCK_BYTES)
        with NbdClient(path, name, MAP_TIMEOUT_S) as client:
            for at in range(0, self._size_bytes, BLOCK_BYTES):
                if self._stop.is_set():
                    raise StoppedError
                client.write(at, block)
            client.flush()

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        end_s = self._clock() + timeout_s
        while not condition() and self._clock() < end_s:
            if self._stop.is_set():
                raise StoppedError
            await asyncio.sleep(LOOK_S)


def _mapped_or_refused(device: Device) -> bool:
    """All slabs have memory, or the peer has said that there is no more."""
    counts = device.mapper.counts
    return device.metrics.mapped_slabs() == device.config.slabs or counts.refused + counts.no_room > 0


async def _is_here(address: HostPort) -> bool:
    """Whether no network is on the way."""
    try:
        found = await look_up(*address)
    except OSError:
        return False
    return all(ipaddress.ip_address(target[0].partition("%")[0]).is_loopback for _, target in found)
