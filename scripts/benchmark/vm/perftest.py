"""The floor: perftest's ib_read_lat, ib_read_bw and ib_write_bw, client and server on one RDMA port.

Their tables are read by the names of the columns, which differ between versions and between modes.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.processes import Programs, need
from scripts.benchmark.swap.area import run

PORT = 18515  # perftest's own
START_TIMEOUT_S = 60.0
# Beyond the time that the transfers themselves take: perftest measures the processor's frequency for a second first.
SLACK_S = 120.0
# ib_read_lat takes a number of reads, not a duration; in an emulated machine one takes some 50 to 150 µs.
READS_PER_S = 10_000
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
# "#bytes", "t_avg[usec]", and the names that have a space inside: "BW average[MB/sec]", "99% percentile[usec]".
_COLUMN = re.compile(r"#\w+|(?:BW |[\d.]+% )?[\w.]+\[[^\]]*\]")
_SERVER_GRACE_S = 10.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where both ends are: an RDMA device, the index of the GID they use, the address where the server listens."""

    device: str
    gid_index: int
    address: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Of single reads, one after the other, in microseconds; p50_us is what perftest calls typical."""

    mean_us: float
    p50_us: float
    p99_us: float


def columns(output: str) -> dict[str, float]:
    """The last line of figures in output by the names in the heading above it.

    Raises ValueError when there is none, or when figures and names do not match.
    """
    names: list[str] = []
    found: dict[str, float] = {}
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["#bytes"]:
            names = _COLUMN.findall(line)
        elif names and words and words[0].isdigit():
            if len(words) != len(names):
                raise ValueError(f"{len(words)} figures under {len(names)} headings: {line.strip()!r}")
            found = dict(zip(names, map(float, words), strict=True))
    if not found:
        raise ValueError("no line of figures")
    return found


def parse_latency(output: str) -> Latency:
    """What ib_read_lat said; ValueError when it measured nothing."""
    found = columns(output)
    try:
        return Latency(found["t_avg[usec]"], found["t_typical[usec]"], found["99% percentile[usec]"])
    except KeyError as missing:
        raise ValueError(f"no column {missing}") from None


def parse_mib_per_s(output: str) -> float:
    """The average of ib_read_bw or ib_write_bw in MiB/s; ValueError when it measured nothing, or in other units."""
    found = columns(output)
    for unit in ("MiB/sec", "MB/sec"):  # both mean 2^20 bytes; older versions wrote the latter
        rate = found.get(f"BW average[{unit}]")
        if rate is not None and rate > 0:
            return rate
    raise ValueError(f"no bandwidth in MiB/s in {found}")


def listens(tables: Mapping[str, str], port: int) -> bool:
    """Whether somebody listens on port, from the texts of /proc/net/tcp and tcp6.

    Looking there disturbs nobody; a server of perftest takes the first connection for its client.
    """
    for text in tables.values():
        for line in text.splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def _tables() -> dict[str, str]:
    return {name: Path("/proc/net", name).read_text() for name in ("tcp", "tcp6") if Path("/proc/net", name).exists()}


def _pair(programs: Programs, endpoint: Endpoint, command: list[str], timeout_s: float) -> str:
    """Run command as server, and again as its client; what the client printed."""
    full = [need(command[0], "perftest"), *command[1:]]
    full += ["-d", endpoint.device, "-x", str(endpoint.gid_index), "-F", "-p", str(PORT)]
    with Programs(programs.folder, {}) as pair:
        server = pair.start(command[0], full)
        pair.wait_until(lambda: listens(_tables(), PORT), server, f"does not listen on port {PORT}", START_TIMEOUT_S)
        said = run([*full, endpoint.address], timeout_s)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the context ends it then
            server.process.wait(_SERVER_GRACE_S)
    return said


def _measured(
    programs: Programs, endpoint: Endpoint, command: list[str], runtime_s: float, parse: Callable[[str], Result]
) -> Result:
    said = _pair(programs, endpoint, command, SLACK_S + 10 * runtime_s)
    try:
        return parse(said)
    except ValueError as error:
        raise UserError(f"{' '.join(command)}: {error}", ExitCode.FAILED) from None


def read_latency(
    programs: Programs, endpoint: Endpoint, block_bytes: int, runtime_s: float, *, events: bool = False
) -> Latency:
    """One-sided READs one after the other; events: the client sleeps until a completion comes instead of polling."""
    reads = max(100, int(runtime_s * READS_PER_S))
    command = ["ib_read_lat", "-s", str(block_bytes), "-n", str(reads), *(["-e"] if events else [])]
    return _measured(programs, endpoint, command, runtime_s, parse_latency)


def bandwidth_mib_per_s(programs: Programs, endpoint: Endpoint, tool: str, block_bytes: int, runtime_s: float) -> float:
    """READs (ib_read_bw) or WRITEs (ib_write_bw) of block_bytes on one queue pair, 128 at a time."""
    command = [tool, "-s", str(block_bytes), "-D", str(max(1, round(runtime_s)))]
    return _measured(programs, endpoint, command, runtime_s, parse_mib_per_s)
