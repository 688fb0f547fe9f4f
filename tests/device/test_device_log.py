"""A device whose backup is a log: the same promises, by the real service; and never anything else taken for it."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from infiniswap.engine.log_binding import log_file_bytes
from infiniswap.nbd.client import RequestError
from infiniswap.shared.errors import ExitCode
from tests.device.support import PAGE_BYTES, Load, PageModel, pattern
from tests.support.backups import loop_device, read_backup
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Device, Services
from tests.support.waiting import wait_for

MIB = 1 << 20
SIZE = 8 * MIB
PAGES = SIZE // PAGE_BYTES
LOG = ("--backup-layout", "log")


def start(services: Services, *options: str, peers: Sequence[object] = ()) -> Device:
    """A device of SIZE with a log."""
    return services.device("vol", *LOG, *options, size="8MiB", peers=peers)  # type: ignore[arg-type]


def kill_under_load(device: Device, model: PageModel, seed: int) -> None:
    """After some writes, with others in flight."""
    load = Load(device, model, seed=seed)
    with load:
        wait_for(lambda: load.written > 200, what="writes")
        device.kill()


def refused(services: Services, *arguments: str, words: str, code: ExitCode = ExitCode.REFUSED) -> None:
    """The command is refused in one line that says so."""
    done = services.command(*arguments)
    lines = [line for line in done.stderr.splitlines() if " WARNING " not in line]
    assert (done.returncode, len(lines), words in done.stderr) == (code, 1, True), done.stderr


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_stopped_and_exported(services: Services, engine: str) -> None:
    """After writes, zeroings, trims and an orderly stop, the next start and an export have what was there."""
    device = start(services, "--backup-engine", engine, peers=[services.daemon()])
    model, draw = bytearray(SIZE), random.Random(3)
    with device.connect() as client:
        for turn in range(300):
            first, count = draw.randrange(PAGES - 64), draw.randint(1, 64)
            part = slice(first * PAGE_BYTES, (first + count) * PAGE_BYTES)
            if turn % 5:
                model[part] = draw.randbytes(count * PAGE_BYTES)
                client.write(part.start, bytes(model[part]))
            else:
                model[part] = bytes(count * PAGE_BYTES)
                client.write_zeroes(part.start, count * PAGE_BYTES)
            if turn % 40 == 0:
                client.flush()
                assert client.read(0, SIZE) == model
    assert device.stop() == ExitCode.OK
    assert read_backup(device.backup, SIZE) == model
    exported = services.command("device", "export", "vol", str(services.folder / "copy.img"))
    assert exported.returncode == ExitCode.OK, exported.stderr
    assert (services.folder / "copy.img").read_bytes() == model
    again = start(services)
    with again.connect() as client:
        assert client.read(0, SIZE) == model
    assert again.stop() == ExitCode.OK


def test_rewritten_many_times(services: Services) -> None:
    """Much more than the log holds goes through it: it is cleaned while it is written, and what was last is there."""
    device = start(services)
    model = bytearray(SIZE)
    with device.connect() as client:
        draw = random.Random(5)
        for turn in range(24):
            for slab in draw.sample(range(8), 8):
                data = draw.randbytes(16) * (MIB // 16)
                model[slab * MIB : (slab + 1) * MIB] = data
                client.write(slab * MIB, data)
                page = draw.randrange(PAGES)
                part = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
                model[part] = bytes([turn + 1]) * PAGE_BYTES
                client.write(part.start, bytes(model[part]))
        client.flush()
        assert client.read(0, SIZE) == model
    status = device.get("/v1/status")
    assert status["log_live_pages"] == PAGES
    assert status["backup_bytes"] < 24 * SIZE
    assert status["log_free_segments"] > 0
    assert device.stop() == ExitCode.OK
    assert read_backup(device.backup, SIZE) == model


def test_killed_without_daemons(services: Services) -> None:
    """Killed under load again and again, every acknowledged write is there: the log was all that had it."""
    device = start(services)
    with device.connect() as client:
        client.write(0, pattern(PAGES))
    model = PageModel(pattern(PAGES))
    for turn in range(3):
        kill_under_load(device, model, turn)
        device = start(services)
        with device.connect() as client:
            assert model.verify(client) == []
    assert device.stop() == ExitCode.OK
    assert read_backup(device.backup, SIZE) == b"".join(model.pages)


def test_killed_with_a_daemon(services: Services) -> None:
    """The same where pages are at a peer first, and nothing is lost with those that the log does not have yet."""
    daemon = services.daemon()
    options = ("--map", "eager", "--writeback-delay-ms", "200")
    device = start(services, *options, peers=[daemon])
    with device.connect() as client:
        client.write(0, pattern(PAGES))
    model = PageModel(pattern(PAGES))
    for turn in range(2):
        kill_under_load(device, model, turn)
        device = start(services, *options, peers=[daemon])
        with device.connect() as client:
            assert model.verify(client) == []
    assert device.stop() == ExitCode.OK
    assert read_backup(device.backup, SIZE) == b"".join(model.pages)


def test_rot_is_an_error(services: Services) -> None:
    """A page that changed on the disk is read as EIO, not as it is; it is told, and good again once it was written."""
    device = start(services)
    rotten = b"rotten" * 682 + b"page"
    with device.connect() as client:
        client.write(5 * PAGE_BYTES, rotten)
        client.flush()
        client.write(0, pattern(4))
        client.flush()
        client.write(8 * PAGE_BYTES, pattern(4))  # by now the log itself says that the page was safe
        client.flush()
    assert device.stop() == ExitCode.OK
    content = device.backup.read_bytes()
    assert content.count(rotten) == 1
    with device.backup.open("r+b") as file:
        os.pwrite(file.fileno(), b"R", content.index(rotten))
    services.expect_log("1 pages read from its log do not meet their checksums", "the backup fails: Input/output error")
    again = start(services)
    with again.connect() as client:
        assert client.read(0, 4 * PAGE_BYTES) == pattern(4)
        with pytest.raises(RequestError):
            client.read(5 * PAGE_BYTES, PAGE_BYTES)
        wait_for(lambda: "do not meet their checksums" in again.log, what="its being told")
        assert again.get("/v1/status")["log_bad_pages"] == 1
        client.write(5 * PAGE_BYTES, b"n" * PAGE_BYTES)
        assert client.read(5 * PAGE_BYTES, PAGE_BYTES) == b"n" * PAGE_BYTES
    again.stop()


def test_the_other_layout_is_refused(services: Services) -> None:
    """A log asked for as an image, and an image as a log: one line with both ways out, also after a kill."""
    start(services).stop()
    serve = (
        "device",
        "serve",
        "vol",
        "--size",
        "8MiB",
        "--slab-size",
        "1MiB",
        "--backup",
        f"{services.folder}/vol.img",
    )
    before = (services.folder / "vol.img").read_bytes()
    words = "is a log, and --backup-layout is raw; give --backup-layout log, or make a raw image of it with"
    refused(services, *serve, words=words)
    refused(services, *serve, "--accept-backup", words=words)
    assert (services.folder / "vol.img").read_bytes() == before
    start(services).kill()
    refused(services, *serve, words=words)
    start(services).stop()
    services.device("image", size="8MiB").stop()
    image = (*serve[:2], "image", *serve[3:-1], f"{services.folder}/image.img", *LOG)
    refused(services, *image, words="device convert image --to log")
    file = services.folder / "image.toml"
    file.write_text('backup_layout = "tape"\n')
    refused(services, *serve, "--config", str(file), words="must be one of raw, log", code=ExitCode.USAGE)


def test_by_its_name_alone(services: Services) -> None:
    """The layout of the last start is remembered, and shown where one looks for it."""
    start(services).stop()
    again = services.spawn("again", [*INFINISWAP, "device", "serve", "vol"])
    again.read_ready(READY_TIMEOUT_S)
    listed = services.command("device", "list", "-n", "-b", "-o", "LAYOUT,BACKUP SIZE,FREE SEGMENTS")
    layout, size, free = listed.stdout.split()
    assert (layout, int(size)) == ("log", log_file_bytes(SIZE))
    assert int(free) > 0
    assert "(a log, " in services.command("device", "check", "vol").stdout
    again.stop()
    checked = services.command("device", "check", "vol", "--json")
    assert checked.returncode == ExitCode.OK, checked.stdout
    found = json.loads(checked.stdout)
    assert (found["start"], found["backup_layout"]) == ("rebuild", "log")
    assert any(re.search("it is a log of [0-9]+ segments with 0B? in it", line) for line in found["words"])
    rows = json.loads(services.command("device", "list", "--all", "--json").stdout)
    assert [row["backup_layout"] for row in rows if row["name"] == "vol"] == ["log"]
    refused(services, "device", "grow", "vol", "16MiB", words="is a log, which keeps the size that it was made with")
    removed = services.command("device", "rm", "vol", "--backup")
    assert (removed.returncode, (services.folder / "vol.img").exists()) == (ExitCode.OK, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device takes root")
def test_on_a_block_device(services: Services) -> None:
    """A blank one becomes a log and serves again; one that is too small, or holds something, is refused."""
    serve = ("device", "serve", "vol", "--size", "8MiB", "--slab-size", "1MiB", *LOG)
    with loop_device(services.folder / "disk", log_file_bytes(SIZE) + MIB) as disk:
        data = pattern(PAGES)
        device = services.device("vol", *LOG, size="8MiB", backup=disk)
        with device.connect() as client:
            client.write(0, data)
        device.stop()
        assert read_backup(disk, SIZE) == data
        again = services.device("vol", *LOG, size="8MiB", backup=disk)
        with again.connect() as client:
            assert client.read(0, SIZE) == data
        again.stop()
        gone = services.command("device", "rm", "vol", "--backup")
        assert "blkdiscard -z" in gone.stdout
        refused(services, *serve, "--backup", str(disk), words="8MiB of a device's data in a log")
    with loop_device(services.folder / "small", SIZE) as disk:
        refused(services, *serve, "--backup", str(disk), words="the log of a device of 8MiB takes")
        Path(disk).write_bytes(b"x" * PAGE_BYTES)
        refused(services, *serve, "--backup", str(disk), words="and no log; if that is not needed, clear it with")
