"""The whole bench: each peer by each transport, the backup, the local disk, one after the other; and what it means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from infiniswap.device.bench.disks import measure_backup, measure_disk
from infiniswap.device.bench.peers import FromPeer, PeerBench
from infiniswap.device.bench.reading import MANY, ONE
from infiniswap.engine.measure import StopFlag
from infiniswap.identity.files import TlsPaths
from infiniswap.policy.worth import Figures, Kind, Place, verdict
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock
from infiniswap.shared.errors import ExitCode, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured."""

    peers: tuple[HostPort, ...]
    transport: str  # auto: RDMA and TCP, where both ends have RDMA
    backup: Path | None
    disk: Path | None
    memory_bytes: int  # borrowed of each peer for a while, and as much of the local disk
    seconds: float  # of each of the two measurements of a place
    tls: TlsPaths | None = None  # this host's certificate; None: control in the clear
    insecure: bool = False  # also with other hosts


@dataclass(slots=True)
class Report:
    """What was found."""

    places: list[Place] = field(default_factory=list)
    floor: Figures | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    code: ExitCode = ExitCode.OK

    def words(self) -> list[str]:
        """What it means, a sentence each."""
        return verdict(self.places, self.floor, MANY)

    def as_json(self) -> dict[str, Any]:
        """For programs: times in microseconds, reads of a page a second, of ONE and of MANY at a time."""
        return {
            "depths": [ONE, MANY],
            "places": [asdict(place) for place in self.places],
            "floor": None if self.floor is None else asdict(self.floor),
            "problems": self.problems,
            "notes": self.notes,
            "verdict": self.words(),
        }


async def run(wanted: Wanted, folder: Path, stop: StopFlag, clock: Clock, tell: Callable[[str], None]) -> Report:
    """Measure all; what cannot be measured becomes a problem of the report. folder: for files of the bench's own.

    StoppedError when stop was set; what was borrowed has been given back then, too.
    """
    report = Report()
    size_bytes, seconds = wanted.memory_bytes, wanted.seconds
    bench = PeerBench(folder, size_bytes, seconds, stop, clock, wanted.tls, insecure=wanted.insecure)
    for address in wanted.peers:
        try:
            await _peer(bench, address, wanted.transport, report, tell)
        except UserError as error:
            _fail(report, error)
    try:
        if wanted.backup is not None:
            tell(f"reading from the backup {wanted.backup}")
            # In a thread: the loop must hear signals meanwhile.
            asked = asyncio.to_thread(measure_backup, wanted.backup, size_bytes, seconds, stop, Random())
            report.places.append(await asked)
    except UserError as error:
        _fail(report, error)
    try:
        if wanted.disk is not None:
            tell(f"reading from a file made in {wanted.disk}")
            asked = asyncio.to_thread(measure_disk, wanted.disk, Kind.DISK, size_bytes, seconds, stop, Random())
            report.places.append(await asked)
    except UserError as error:
        _fail(report, error)
    return report


async def _peer(
    bench: PeerBench, address: HostPort, transport: str, report: Report, tell: Callable[[str], None]
) -> None:
    tell(f"reading from {address}")
    found = await bench.measure(address, transport)
    _add(report, found)
    if transport == "auto" and found.place.way == "RDMA":
        tell(f"reading from {address} by TCP")
        _add(report, await bench.measure(address, "tcp"))
    elif transport == "auto":
        report.notes.append(f"{address} by RDMA: {found.rdma_error or 'not on both hosts'}")


def _add(report: Report, found: FromPeer) -> None:
    report.places.append(found.place)
    if report.floor is None or found.floor.p50_us < report.floor.p50_us:
        report.floor = found.floor


def _fail(report: Report, error: UserError) -> None:
    report.problems.append(str(error))
    report.code = report.code or error.code
