"""The backup fails, is full or slow: clients are told or wait, what is acknowledged stays, and it mends by itself."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest

from infiniswap.engine.log_binding import log_file_bytes
from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.faults.cluster import MIB, PAGES, SIZE, SIZE_BYTES, MakeCluster
from tests.faults.harm import LIMIT_BYTES, BrokenDisk
from tests.support.backups import read_backup
from tests.support.clock import SteadyClock
from tests.support.load import PAGE_BYTES, Ledger, Load, content_of
from tests.support.services import Device, Services
from tests.support.waiting import wait_for

PENDING_BYTES = MIB
RUN_TIMEOUT_S = 30.0
STANDSTILL_S = 1.5  # longer than the pause after an error of the backup
# A file system of its own in a mount namespace of its own, which ends with the process: nothing to clean up.
# Sizes of the file system and of the filler: a log takes half as much again as its device, and more.
TMPFS_MIB = {"raw": (24, 16), "log": (72, 64)}
EXT4_MIB = {"raw": (40, 28), "log": (104, 84)}
IN_TMPFS = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && fallocate -l "$3" "$2/filler" && shift 3 && exec "$@"'
IN_EXT4 = 'mount -o loop "$1" "$2" && fallocate -l "$3" "$2/filler" && shift 3 && exec "$@"'


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_failing_behind_remote_memory(make_cluster: MakeCluster, engine: str) -> None:
    """Writes to remote memory go on while the backup fails, FLUSH and FUA tell, and all is written once it works."""
    cluster = make_cluster(1, "--backup-engine", engine)
    cluster.fill()
    pages = range(PAGES // 2, PAGES // 2 + 300)  # beyond the limit; and some before it
    with cluster.load(read_share=0.3, zero_share=0, pages=pages) as load:
        with BrokenDisk(cluster.device):
            load.run(lambda: load.counts.written_pages > 2000)
            with pytest.raises(nbd.Error) as failure:
                load.flush()
            assert failure.value.errno == "ENOSPC"
            with cluster.device.connect() as client, pytest.raises(RequestError):
                client.write(
                    pages[5] * PAGE_BYTES, content_of(pages[5], cluster.ledger.next(pages[5], zero=False)), fua=True
                )
            load.run(lambda: load.counts.written_pages > 3000)
            load.check()
            assert cluster.failures()["backup_errors"] > 0
            wait_for(lambda: "the backup fails: File too large" in cluster.device.log, what="a line in the log")
        wait_for(lambda: cluster.stats()["pending_bytes"] == 0, what="everything being written")
        load.flush()
        load.check()
    assert cluster.failures()["lost_pages"] == 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_failing_without_remote_memory(make_cluster: MakeCluster, engine: str, layout: str) -> None:
    """Without peers a write that the backup refuses fails, its page keeps what it had, others are not touched."""
    cluster = make_cluster(0, "--backup-engine", engine)
    with cluster.load(read_share=0, zero_share=0) as load:
        load.write_all()
    good, bad = 10, LIMIT_BYTES // PAGE_BYTES + 10
    with cluster.device.connect() as client:
        with BrokenDisk(cluster.device):
            for _ in range(3):
                with pytest.raises(RequestError) as failure:
                    client.write(bad * PAGE_BYTES, content_of(bad, 2))
                assert failure.value.errno == errno.ENOSPC
            with pytest.raises(RequestError):
                client.write(bad * PAGE_BYTES + 17, b"part")
            if layout == "raw":
                client.write(good * PAGE_BYTES, content_of(good, 2))
            else:  # whatever is written goes to the log's end, which is in the bad part
                with pytest.raises(RequestError):
                    client.write(good * PAGE_BYTES, content_of(good, 2))
                assert client.read(good * PAGE_BYTES, PAGE_BYTES) == content_of(good, 1)
            client.flush()
            assert client.read(bad * PAGE_BYTES, PAGE_BYTES) == content_of(bad, 1)
        client.write(good * PAGE_BYTES, content_of(good, 2))
        assert client.read(good * PAGE_BYTES, PAGE_BYTES) == content_of(good, 2)
        client.write(bad * PAGE_BYTES, content_of(bad, 2))
        assert client.read(bad * PAGE_BYTES, 2 * PAGE_BYTES) == content_of(bad, 2) + content_of(bad + 1, 1)
    assert cluster.device.stop() == ExitCode.OK
    content = read_backup(cluster.device.backup, SIZE_BYTES)
    assert content[bad * PAGE_BYTES :][:PAGE_BYTES] == content_of(bad, 2)
    assert content[good * PAGE_BYTES :][:PAGE_BYTES] == content_of(good, 2)


def standstill(load: Load) -> Callable[[], bool]:
    """Until nothing was answered for STANDSTILL_S."""
    clock = SteadyClock()  # a machine that stands still is none
    last = (load.counts.answers, clock())

    def over() -> bool:
        nonlocal last
        if load.counts.answers != last[0]:
            last = (load.counts.answers, clock())
        return clock() - last[1] > STANDSTILL_S

    return over


def test_writers_wait_at_the_limit(make_cluster: MakeCluster) -> None:
    """With the backup at a standstill writers stop at the pending limit without an error, while reads go on as ever."""
    cluster = make_cluster(1, "--pending-limit", str(PENDING_BYTES))
    cluster.fill()
    limit_pages = PENDING_BYTES // PAGE_BYTES
    behind = range(LIMIT_BYTES // PAGE_BYTES, PAGES)
    with cluster.load(seed=60, read_share=0, zero_share=0, pages=behind, connections=1) as writer:
        with BrokenDisk(cluster.device):
            writer.run(standstill(writer), drain=False)
            stuck = writer.counts.written_pages
            assert cluster.stats()["pending_bytes"] > PENDING_BYTES // 2
            ledger = Ledger(PAGES)  # of pages that the writer does not touch
            ledger.acknowledged = ledger.sent = list(cluster.ledger.sent)
            with Load(cluster.device.uri, ledger, seed=61, read_share=1, pages=range(behind.start)) as reader:
                reader.run(lambda: reader.counts.read_pages > 20000)
            assert writer.counts.written_pages == stuck
            stats = cluster.stats()
            assert stats["reads"]["remote"] > 10000
            assert stats["counters"]["pending_peak_pages"] <= limit_pages
        writer.finish()
        writer.run(lambda: writer.counts.written_pages > stuck + 3000)
        writer.flush()
        writer.check()
    assert cluster.stats()["counters"]["pending_peak_pages"] <= limit_pages
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


def test_stop_while_failing(make_cluster: MakeCluster) -> None:
    """A stop that cannot write everything says so, exits with an error, and the next start has all of it."""
    cluster = make_cluster(1, "--stop-timeout-s", "1")
    cluster.fill()
    with cluster.load(seed=62) as load, BrokenDisk(cluster.device):
        load.run(lambda: load.counts.written_pages > 2000)
        code = cluster.device.stop()
    assert code == ExitCode.FAILED
    assert "did not reach the backup within 1 s; start the device again on this boot" in cluster.device.log
    (daemon,) = cluster.daemons
    assert daemon.get("/v1/offer")["leases"] == 1, "it is kept for the next start"
    cluster.device.expected_code = ExitCode.FAILED
    cluster.restart_device()
    with cluster.load() as load:
        load.check()
        load.flush()
    assert cluster.failures()["lost_pages"] == 0
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()


# ---- a file system that is really full ----


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, services: Services, layout: str, tmp_path: Path) -> tuple[str, ...]:
    """Command prefix: runs its arguments where the folder `disk` has few MiB and a filler takes most of them."""
    point = services.folder / "disk"
    point.mkdir()
    own = ["unshare", "--mount", "sh", "-c"]
    if request.param == "tmpfs":
        size, filler = TMPFS_MIB[layout]
        prefix = [*own, IN_TMPFS, "sh", f"{size}m", str(point), f"{filler}m"]
    else:
        image = tmp_path / "ext4"
        size, filler = EXT4_MIB[layout]
        with image.open("wb") as file:
            file.truncate(size * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image], check=True)
        prefix = [*own, IN_EXT4, "sh", str(image), str(point), f"{filler}m"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False, timeout=30)
    if probe.returncode:
        pytest.skip(
            f"no file system can be mounted here (the tests with a broken disk still run): {probe.stderr.strip()}"
        )
    return tuple(prefix)


def on_disk(device: Device, name: str) -> Path:
    """A file of the device's disk, seen from outside its mount namespace."""
    return Path(f"/proc/{device.pid}/root{device.backup.parent}/{name}")


def start_on(services: Services, prefix: tuple[str, ...], peers: list[str]) -> Device:
    """A sparse device on the small disk."""
    backup = services.folder / "disk" / "vol.img"
    options = ("--map", "eager", "--sparse", "--stop-timeout-s", "20")
    return services.device("vol", *options, size=SIZE, peers=peers, backup=backup, prefix=prefix)


def test_disk_full_without_remote_memory(services: Services, small_disk: tuple[str, ...]) -> None:
    """A full disk under a sparse backup: ENOSPC for writes, right data for reads, and on it goes with new space."""
    device = start_on(services, small_disk, [])
    ledger = Ledger(PAGES)
    with Load(device.uri, ledger, seed=70, read_share=0, zero_share=0, errors_allowed=True) as load:
        load.write_all()
        assert 0 < len(load.counts.errors) < PAGES // 16
        assert load.counts.written_pages > PAGES // 8
        assert all("No space left on device" in error for error in load.counts.errors)
        load.check()
        on_disk(device, "filler").unlink()
        load.counts.errors.clear()
        load.write_all()
        assert load.counts.errors == []
        load.flush()
        load.check()
        found = read_backup(on_disk(device, "vol.img"), SIZE_BYTES)
        ledger.check(lambda offset, length: found[offset : offset + length])
    assert device.stop() == ExitCode.OK


def test_disk_full_behind_remote_memory(services: Services, small_disk: tuple[str, ...]) -> None:
    """A full disk behind remote memory: writes are taken, FLUSH says ENOSPC, and with new space nothing is missing."""
    daemon = services.daemon(SIZE)
    device = start_on(services, small_disk, [daemon.address])
    ledger = Ledger(PAGES)
    with Load(device.uri, ledger, seed=71, read_share=0, zero_share=0, errors_allowed=True) as load:
        # Every slab is touched and mapped before the disk is full.
        with device.connect() as client:
            for offset in range(0, SIZE_BYTES, MIB):
                client.write_zeroes(offset + 1, 1)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == SIZE_BYTES // MIB, what="all slabs being mapped")
        load.write_all()
        assert load.counts.errors == []
        with pytest.raises(nbd.Error) as failure:
            load.flush()
        assert failure.value.errno == "ENOSPC"
        load.check()
        on_disk(device, "filler").unlink()
        wait_for(lambda: device.get("/v1/stats")["pending_bytes"] == 0, 20, "everything being written")
        load.flush()
        load.check()
        found = read_backup(on_disk(device, "vol.img"), SIZE_BYTES)
        ledger.check(lambda offset, length: found[offset : offset + length])
    assert device.stop() == ExitCode.OK


# ---- a slow disk ----


@pytest.fixture
def slow_file(short_path: Path, layout: str) -> Iterator[Path]:
    """A file for a backup whose writes and flushes each take 10 ms, by nbdkit's delay filter through FUSE."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no FUSE here; writers at the pending limit are tested all the same")
    point = short_path / "slow.img"
    point.touch()
    size_bytes = SIZE_BYTES if layout == "raw" else log_file_bytes(SIZE_BYTES)
    server = ["nbdkit", "--exit-with-parent", "-f", "--filter=delay", "memory", f"{size_bytes}", "delay-write=10ms"]
    command = ["nbdfuse", "--connections=1", str(point), "[", *server, "]"]
    with (short_path / "nbdfuse.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:

            def mounted() -> bool:
                assert process.poll() is None, (short_path / "nbdfuse.log").read_text()
                return point.stat().st_size == size_bytes

            wait_for(mounted, what="the slow file")
            yield point
        finally:
            subprocess.run(["umount", point], check=False)
            process.terminate()
            process.wait(20)


def test_slow_disk(make_cluster: MakeCluster, slow_file: Path) -> None:
    """A disk far slower than its writers bounds what is pending and slows them, but not the reads of remote pages."""
    options = ("--pending-limit", str(PENDING_BYTES), "--backup-depth", "2")
    cluster = make_cluster(1, *options, backup=slow_file)
    cluster.fill()
    written, read = range(PAGES // 2), range(PAGES // 2, PAGES)
    with cluster.load(seed=80, read_share=0, zero_share=0, pages=written) as writer:
        with cluster.load(seed=81, read_share=1, pages=read) as reader:
            end_s = time.monotonic() + RUN_TIMEOUT_S
            while reader.counts.read_pages < 30000 or writer.counts.written_pages < 1500:
                writer.step(end_s, 0)
                reader.step(end_s, 0)
            reader.finish()
            assert cluster.stats()["counters"]["pending_waits"] > 0
            assert reader.counts.mean_s * 3 < writer.counts.mean_s, (reader.counts, writer.counts)
        writer.finish()
        writer.flush()
        writer.check()
    assert cluster.stats()["counters"]["pending_peak_pages"] <= PENDING_BYTES // PAGE_BYTES
    assert cluster.device.stop() == ExitCode.OK
    cluster.check_image()
