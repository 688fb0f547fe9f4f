"""Inside the machine: sets every contender up once, measures them in turns, writes tables and JSON.

    python -m scripts.benchmark.vm.guest --address ADDRESS --folder DIR --output DIR [--rounds N] [--runtime-s S]

An RDMA port with that IPv4 address has to be there. For a machine that is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infiniswap.rdma.devices import list_ports
from infiniswap.rdma.path import RdmaUnavailableError, choose_gid, choose_port
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import fio, machine
from scripts.benchmark.accounting import busy_seconds
from scripts.benchmark.contenders import Contender, Nbdkit, Setting, file_target
from scripts.benchmark.processes import Programs
from scripts.benchmark.vm import load, nvme, perftest, results
from scripts.benchmark.vm.device import Counts, VmDevice
from scripts.benchmark.vm.results import ENGINE, KERNEL, READ_LATENCY, SOCKET, WORKLOADS, Row, Sample
from scripts.benchmark.workload import Workload

SIZE_BYTES = 64 << 20
SLAB_BYTES = 8 << 20
# Write-behind begins at a quarter of it (infiniswap/engine/src/backup/writeback.c): never, with all pages pending.
PENDING_LIMIT_BYTES = 5 * SIZE_BYTES
ROUNDS_MAX = 20
RUNTIME_S_MAX = 60.0
IDLE_S = 3.0
# The device's default is made for real networks; emulated, a completion takes longer than that and would be slept for.
RDMA_POLL_US = 1000
MIB = 1 << 20


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the tables and what fio does for it; device: whose counts tell about the way to its daemon."""

    row: Row
    target: list[str]
    device: VmDevice | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """What contenders are told: the address of the RDMA port, and how long the device polls for completions."""

    address: str
    rdma_poll_us: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done, and where: endpoint for perftest, programs start everything."""

    rounds: int
    runtime_s: float
    programs: Programs
    endpoint: perftest.Endpoint


def find_endpoint(address: str) -> perftest.Endpoint:
    """The RDMA port with that address. UserError when there is none."""
    wanted = ipaddress.IPv4Address(address)
    try:
        port = choose_port(list_ports(), local=wanted)
        gid = choose_gid(port, local=wanted)
    except RdmaUnavailableError as error:
        raise UserError(str(error), ExitCode.NOT_FOUND) from None
    if gid.address.ipv4_mapped != wanted:
        raise UserError(f"no RDMA port has address {address}", ExitCode.NOT_FOUND)
    return perftest.Endpoint(port.device, gid.index, address)


def device_ways(setting: Setting, transport: str, where: Where, undo: ExitStack) -> list[Way]:
    """The device over transport: on its socket, and through the kernel's nbd."""
    device = VmDevice(setting, transport, where.address, where.rdma_poll_us)
    device.start()
    node = device.attach(undo)
    return [
        Way(results.device_row(transport, SOCKET), device.target(), device),
        Way(results.device_row(transport, KERNEL), file_target(node), device),
    ]


def nvme_ways(setting: Setting, transport: str, address: str, undo: ExitStack) -> list[Way]:
    """The kernel's NVMe over transport, to a RAM disk that all of them share."""
    nvme.load_modules(transport, setting.size_bytes)
    nvme.offer(transport, address)
    node = nvme.connect(transport, address, undo)
    fio.fill(file_target(node), setting.size_bytes)
    return [Way(_row(f"nvme-{transport}", KERNEL), file_target(node))]


def nbdkit_ways(setting: Setting) -> list[Way]:
    """Two hops of nbdkit."""
    contender: Contender = Nbdkit(setting)
    contender.start()
    return [Way(_row("nbdkit", SOCKET), contender.target())]


def _row(contender: str, access: str) -> Row:
    return next(row for row in results.ROWS if (row.contender, row.access) == (contender, access))


def set_up(setting: Setting, where: Where, undo: ExitStack, problems: list[str]) -> list[Way]:
    """All contenders; what cannot be set up is noted in problems, and the others are measured all the same."""
    makers: dict[str, Callable[[], list[Way]]] = {
        "infiniswap over RDMA": lambda: device_ways(setting, "rdma", where, undo),
        "infiniswap over TCP": lambda: device_ways(setting, "tcp", where, undo),
        "nvme-rdma": lambda: nvme_ways(setting, "rdma", where.address, undo),
        "nvme-tcp": lambda: nvme_ways(setting, "tcp", where.address, undo),
        "nbdkit": lambda: nbdkit_ways(setting),
    }
    ways: list[Way] = []
    for title, make in makers.items():
        say(f"Setting up: {title}")
        try:
            ways += make()
        except UserError as error:
            problems.append(f"{title}: {error}")
            say(f"  left out: {error}")
    return ways


def measure_floor(plan: Plan, workload: Workload, round_number: int) -> Iterator[Sample]:
    """What the RDMA port can do with messages of the same size."""
    where = (plan.programs, plan.endpoint)
    if workload is READ_LATENCY:
        for row, events in ((results.FLOOR, False), (results.FLOOR_EVENTS, True)):
            found = perftest.read_latency(*where, workload.block_bytes, plan.runtime_s, events=events)
            yield Sample(
                round_number,
                row.name,
                workload.name,
                mean_us=found.mean_us,
                p50_us=found.p50_us,
                p99_us=found.p99_us,
            )
        return
    tool = "ib_write_bw" if workload.writes else "ib_read_bw"
    rate = perftest.bandwidth_mib_per_s(*where, tool, workload.block_bytes, plan.runtime_s)
    yield Sample(round_number, results.FLOOR.name, workload.name, mib_per_s=rate)


def measure_way(plan: Plan, way: Way, workload: Workload, round_number: int) -> Iterator[Sample]:
    """One run of fio, and where the device tells, what its engine saw of it."""
    before = way.device.counts() if way.device else None
    done = load.measure(way.target, workload, SIZE_BYTES, plan.runtime_s, round_number)
    share = None
    if way.device and before:
        after = way.device.counts()
        share = None if workload.writes else after.remote_share(before)
        if way.row.access == SOCKET:
            yield engine_sample(way.device, workload, round_number, done, (before, after))
        if workload.writes:
            way.device.settle()
    yield Sample(
        round_number,
        way.row.name,
        workload.name,
        mib_per_s=done.mib_per_s,
        mean_us=done.mean_us,
        p50_us=done.p50_us,
        p99_us=done.p99_us,
        remote_share=share,
    )


def engine_sample(
    device: VmDevice, workload: Workload, round_number: int, done: load.Load, counts: tuple[Counts, Counts]
) -> Sample:
    """What travelled between the engine and its daemon during a run, by the device's counts before and after."""
    before, after = counts
    return Sample(
        round_number,
        results.device_row(device.transport, ENGINE).name,
        workload.name,
        mib_per_s=after.remote_bytes(before, written=workload.writes) / done.runtime_s / MIB,
        mean_us=None if workload.writes else after.mean_latency_us(before),
    )


def runs(plan: Plan, ways: Sequence[Way], workload: Workload, round_number: int) -> list[tuple[str, Iterator[Sample]]]:
    """What is to be done for a workload in a round: the floor, then all others; each round begins with another."""
    first = round_number % len(ways) if ways else 0
    found = [("perftest", measure_floor(plan, workload, round_number))]
    found += [(way.row.title, measure_way(plan, way, workload, round_number)) for way in (*ways[first:], *ways[:first])]
    return found


def measure_all(plan: Plan, ways: Sequence[Way], problems: list[str]) -> Iterator[Sample]:
    """Every workload in every round. What fails is noted in problems, and the rest is measured all the same."""
    for round_number, workload in itertools.product(range(plan.rounds), WORKLOADS):
        for title, samples in runs(plan, ways, workload, round_number):
            try:
                for sample in samples:
                    say(f"{workload.name}, round {round_number + 1} of {plan.rounds}: {shown(sample)}")
                    yield sample
            except UserError as error:
                problems.append(f"{title}, {workload.name}, round {round_number + 1}: {error}")
                say(f"  FAILED: {problems[-1]}")


def shown(sample: Sample) -> str:
    """A sample on one line."""
    parts = [sample.row]
    if sample.mean_us is not None:
        parts.append(f"mean {sample.mean_us:.1f} us")
    if sample.p50_us is not None:
        parts.append(f"p50 {sample.p50_us:.1f} us")
    if sample.mib_per_s is not None:
        parts.append(f"{sample.mib_per_s:.1f} MiB/s")
    return ", ".join(parts)


def busy_share(seconds: float) -> float:
    """Of the machine's CPU time, what is used during the next seconds."""
    busy_s, all_s = busy_seconds()
    time.sleep(seconds)
    busy_after_s, all_after_s = busy_seconds()
    return (busy_after_s - busy_s) / max(all_after_s - all_s, 1e-9)


def notes(plan: Plan, rdma_poll_us: int, took_s: float) -> list[str]:
    """How it was measured."""
    port = f"{plan.endpoint.device} (GID index {plan.endpoint.gid_index})"
    size, pending = SIZE_BYTES // MIB, PENDING_LIMIT_BYTES // MIB
    return [
        f"{plan.rounds} rounds of {plan.runtime_s:g} s, {os.cpu_count()} emulated cores, port {port}; {took_s:.0f} s.",
        f"Each contender holds {size} MiB; the device has one daemon, on the same port.",
        "Latencies are from submission to completion; the p50 of ib_read_lat is what it calls typical.",
        "The engine's own figures: the mean time from handing a read to the transport until it is noticed to be done;",
        "pages to and from the daemon by time. Both while fio loads the socket: NBD takes its part of the processors.",
        f"The device polls for completions up to {rdma_poll_us} us (--rdma-poll-us), ib_read_lat for ever.",
        "The backup is a sparse file in memory, and write-behind waits until after each run",
        f"(pending limit {pending} MiB): transports are compared, not disks.",
        "Kernel rows: libaio, O_DIRECT, queues as the kernel chooses; /dev/nbdN cuts 256 KiB into requests of 128 KiB.",
        "ib_write_bw and ib_read_bw keep 128 messages in flight on one queue pair.",
        "TCP has packets of 64 KiB here and no checksums, soft-RoCE packets of 4 KiB with a CRC: on a real network",
        "with a real RDMA port the two stand differently.",
    ]


def run(arguments: argparse.Namespace) -> int:
    """Everything; the exit code."""
    begun_s = time.monotonic()
    folder: Path = arguments.folder
    os.environ["INFINISWAP_RUNTIME_DIR"] = str(folder / "run")
    os.environ["INFINISWAP_STATE_DIR"] = str(folder / "state")
    endpoint = find_endpoint(arguments.address)
    problems: list[str] = []
    with Programs(folder, {}) as programs, ExitStack() as undo:
        setting = Setting(programs, folder, folder, SIZE_BYTES, SLAB_BYTES, PENDING_LIMIT_BYTES)
        plan = Plan(arguments.rounds, arguments.runtime_s, programs, endpoint)
        ways = set_up(setting, Where(arguments.address, arguments.rdma_poll_us), undo, problems)
        idle_share = busy_share(IDLE_S)
        say(f"Set up in {time.monotonic() - begun_s:.0f} s; idle, all of it takes {idle_share:.0%} of the processors")
        samples = list(measure_all(plan, ways, problems))
        about = machine.describe(folder)
    settings = {
        "rounds": plan.rounds,
        "runtime_s": plan.runtime_s,
        "size_bytes": SIZE_BYTES,
        "slab_bytes": SLAB_BYTES,
        "rdma_poll_us": arguments.rdma_poll_us,
        "pending_limit_bytes": PENDING_LIMIT_BYTES,
        "endpoint": f"{endpoint.device}, GID index {endpoint.gid_index}, {endpoint.address}",
        "idle_share": round(idle_share, 3),  # of the processors, taken by all contenders before anything is measured
        "took_s": round(time.monotonic() - begun_s, 1),
    }
    (arguments.output / "bench-vm.json").write_text(results.as_json(samples, problems, about, settings))
    report = results.text(samples, problems, notes(plan, arguments.rdma_poll_us, time.monotonic() - begun_s))
    (arguments.output / "bench-vm.md").write_text(report)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="guest", description="Measure inside the machine.")
    parser.add_argument("--address", required=True, help="IPv4 address of the RDMA port")
    parser.add_argument("--folder", type=Path, required=True, help="in memory: backups, sockets, logs")
    parser.add_argument("--output", type=Path, required=True, help="for bench-vm.json and bench-vm.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime-s", type=float, default=2.0)
    parser.add_argument("--rdma-poll-us", type=int, default=RDMA_POLL_US)
    arguments = parser.parse_args()
    try:
        if not 1 <= arguments.rounds <= ROUNDS_MAX or not 0.5 <= arguments.runtime_s <= RUNTIME_S_MAX:
            raise UserError(f"--rounds: 1 to {ROUNDS_MAX}; --runtime-s: 0.5 to {RUNTIME_S_MAX:g}")
        return run(arguments)
    except UserError as error:
        print(f"guest: {error}", file=sys.stderr)
        return int(error.code)


if __name__ == "__main__":
    sys.exit(main())
