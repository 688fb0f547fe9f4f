"""`infiniswap device verify` under a running device: what rotted is found and named, and left alone unless asked."""

from __future__ import annotations

import signal
import subprocess
from functools import partial

from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE_BYTES, Cluster, MakeCluster
from tests.faults.harm import rot_at_peer, rot_on_backup
from tests.support.load import PAGE_BYTES, content_of
from tests.support.services import INFINISWAP
from tests.support.waiting import wait_for


def verify(cluster: Cluster, *options: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    done = cluster.services.command("device", "verify", "vol", "--rate", "1GiB", *options, timeout_s=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether it has."""
    return process.poll() is not None


def test_rot_is_named_and_left_until_it_is_to_be_mended(make_cluster: MakeCluster, layout: str) -> None:
    """Found twice, for nothing was changed; with --repair mended, and then all copies are right."""
    cluster = make_cluster(1)
    cluster.fill()
    wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="nothing pending")
    right = f"vol: {PAGES} copies at peers and {PAGES} on the backup read: all of them right\n"
    assert verify(cluster) == (ExitCode.OK, right)
    rot_at_peer(cluster.daemons[0], content_of(10, 1))
    rot_on_backup(cluster.device.backup, SIZE_BYTES, 2000, content_of(2000, 1))
    slab = 2000 * PAGE_BYTES // cluster.device.get("/v1/status")["slab_bytes"]
    wrong = {"raw": "does not meet its checksum", "log": "cannot be read"}[layout]  # a log has checksums of its own
    lines = [
        f"  page 10 (slab 0): the copy at {cluster.daemons[0].address} does not meet its checksum",
        f"  page 2000 (slab {slab}): the backup's copy {wrong}",
    ]
    for _ in range(2):
        code, told = verify(cluster)
        assert code == ExitCode.FAILED
        assert told.splitlines()[1:3] == lines
        assert told.endswith("nothing was changed; --repair makes wrong copies anew from right ones\n")
    code, told = verify(cluster, "--repair")
    assert code == ExitCode.OK, told
    assert told.splitlines()[1:3] == lines
    assert "1 wrong in remote memory and made anew from the backup; 1 wrong on the backup and made anew" in told
    wait_for(lambda: verify(cluster) == (ExitCode.OK, right), what="all copies are there again")
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_beside_a_load(make_cluster: MakeCluster) -> None:
    """While pages are written all the time nothing is taken for wrong."""
    cluster = make_cluster(2)
    with cluster.load() as load:
        for _ in range(3):
            begun = subprocess.Popen(
                [*INFINISWAP, "device", "verify", "vol", "--rate", "1GiB"],
                env=cluster.services.environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            load.run(partial(has_ended, begun), 60)
            told, _ = begun.communicate(timeout=30)
            assert begun.returncode == ExitCode.OK, told
        load.check()


def test_ctrl_c_ends_it(make_cluster: MakeCluster) -> None:
    """The device goes on without it."""
    cluster = make_cluster(1)
    cluster.fill()
    wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="nothing pending")
    command = cluster.services.spawn("verify", [*INFINISWAP, "device", "verify", "vol", "--rate", "1MiB"])
    command.expected_code = 130
    wait_for(lambda: cluster.device.get("/v1/scrub")["state"] == "running", what="a verification")
    assert command.stop(number=signal.SIGINT) == 130
    wait_for(lambda: cluster.device.get("/v1/scrub")["state"] == "ended", what="the verification's end")
