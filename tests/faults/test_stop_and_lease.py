"""Ends under load that are no failures, and leases that run out: SIGTERM, a device that stood still, a second start."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import PAGES, SIZE, SIZE_BYTES, SLABS, MakeCluster
from tests.support.backups import read_backup
from tests.support.layouts import on_one_layout
from tests.support.lease import take_lease
from tests.support.load import PAGE_BYTES, content_of
from tests.support.rawclient import WRITE, RawClient, request
from tests.support.tools import fio_arguments
from tests.support.waiting import wait_for

TTL_S = "1"
LONGER_TTL_S = "3"  # where a lease has to be kept by the test itself
SLAB_BYTES = SIZE_BYTES // SLABS


def test_sigterm_under_load(make_cluster: MakeCluster) -> None:
    """SIGTERM in the middle of writes: exit code 0, leases given back, and every acknowledged write on the image."""
    cluster = make_cluster(2)
    cluster.fill()
    with cluster.load(seed=90, zero_share=0.1) as load:
        asked = False

        def stop() -> bool:
            nonlocal asked
            if not asked and load.counts.written_pages > 1500:
                asked = True
                cluster.device.process.terminate()
            return False

        load.run(stop)
        assert load.lost
    assert cluster.device.wait() == ExitCode.OK
    cluster.check_image()
    wait_for(lambda: all(d.get("/v1/stats")["leases"] == 0 for d in cluster.daemons), what="leases being given back")
    cluster.restart_device("--map", "never")
    with cluster.load() as again:
        again.check()


def test_sigterm_twice_with_much_pending(make_cluster: MakeCluster) -> None:
    """A stop with everything still pending writes it all, and no further SIGTERM or SIGINT cuts that short."""
    cluster = make_cluster(1, "--writeback-delay-ms", "60000")
    cluster.map_all()
    pages = PAGES // 2  # few enough that nothing is written before its time
    with cluster.load(read_share=0, zero_share=0, pages=range(pages)) as load:
        load.write_all()
    assert cluster.stats()["pending_bytes"] == pages * PAGE_BYTES
    for _ in range(20):
        cluster.device.process.send_signal(signal.SIGTERM)  # nothing, once it has ended
        cluster.device.process.send_signal(signal.SIGINT)
    assert cluster.device.wait() == ExitCode.OK
    cluster.check_image()


def test_stop_in_the_middle_of_a_request(make_cluster: MakeCluster) -> None:
    """A client that sent half of a WRITE when the device stops is cut off without an answer, so that it may retry."""
    cluster = make_cluster(1)
    cluster.fill()
    with RawClient(str(cluster.device.socket)).negotiate("vol") as client:
        before = cluster.stats()["counters"]["write_requests"]
        client.send(request(WRITE, 1, 0, 2 * PAGE_BYTES, payload=b"x" * (PAGE_BYTES + 100)))
        wait_for(lambda: cluster.stats()["counters"]["write_requests"] > before, what="the request being taken up")
        began_s = time.monotonic()
        cluster.device.process.terminate()
        assert client.receive_to_end() == b""
        assert cluster.device.wait() == ExitCode.OK
        assert time.monotonic() - began_s < 10
    assert read_backup(cluster.device.backup, SIZE_BYTES)[PAGE_BYTES : 2 * PAGE_BYTES] == content_of(1, 1)


def test_fio_meets_a_stop(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A client whose server stops gets an error or a closed connection at once, it does not hang."""
    cluster = make_cluster(1)
    options = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=60", "--do_verify=0"]
    with (tmp_path / "fio.log").open("w") as log:
        command = fio_arguments(cluster.device.uri, SIZE_BYTES, *options)
        fio = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            wait_for(lambda: cluster.stats()["counters"]["write_requests"] > 1000, what="fio writing")
            assert cluster.device.stop() == ExitCode.OK
            assert fio.wait(15) != 0
        finally:
            fio.kill()
            fio.wait()


def test_a_device_that_stood_still(make_cluster: MakeCluster) -> None:
    """A device that is silent beyond its lease loses its slabs, which another gets empty; it goes on, and right."""
    cluster = make_cluster(1, daemon_options=("--lease-ttl-s", LONGER_TTL_S, "--lease-grace-s", "0"))
    cluster.fill()
    (daemon,) = cluster.daemons
    with cluster.load(seed=91) as load:
        load.run(lambda: load.counts.written_pages > 1000)
        load.run(lambda: load.counts.written_pages > 2000, drain=False)  # stands still with requests in flight
        cluster.device.suspend()
        wait_for(lambda: daemon.get("/v1/stats")["leases"] == 0, what="the lease running out")
        wait_for(lambda: daemon.get("/v1/offer?slab_bytes=1048576")["used_bytes"] == 0, what="its memory being freed")
        other = take_lease(daemon, SIZE_BYTES, SLAB_BYTES)
        with other.kept(), other.connect() as stranger:
            assert stranger.read(0, SIZE_BYTES) == bytes(SIZE_BYTES)
            stranger.write(0, b"\xee" * SIZE_BYTES)
            cluster.device.resume()
            load.finish()
            load.run(lambda: load.counts.written_pages > 4000)
            load.check()
            assert stranger.read(0, SIZE_BYTES) == b"\xee" * SIZE_BYTES
        other.release()
        load.run(lambda: cluster.device.get("/v1/status")["mapped_slabs"] == SLABS, timeout_s=40)
        load.check()
    assert cluster.failures()["lost_pages"] == cluster.failures()["checksum_mismatches"] == 0
    assert cluster.peer(daemon)["state"] == "up"
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


@on_one_layout("raw", "Whose silence it was is told from clocks and peers, not from the backup.")
def test_a_pause_is_not_the_peers_silence(make_cluster: MakeCluster) -> None:
    """A device that stands still for longer than its peers' time-out (a paused machine) loses none of them for it."""
    cluster = make_cluster(2, "--peer-timeout-ms", "2500", "--request-deadline-ms", "500")
    cluster.fill()
    with cluster.load(seed=92) as load:
        load.run(lambda: load.counts.written_pages > 500, drain=False)
        cluster.device.suspend()
        time.sleep(5)  # not to wait for anything: the pause is the point
        cluster.device.resume()
        load.finish()
        load.run(lambda: load.counts.written_pages > 1500)
        load.check()
    assert cluster.failures()["peers_lost"] == 0
    assert cluster.failures()["slabs_lost"] == 0


@on_one_layout("log", "A lease is between device and daemon: the backup has no part in it.")
def test_heartbeats_keep_a_busy_lease(make_cluster: MakeCluster) -> None:
    """Under load for several lifetimes of a lease, heartbeats keep it: nothing is lost or mapped anew."""
    cluster = make_cluster(1, daemon_options=("--lease-ttl-s", TTL_S))
    cluster.fill()
    (daemon,) = cluster.daemons
    before = daemon.get("/v1/stats")["counts"]
    began_s = cluster.device.get("/v1/status")["uptime_s"]
    with cluster.load(seed=92) as load:
        load.run(lambda: cluster.device.get("/v1/status")["uptime_s"] > began_s + 4 * float(TTL_S))
    assert cluster.failures()["peers_lost"] == 0
    assert cluster.stats()["mappings"] == SLABS
    assert daemon.get("/v1/stats")["counts"]["leases_expired"] == before["leases_expired"] == 0


def test_second_start_meets_the_first(make_cluster: MakeCluster) -> None:
    """While a device runs under load, a second start of it is refused and disturbs nothing."""
    cluster = make_cluster(1)
    cluster.fill()
    arguments = ["device", "serve", "vol", "--size", SIZE, "--backup", str(cluster.device.backup)]
    with cluster.load(seed=93) as load:
        load.run(lambda: load.counts.written_pages > 500)
        done = cluster.services.command(*arguments)
        assert done.returncode == ExitCode.IN_USE
        done = cluster.services.command(
            *[word.replace("vol", "other") if word == "vol" else word for word in arguments]
        )
        assert done.returncode == ExitCode.IN_USE  # the backup is
        load.run(lambda: load.counts.written_pages > 1000)
        load.check()
    assert cluster.failures()["peers_lost"] == 0
