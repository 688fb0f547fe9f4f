"""The backup as others see it: a plain raw image with everything on it, however it is written; a log where named."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.engine.log_binding import log_file_bytes
from infiniswap.shared.errors import ExitCode
from tests.support.backups import read_backup
from tests.support.layouts import both_layouts
from tests.support.load import PAGE_BYTES, Ledger, Load
from tests.support.services import INFINISWAP, Services
from tests.support.tools import tool
from tests.support.waiting import wait_for

MIB = 1 << 20
SIZE = 16 * MIB
LOAD_PAGES = 6000
# io_uring_setup(2), number 425, is answered with EPERM, as in many containers; see seccomp(2) for the filter.
WITHOUT_IO_URING = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = b"".join(struct.pack("=HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)])
buffer = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def loop_device(tmp_path: Path, layout: str) -> Iterator[Path]:
    """A block device as large as a backup for SIZE, over a file."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE if layout == "raw" else log_file_bytes(SIZE))
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be made here: {done.stderr.strip()}")
    path = Path(done.stdout.strip())
    yield path
    subprocess.run(["losetup", "--detach", str(path)], check=True)


def ledger_of(path: Path, ledger: Ledger) -> None:
    """The backup holds exactly what was acknowledged last: nothing was under way when it was closed."""
    assert ledger.acknowledged == ledger.sent
    found = read_backup(path, SIZE)
    ledger.check(lambda offset, length: found[offset : offset + length])


@pytest.mark.parametrize("sparse", ["--sparse", "--no-sparse"])
@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_image_after_a_clean_stop(services: Services, engine: str, sparse: str) -> None:
    """After writes, zeroings and trims at random and SIGTERM, the image is page by page what was written last."""
    daemon = services.daemon("32MiB")
    options = ("--map", "eager", "--backup-engine", engine, sparse)
    device = services.device("vol", *options, size="16MiB", peers=[daemon])
    assert device.get("/v1/status")["backup_engine"] == engine
    allocated = device.backup.stat().st_blocks * 512
    assert allocated < MIB if sparse == "--sparse" else allocated >= SIZE
    ledger = Ledger(SIZE // PAGE_BYTES)
    with Load(device.uri, ledger, seed=21, read_share=0.1, zero_share=0.2) as load:
        load.run(lambda: load.counts.written_pages > LOAD_PAGES)
        writes = device.get("/v1/stats")["writes"]
    assert writes["remote"] > 0
    assert device.stop() == ExitCode.OK
    assert device.backup.stat().st_size == SIZE
    ledger_of(device.backup, ledger)
    allocated = device.backup.stat().st_blocks * 512
    if sparse == "--sparse":
        zeroes = sum(1 for page in range(len(ledger)) if ledger.acknowledged[page] % 8 == 0)
        assert zeroes > 100
        assert allocated <= SIZE - zeroes * PAGE_BYTES + MIB  # trimmed pages cost no space
    else:
        assert allocated >= SIZE  # the space stays reserved, so that a later write cannot fail for want of it


def test_restart_on_an_image(services: Services, tmp_path: Path) -> None:
    """A device serves an image that it never saw, tells its holes, and goes on from there after each stop."""
    image = tmp_path / "disk.img"
    draw = random.Random(4)
    content = bytearray(SIZE)
    content[MIB : 3 * MIB] = draw.randbytes(2 * MIB)
    with image.open("wb") as file:
        file.truncate(SIZE)
        file.seek(MIB)
        file.write(content[MIB : 3 * MIB])
    for turn in range(3):
        options = ("--state-dir", str(tmp_path / f"state-{turn}"), "--adopt-image")
        device = services.device("vol", *options, size="16MiB", backup=image)
        with device.connect() as client:
            assert client.read(0, SIZE) == content
            extents = json.loads(tool("nbdinfo", "--map", "--json", device.uri))
            data = sum(extent["length"] for extent in extents if extent["description"] == "data")
            assert data == 2 * MIB + turn * 3 * PAGE_BYTES
            page = draw.randbytes(2 * PAGE_BYTES)
            offset = (5 + turn) * MIB + 100  # touches three pages
            client.write(offset, page)
            content[offset : offset + len(page)] = page
        assert device.stop() == ExitCode.OK
        assert image.read_bytes() == content


def test_threads_from_the_configuration(services: Services) -> None:
    """backup_engine = "threads" in the file is obeyed, without a word about io_uring."""
    file = services.folder / "vol.toml"
    file.write_text('backup_engine = "threads"\n')
    device = services.device("vol", "--config", str(file), size="16MiB")
    assert device.get("/v1/status")["backup_engine"] == "threads"
    assert "io_uring" not in device.log


def test_io_uring_is_taken_where_it_works(services: Services) -> None:
    """Without being told, the backup is written through io_uring where this kernel lets anybody use it."""
    device = services.device("vol", size="16MiB")
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    disabled = switch.exists() and switch.read_text().strip() != "0"
    assert device.get("/v1/status")["backup_engine"] == ("threads" if disabled else "io_uring")


def prefix() -> list[str]:
    """Runs its arguments where io_uring is forbidden."""
    return [sys.executable, "-c", WITHOUT_IO_URING]


@both_layouts
def test_threads_where_io_uring_is_forbidden(services: Services) -> None:
    """Where the kernel refuses io_uring, threads take over by themselves, with a line in the log, and lose nothing."""
    services.expect_log("io_uring is not available here")
    daemon = services.daemon("32MiB")
    device = services.device("vol", "--map", "eager", size="16MiB", peers=[daemon], prefix=prefix())
    assert device.get("/v1/status")["backup_engine"] == "threads"
    assert "WARNING device.serve: io_uring is not available here; the backup is written by threads" in device.log
    ledger = Ledger(SIZE // PAGE_BYTES)
    with Load(device.uri, ledger, seed=22) as load:
        load.run(lambda: load.counts.written_pages > LOAD_PAGES)
        load.flush()
        ledger_of(device.backup, ledger)
    assert device.stop() == ExitCode.OK
    ledger_of(device.backup, ledger)


def test_io_uring_demanded_where_it_is_forbidden(services: Services) -> None:
    """Whoever insists on io_uring where it is forbidden is told so in one line, and nothing is left behind."""
    command = [*prefix(), *INFINISWAP, "device", "serve", "vol", "--size", "16MiB", "--backup-engine", "io_uring"]
    done = subprocess.run(
        [*command, "--backup", str(services.folder / "vol.img")],
        env=services.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == ExitCode.RESOURCES
    lines = [line for line in done.stderr.splitlines() if line.startswith("infiniswap:")]
    assert len(lines) == 1
    assert "backup" in lines[0]
    assert list(services.folder.rglob("vol*")) == []


@both_layouts
def test_backup_on_a_block_device(services: Services, loop_device: Path) -> None:
    """A whole disk as the backup: served, zeroed and trimmed like a file, and marked as in use by nobody else."""
    daemon = services.daemon("32MiB")
    device = services.device("vol", "--map", "eager", size="16MiB", peers=[daemon], backup=loop_device)
    ledger = Ledger(SIZE // PAGE_BYTES)
    with Load(device.uri, ledger, seed=23, zero_share=0.2) as load:
        load.run(lambda: load.counts.written_pages > LOAD_PAGES)
    assert device.stop() == ExitCode.OK
    ledger_of(loop_device, ledger)
    again = services.device("vol", "--map", "never", size="16MiB", backup=loop_device)
    with Load(again.uri, ledger, seed=24) as load:
        load.check()


def test_foreign_block_devices(services: Services, loop_device: Path, tmp_path: Path) -> None:
    """A disk with a file system or of another size is refused, mounted or not, and not a byte of it changes."""
    tool("mkfs.ext4", "-q", loop_device)
    before = loop_device.read_bytes()

    def refused(words: str, size: str = "16MiB") -> None:
        done = services.command("device", "serve", "vol", "--size", size, "--backup", str(loop_device))
        assert done.returncode in (ExitCode.REFUSED, ExitCode.IN_USE)
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr

    refused("an ext2, ext3 or ext4 file system")
    refused("give --size 16777216", size="8MiB")
    assert loop_device.read_bytes() == before
    point = tmp_path / "mounted"
    point.mkdir()
    tool("mount", "-o", "ro,noload", loop_device, point)
    try:
        refused(f"is mounted at {point}")
    finally:
        tool("umount", point)
    wait_for(lambda: loop_device.read_bytes() == before, what="the device as it was")
