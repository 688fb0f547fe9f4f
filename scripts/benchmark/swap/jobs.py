"""Programs that need more memory than they get: each is started once in a control group, filled, and then measured."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.processes import Program, Programs, held, need
from scripts.benchmark.swap.area import run
from scripts.benchmark.swap.cgroup import Cgroup

PROGRAMS = Path(__file__).with_name("programs")
CLIENTS = 8
VALUE_BYTES = 1024
ITEM_BYTES = 1200  # what a value takes in memcached and redis with its key and its share of the tables
FILL_TIMEOUT_S = 300.0
ANSWER_SLACK_S = 120.0  # a machine that swaps to a hard disk is slow to come to an end
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Figures:
    """What a job did within a while; latencies of one operation."""

    operations: int
    seconds: float
    p50_us: float
    p99_us: float


class Job(ABC):
    """One program. start() fills its memory; measure() may be called again and again."""

    name: str
    title: str

    def __init__(self, programs: Programs, folder: Path, data_bytes: int) -> None:
        """folder: for sockets; data_bytes: roughly what the program is to hold. Nothing is started yet."""
        self.programs, self.folder, self.data_bytes = programs, folder, data_bytes
        self.program: Program | None = None

    @abstractmethod
    def start(self, group: Cgroup) -> None:
        """Start the program within group and fill it."""

    @abstractmethod
    def measure(self, seconds: float) -> Figures:
        """Run the load for about so long. UserError when an answer was wrong or did not come."""

    def resident_bytes(self) -> int:
        """Memory of the program that is not swapped out now."""
        assert self.program is not None
        fields = Path(f"/proc/{self.program.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """End the program at once: what it holds is not wanted any more."""
        if self.program is not None:
            self.program.process.kill()
            self.program.process.wait()


class Script(Job):
    """A program of ours that takes seconds on stdin and answers with figures."""

    def start(self, group: Cgroup) -> None:
        """Returns once it has filled its memory."""
        command = [sys.executable, str(PROGRAMS / f"{self.name}.py"), str(self.data_bytes >> 20)]
        with held():
            self.program = self.programs.start(self.name, group.command(command), stdin=subprocess.PIPE)
        if (said := self.program.line(FILL_TIMEOUT_S)) != "ready":
            raise self.program.failed(f"said '{said}' where 'ready' was expected")

    def measure(self, seconds: float) -> Figures:
        """Ask and wait for the answer."""
        assert self.program is not None
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(f"{seconds}\n".encode())
        self.program.process.stdin.flush()
        return figures_of(self.program.line(seconds + ANSWER_SLACK_S), self.title)


class Touch(Script):
    """Random pages of a large array: the time of a page fault itself."""

    name = "touch"
    title = "page faults (random 4 KiB)"


class Compute(Script):
    """numpy over a large array."""

    name = "compute"
    title = "numpy, blocks of 256 KiB"


class Server(Job):
    """A server on a UNIX socket."""

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / f"{self.name}.sock"

    @property
    def keys(self) -> int:
        """How many values it holds."""
        return self.data_bytes // ITEM_BYTES

    def serve(self, group: Cgroup, command: list[str]) -> None:
        """Start the server; returns when it accepts connections."""
        self.socket.unlink(missing_ok=True)
        with held():
            self.program = self.programs.start(self.name, group.command(command))
        self.programs.wait_for_socket(self.program, self.socket)


class Memcached(Server):
    """memcached under a closed loop of 95 % GET and 5 % SET on evenly drawn keys."""

    name = "memcached"
    title = "memcached, 95 % GET"

    def start(self, group: Cgroup) -> None:
        """Every key is set once."""
        command = [need("memcached", "memcached"), "-s", str(self.socket), "-m", str((self.data_bytes >> 20) * 2)]
        self.serve(group, [*command, "-t", "4", "-u", "root"])
        self._load("fill", FILL_TIMEOUT_S)

    def measure(self, seconds: float) -> Figures:
        """memcached_load, which checks every value."""
        return self._load(str(seconds), seconds + ANSWER_SLACK_S)

    def _load(self, what: str, timeout_s: float) -> Figures:
        load = str(self.folder / "memcached_load")
        sizes = [str(self.keys), str(VALUE_BYTES), str(CLIENTS)]
        return figures_of(run([load, str(self.socket), *sizes, what], timeout_s), self.title)


class Redis(Server):
    """redis-server under redis-benchmark: GET of evenly drawn keys."""

    name = "redis"
    title = "redis, GET (redis-benchmark)"

    def start(self, group: Cgroup) -> None:
        """Every key that redis-benchmark may draw is set once."""
        command = [need("redis-server", "redis-server"), "--port", "0", "--unixsocket", str(self.socket)]
        self.serve(group, [*command, "--save", "", "--appendonly", "no", "--daemonize", "no"])
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(FILL_TIMEOUT_S)
            sock.connect(str(self.socket))
            answers = sock.makefile("rb")
            for first in range(0, self.keys, _BATCH):
                numbers = range(first, min(first + _BATCH, self.keys))
                sock.sendall(b"".join(set_command(number) for number in numbers))
                for _ in numbers:
                    if answers.readline() != b"+OK\r\n":
                        raise UserError("redis-server did not take a value", ExitCode.FAILED)

    def measure(self, seconds: float) -> Figures:
        """redis-benchmark counts requests, not seconds: a short run tells how many the long one is to have."""
        requests = CLIENTS * 4
        while True:
            answer = self._benchmark(requests)
            if answer.seconds > seconds / 2:  # by its own clock: on a slow machine it takes longer to start than to run
                return answer
            requests = int(requests * min(10.0, seconds / max(answer.seconds, 0.05)))

    def _benchmark(self, requests: int) -> Figures:
        command = [need("redis-benchmark", "redis-tools"), "-s", str(self.socket), "-t", "get", "--csv"]
        command += ["-c", str(CLIENTS), "-r", str(self.keys), "-n", str(requests)]
        return redis_figures(run(command, FILL_TIMEOUT_S), requests)


def set_command(number: int) -> bytes:
    """SET of a key as redis-benchmark names it, in RESP (redis.io/docs/reference/protocol-spec)."""
    key = b"key:%012d" % number
    value = (key * (VALUE_BYTES // len(key) + 1))[:VALUE_BYTES]
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)


def redis_figures(text: str, requests: int) -> Figures:
    """From what redis-benchmark --csv prints: requests per second, latencies in milliseconds."""
    try:
        row = next(csv.DictReader(io.StringIO(text)))
        rate = float(row["rps"])
        return Figures(
            requests, requests / rate, float(row["p50_latency_ms"]) * 1000, float(row["p99_latency_ms"]) * 1000
        )
    except (StopIteration, KeyError, ValueError, ZeroDivisionError):
        raise UserError(f"redis-benchmark printed no figures: {text[:200]!r}", ExitCode.FAILED) from None


def figures_of(line: str, who: str) -> Figures:
    """From the JSON object that a load program prints."""
    try:
        found = json.loads(line)
        return Figures(
            int(found["operations"]), float(found["seconds"]), float(found["p50_us"]), float(found["p99_us"])
        )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{who}: no figures but {line[:200]!r}", ExitCode.FAILED) from None


JOBS: dict[str, type[Job]] = {job.name: job for job in (Touch, Memcached, Redis, Compute)}
