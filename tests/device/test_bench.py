"""`infiniswap bench` against daemons: figures and words, and whatever happens the memory goes back."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from infiniswap.shared.errors import ExitCode
from tests.support.services import INFINISWAP, Daemon, Services
from tests.support.waiting import wait_for

QUICK = ("--seconds", "0.2", "--memory", "16MiB")


def leases(daemon: Daemon) -> int:
    """Held at the daemon."""
    return int(daemon.get("/v1/stats")["leases"])


def test_a_peer_and_a_disk(services: Services, tmp_path: Path) -> None:
    """Every place has figures, a sentence compares them, and nothing is held or left afterwards."""
    daemon = services.daemon("64MiB")
    options = ["--peer", daemon.address, "--disk", str(tmp_path), "--backup", str(tmp_path), *QUICK]
    done = services.command("bench", *options, "--json", timeout_s=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [place["kind"] for place in found["places"]] == ["peer", "backup", "disk"]
    for place in found["places"]:
        assert 0 < place["one"]["p50_us"] <= place["one"]["p99_us"]
        assert place["many"]["reads_s"] > 0
    assert found["places"][0]["name"] == daemon.address
    assert found["floor"]["p50_us"] > 0
    assert f"{daemon.address} is this host: that tells of its processors, and nothing of a network." in found["verdict"]
    assert leases(daemon) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_peer_without_room(services: Services) -> None:
    """It says how much there is, other peers are measured, and the exit code tells."""
    small, large = services.daemon("8MiB"), services.daemon("64MiB")
    peers = ["--peer", small.address, "--peer", large.address]
    done = services.command("bench", *peers, "--disk", "none", *QUICK, timeout_s=60)
    assert done.returncode == ExitCode.RESOURCES
    wanted = f"infiniswap: {small.address} lends 8MiB of the 16MiB wanted for a while; try a smaller --memory\n"
    assert done.stderr == wanted
    assert large.address in done.stdout
    assert "No disk was measured that it could be compared with." in done.stdout
    assert leases(small) == leases(large) == 0


def test_nobody_there(services: Services) -> None:
    """One line, and the code for it."""
    done = services.command("bench", "--peer", "127.0.0.1:9", "--disk", "none", *QUICK, timeout_s=60)
    assert done.returncode == ExitCode.UNREACHABLE
    nothing, said = done.stderr.splitlines()
    assert nothing == "nothing could be measured"
    assert said.startswith("infiniswap: 127.0.0.1:9 cannot be reached: ")
    assert done.stdout == "\n".join(["", "No peer was measured: nothing can be said of remote memory.", ""])


def test_ctrl_c_gives_the_memory_back(services: Services) -> None:
    """In the middle of a long measurement; the daemon lends again at once."""
    daemon = services.daemon("64MiB")
    options = ["--peer", daemon.address, "--disk", "none", "--memory", "16MiB", "--seconds", "600"]
    bench = services.spawn("bench", [*INFINISWAP, "bench", *options])
    bench.expected_code = 130
    wait_for(lambda: leases(daemon) == 1, what="a lease of the bench")
    assert bench.stop(number=signal.SIGINT) == 130
    assert leases(daemon) == 0


def test_a_daemon_that_is_killed(services: Services) -> None:
    """The bench ends by itself, and says that the peer was not there for it."""
    daemon = services.daemon("64MiB")
    options = ["--peer", daemon.address, "--disk", "none", "--memory", "16MiB", "--seconds", "1"]
    bench = services.spawn("bench", [*INFINISWAP, "bench", *options])
    wait_for(lambda: daemon.get("/v1/stats")["slabs"] == 4, what="slabs of the bench")
    daemon.kill()
    bench.expected_code = bench.wait(60)
    assert bench.expected_code in (ExitCode.FAILED, ExitCode.RESOURCES, ExitCode.UNREACHABLE)
    assert f"infiniswap: {daemon.address} " in bench.log
