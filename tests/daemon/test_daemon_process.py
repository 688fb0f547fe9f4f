"""infiniswapd as a command: one ready line, an orderly end, and one clear line with its exit code for each mistake."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infiniswap.daemon.arena import huge_page_bytes
from infiniswap.daemon.monitor import HostReader
from tests.support.services import Services
from tests.support.waiting import wait_for

MIB = 1 << 20


def infiniswapd(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-c", "from infiniswap.daemon.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_ready_serves_and_ends(services: Services, number: int) -> None:
    """One line with the port that was chosen, an answer there, exit code 0 and nothing on stderr."""
    daemon = services.daemon()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", daemon.url)
    with urllib.request.urlopen(daemon.url + "/v1/health", timeout=10) as answer:
        assert answer.status == 200
    assert daemon.stop(number=number) == 0
    assert daemon.process.stdout is not None
    assert daemon.process.stdout.read() == b""
    told = [line for line in daemon.log.splitlines() if "the daemon stood still for" not in line]  # as this machine may
    assert told == []


def test_the_incarnation_changes_with_each_start(services: Services) -> None:
    """A device can tell that the daemon it comes back to has lost its memory."""
    seen = set()
    for _ in range(2):
        daemon = services.daemon()
        with urllib.request.urlopen(daemon.url + "/v1/health", timeout=10) as answer:
            seen.add(answer.read().partition(b'"incarnation": "')[2][:32])
    assert len(seen) == 2


def test_the_port_is_free_after_a_stop(services: Services) -> None:
    """Restarting on the same ports works at once."""
    daemon = services.daemon()
    address = daemon.url.removeprefix("http://")
    daemon.stop()
    daemon = services.daemon("64MiB", "--listen", address)
    assert daemon.url == "http://" + address


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--memory is missing"),
        (["--memory", "lots"], 2, "--memory: size 'lots'"),
        (["--memory", "0"], 2, "must be a positive multiple of 1048576 bytes"),
        (["--memory", "1000001"], 2, "must be a positive multiple of 1048576 bytes"),
        (["--memory", "900TiB"], 6, "is more than the .* that this host has"),
        (["--memory", "1MiB", "--headroom", "900TiB"], 2, "leaves nothing of this host's"),
        (["--memory", "1MiB", "--listen", "7401"], 2, "is not HOST:PORT"),
        (["--memory", "1MiB", "--listen", "no-such-host.invalid:0"], 2, "no-such-host.invalid:0: no such address"),
        (["--memory", "1MiB", "--insecure", "--listen", "192.0.2.1:0"], 6, "192.0.2.1:0: .* there: Cannot assign"),
        (["--memory", "1MiB", "--listen", "0.0.0.0:0"], 5, "other hosts reach 0.0.0.0:0, and there is no certificate"),
        (
            ["--memory", "1MiB", "--data-listen", "[::]:0"],
            5,
            r"other hosts reach \[::\]:0, and there is no certificate",
        ),
        (["--memory", "1MiB", "--insecure", "--tls-ca", "/x"], 2, "and --tls-ca is given: leave one away"),
        (["--memory", "1MiB", "--insecure", "--data-listen", "192.0.2.1:0"], 6, "cannot listen there"),
        (["--memory", "1MiB", "--lease-ttl-s", "0"], 2, "--lease-ttl-s 0 must be between 1 and 86400"),
        (["--memory", "1MiB", "--threads", "no"], 2, "--threads 'no' is not a number"),
        (["--memory", "1MiB", "--log-level", "no"], 2, "--log-level must be one of"),
        (["--memory", "1MiB", "--config", "/nonexistent.toml"], 3, "does not exist"),
        (["--memory"], 2, "requires an argument"),
        (["--memory", "1MiB", "--frobnicate"], 2, "No such option"),
        (["--memory", "1MiB", "extra"], 2, "unexpected extra argument"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, message: str) -> None:
    """What is wrong and what to do, on stderr, with the documented exit code and nothing on stdout."""
    if "--listen" not in arguments:
        arguments = [*arguments, "--listen", "127.0.0.1:0"] if arguments != ["--memory"] else arguments
    done = infiniswapd(*arguments)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("infiniswapd: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--listen", "--data-listen"])
def test_a_port_in_use(taken_port: int, option: str) -> None:
    """The line names the address; exit code 4."""
    arguments = ["--memory", "1MiB", "--listen", "127.0.0.1:0", option, f"127.0.0.1:{taken_port}"]
    done = infiniswapd(*arguments)
    assert done.returncode == 4
    assert done.stderr == f"infiniswapd: 127.0.0.1:{taken_port}: cannot listen there: Address already in use\n"


def test_more_huge_pages_than_there_are() -> None:
    """The line says how to reserve them; exit code 6."""
    size = huge_page_bytes()
    free = int(Path(f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/free_hugepages").read_text())
    memory = (free + 1) * size
    assert memory < psutil.virtual_memory().total
    done = infiniswapd("--memory", str(memory), "--huge-pages", "--listen", "127.0.0.1:0")
    assert done.returncode == 6
    assert "sysctl vm.nr_hugepages=" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_host_that_cannot_spare_it_is_told(services: Services) -> None:
    """More than the headroom leaves is no error, but the log says so and the offer is smaller."""
    services.expect_log("this host can spare only 0B")
    headroom = psutil.virtual_memory().total - (1 << 20)
    daemon = services.daemon("16MiB", "--headroom", str(headroom))
    with urllib.request.urlopen(daemon.url + "/v1/offer", timeout=10) as answer:
        assert b'"free_bytes": 0' in answer.read()
    assert "can spare only 0B of the 16MiB" in daemon.log


@pytest.mark.parametrize("memory", ["auto", "25%"])
def test_memory_as_a_share_of_the_host(services: Services, memory: str) -> None:
    """auto is all memory of the host less its headroom, a share is of all memory; nothing of it is taken yet."""
    total = HostReader(keep_open=False)().total_bytes
    headroom = total // 2
    daemon = services.daemon(memory, "--headroom", str(headroom))
    figures = daemon.get("/v1/stats")["memory"]
    expected = total - headroom if memory == "auto" else total // 4
    assert expected - 64 * MIB < figures["limit_bytes"] <= expected
    assert figures["occupied_bytes"] == 0


def test_the_configuration_file(services: Services, tmp_path: Path) -> None:
    """Everything can come from the file; the command line wins."""
    file = tmp_path / "daemon.toml"
    file.write_text('memory = "4MiB"\nlisten = "127.0.0.1:0"\nheadroom = 0\nlog_level = "debug"\n')
    daemon = services.daemon("8MiB", "--config", str(file))
    with urllib.request.urlopen(daemon.url + "/v1/offer", timeout=10) as answer:
        assert b'"total_bytes": 8388608' in answer.read()
    assert "lending 8MiB of memory" in daemon.log


def test_help_names_every_option_and_exit_code() -> None:
    """--help is complete and --version answers."""
    shown = infiniswapd("--help")
    assert shown.returncode == 0
    for word in (
        "--memory", "--listen", "--data-listen", "--headroom", "--huge-pages", "--lease-ttl-s", "--threads", "--config",
        "--stop-timeout-s", "--operators", "--log-level", "--version", "Exit codes",
    ):  # fmt: skip
        assert word in shown.stdout
    assert infiniswapd("--version").stdout.startswith("infiniswapd, version ")


def alive(process: psutil.Process) -> bool:
    """Whether it runs: who has ended and was not waited for does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_memory_is_the_hosts_again_after_kill(services: Services) -> None:
    """kill -9 of the daemon leaves nothing behind: no file, no process, no port."""
    daemon = services.daemon()
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    assert len(children) == 16, "the fuses"
    host, port = daemon.url.removeprefix("http://").split(":")
    daemon.kill()

    def free() -> bool:
        with contextlib.suppress(OSError):
            socket.create_server((host, int(port))).close()
            return True
        return False

    wait_for(free, what="the port being free")
    wait_for(lambda: not any(map(alive, children)), what="the end of the fuses")
