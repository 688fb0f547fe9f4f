"""A host is taken out of service while its slabs are in use: all of them move away, and clients notice nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import SLABS, Cluster, MakeCluster
from tests.support.layouts import on_one_layout
from tests.support.pace import paced
from tests.support.services import INFINISWAP, Daemon
from tests.support.waiting import wait_for

LONG = ("--stop-timeout-s", "60")
COMMAND_TIMEOUT_S = 40.0


@contextmanager
def donor(cluster: Cluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An infiniswap donor command that runs meanwhile."""
    # Who runs the tests may have had SIGINT ignored, as shells do for what they put into the background.
    command = ["env", "--default-signal=INT", *INFINISWAP, "donor", *arguments]
    environment = cluster.services.environment
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status(daemon: Daemon) -> dict[str, Any]:
    """Of a daemon."""
    answer = daemon.get("/v1/status")
    assert isinstance(answer, dict)
    return answer


def check_no_harm(cluster: Cluster) -> None:
    """No client got an error, no page was lost."""
    failures = cluster.failures()
    assert failures["request_errors"] == failures["lost_pages"] == failures["checksum_mismatches"] == 0


def test_drained_under_load(make_cluster: MakeCluster) -> None:
    """The daemon with hot slabs is drained and stops by itself; they are on the other one, and every byte is right."""
    cluster = make_cluster(2)
    first, second = cluster.daemons
    cluster.fill()
    held = status(first)["leases"][0]["slabs"]
    assert held
    with cluster.load(seed=51) as load, donor(cluster, "drain", first.address, "--stop", "--json") as drain:
        load.run(lambda: drain.poll() is not None, timeout_s=COMMAND_TIMEOUT_S)
        out, err = drain.communicate()
        assert (drain.returncode, err) == (ExitCode.OK, "")
        done = json.loads(out)["drain"]
        assert (done["state"], done["left"], done["forced"]) == ("done", 0, [])
        assert done["moved"] == done["slabs"] >= held
        load.run(lambda: not first.running, timeout_s=COMMAND_TIMEOUT_S)
        assert first.wait() == ExitCode.OK
        load.run(lambda: len(cluster.stats()) and cluster.peer(second)["slabs"] == SLABS)
        load.check()
    check_no_harm(cluster)
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_stopped_under_load(make_cluster: MakeCluster) -> None:
    """SIGTERM does the same within --stop-timeout-s, says so, and ends with 0."""
    cluster = make_cluster(2, daemon_options=LONG)
    first, second = cluster.daemons
    cluster.fill()
    with cluster.load(seed=52) as load:
        load.run(lambda: load.counts.written_pages > 500)
        first.process.send_signal(signal.SIGTERM)
        load.run(lambda: not first.running, timeout_s=COMMAND_TIMEOUT_S)
        assert first.wait() == ExitCode.OK
        load.run(lambda: cluster.peer(second)["slabs"] == SLABS)
        load.check()
    assert re.search(r"^infiniswapd: \d+ slabs are moved away before the stop, within 60 s; ", first.log, re.MULTILINE)
    assert "by force" not in first.log
    assert "still lent" not in first.log
    check_no_harm(cluster)
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


@on_one_layout("raw", "Which daemon gets slabs is no matter of the backup; drains under load are tried on both.")
def test_cordoned(make_cluster: MakeCluster) -> None:
    """A cordoned daemon gets no new slabs, keeps those that it has, and gets some again after uncordon."""
    cluster = make_cluster(2)
    first, second = cluster.daemons
    command = cluster.services.command
    done = command("donor", "cordon", first.address)
    assert (done.returncode, done.stdout) == (0, f"{first.address} cordoned; 0 slabs of 1 leases are lent\n")
    wait_for(lambda: cluster.peer(first)["lending"] == "cordoned", what="the device hearing of it")
    cluster.map_all()
    assert (cluster.peer(first)["slabs"], cluster.peer(second)["slabs"]) == (0, SLABS)
    done = command("donor", "drain", second.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.peer(second)["slabs"] == 0
    wait_for(lambda: cluster.peer(second)["lending"] == "draining", what="the device hearing of it")
    shown = command("peers", "vol", "-n", "-o", "peer,lending").stdout.split()
    assert shown == [first.address, "cordoned", second.address, "draining"]
    done = command("donor", "uncordon", first.address)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{first.address} lending; ")
    wait_for(lambda: cluster.peer(first)["lending"] == "lending", what="the device hearing of it")
    with cluster.load(seed=53) as load:
        load.run(lambda: cluster.peer(first)["slabs"], timeout_s=COMMAND_TIMEOUT_S)
        load.check()
    assert cluster.peer(second)["slabs"] == 0


def test_a_device_that_does_not_answer(make_cluster: MakeCluster) -> None:
    """Its slabs are taken at the deadline, not before; it is named; and it loses nothing."""
    cluster = make_cluster(1)
    (daemon,) = cluster.daemons
    cluster.fill()
    with cluster.device.suspended():
        with donor(cluster, "drain", daemon.address, "--deadline", "3s") as drain:
            wait_for(lambda: status(daemon)["drain"], what="the drain's beginning")
            assert status(daemon)["leases"][0]["slabs"] == SLABS
            out, _ = drain.communicate(timeout=paced(COMMAND_TIMEOUT_S))
            assert drain.returncode == ExitCode.OK
        assert out.splitlines()[0].startswith(
            f"{daemon.address} drained: 0 of {SLABS} slabs given back, {SLABS} taken by force, in "
        )
        assert out.splitlines()[1:] == [f"no answer in time, taken by force from: vol (127.0.0.1) {SLABS}"]
        assert status(daemon)["drain"]["elapsed_s"] >= 3
    with cluster.load(seed=54) as load:
        load.run(lambda: load.counts.written_pages > 1000)
        load.check()
    check_no_harm(cluster)
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


@on_one_layout("log", "Who waits for a drain is no matter of the backup.")
def test_waiting_interrupted_and_taken_up(make_cluster: MakeCluster) -> None:
    """Ctrl-C ends the waiting alone; another drain joins it, with a new deadline; uncordon ends it, the slabs stay."""
    cluster = make_cluster(1)
    (daemon,) = cluster.daemons
    cluster.map_all()
    with cluster.device.suspended():
        with donor(cluster, "drain", daemon.address) as drain:
            wait_for(lambda: status(daemon)["drain"], what="the drain's beginning")
            drain.send_signal(signal.SIGINT)
            _, err = drain.communicate(timeout=paced(COMMAND_TIMEOUT_S))
            assert drain.returncode == 130
            assert "the drain goes on" in err
        assert status(daemon)["state"] == "draining"
        with donor(cluster, "drain", daemon.address, "--deadline", "5m") as drain:
            wait_for(lambda: status(daemon)["drain"]["deadline_in_s"] <= 300, what="the second one's deadline")
            done = cluster.services.command("donor", "uncordon", daemon.address)
            assert f"lending; the drain ended with {SLABS} slabs left" in done.stdout
            _, err = drain.communicate(timeout=paced(COMMAND_TIMEOUT_S))
            assert drain.returncode == ExitCode.FAILED
            assert err == f"infiniswap: {daemon.address}: the drain was ended by uncordon with {SLABS} slabs left\n"
        assert status(daemon)["leases"][0]["slabs"] == SLABS


def test_a_second_signal_stops_at_once(make_cluster: MakeCluster) -> None:
    """Who cannot wait for a device that does not answer says so once more; the log tells what was still lent."""
    cluster = make_cluster(1, daemon_options=LONG)
    (daemon,) = cluster.daemons
    cluster.fill()
    with cluster.device.suspended():
        daemon.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "a second signal stops at once" in daemon.log, what="the stop's beginning")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait() == ExitCode.OK
    assert f"stopping with {SLABS} slabs still lent" in daemon.log
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_a_daemon_that_dies_while_it_is_drained(make_cluster: MakeCluster) -> None:
    """The command says what was still lent; exit code 7."""
    cluster = make_cluster(1)
    (daemon,) = cluster.daemons
    cluster.map_all()
    with cluster.device.suspended():
        with donor(cluster, "drain", daemon.address) as drain:
            wait_for(lambda: status(daemon)["drain"], what="the drain's beginning")
            daemon.kill()
            _, err = drain.communicate(timeout=paced(COMMAND_TIMEOUT_S))
            assert drain.returncode == ExitCode.UNREACHABLE
    said = rf"infiniswap: (the daemon went away while {SLABS} slabs were still lent: )?{daemon.address}:? .*\n"
    assert re.fullmatch(said, err)
