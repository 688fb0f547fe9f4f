"""Convert and export: byte for byte what was there, whichever way it is kept, and whenever it is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.device import convert as module
from infiniswap.device.content import copy
from infiniswap.engine.log_binding import log_file_bytes
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.errors import ExitCode, UserError
from tests.device.support import PAGE_BYTES, pattern
from tests.support.backups import loop_device, read_backup
from tests.support.layouts import both_layouts
from tests.support.only_in_memory import only_in_memory
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Services

MIB = 1 << 20
SIZE = 8 * MIB
STEPS = ("made", "copied", "published", "record")  # all of them: tests/unit/device/test_convert.py
OTHER = {"raw": "log", "log": "raw"}
# Converts the device as the command does, and kills itself at a step.
KILLED_AT = """
import os, signal, sys
from pathlib import Path
from infiniswap.device.convert import convert
def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
new = Path(sys.argv[5]) if sys.argv[5] else None
convert("vol", sys.argv[4], Path(sys.argv[1]), Path(sys.argv[2]), backup=new, sparse=True, step=step)
"""


def filled(services: Services, layout: str = "raw") -> bytes:
    """A device that was filled here and there and stopped in order; its content."""
    device = services.device("vol", "--backup-layout", layout, size="8MiB")
    content = bytearray(SIZE)
    content[: 3 * MIB] = pattern(3 * MIB // PAGE_BYTES)
    content[5 * MIB + PAGE_BYTES : 5 * MIB + 3 * PAGE_BYTES] = pattern(2, seed=2)
    content[-PAGE_BYTES:] = b"e" * PAGE_BYTES
    with device.connect() as client:
        for start, end in ((0, 3 * MIB), (5 * MIB, 6 * MIB), (SIZE - PAGE_BYTES, SIZE)):
            client.write(start, bytes(content[start:end]))
    assert device.stop() == ExitCode.OK
    return bytes(content)


def digest(services: Services) -> str:
    """Of the device's content, by an export to standard output."""
    command = [*INFINISWAP, "device", "export", "vol", "-"]
    done = subprocess.run(command, env=services.environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, len(done.stdout)) == (ExitCode.OK, SIZE), done.stderr
    return hashlib.sha256(done.stdout).hexdigest()


def by_its_name(services: Services, content: bytes) -> None:
    """The device's name alone starts it, with everything that is on it."""
    again = services.spawn("by name", [*INFINISWAP, "device", "serve", "vol"])
    again.read_ready(READY_TIMEOUT_S)
    with NbdClient(services.folder / "vol.sock", "vol") as client:
        assert client.read(0, SIZE) == content
        client.write(0, content[:PAGE_BYTES])
        client.flush()
    assert again.stop() == ExitCode.OK


def leftovers(services: Services) -> list[str]:
    """What a conversion makes on its way."""
    found = [*services.folder.iterdir(), *(services.folder / "state" / "vol").iterdir()]
    return [path.name for path in found if "convert" in path.name or path.name.endswith(".infiniswap")]


def test_there_and_back(services: Services) -> None:
    """Image to log to image: the same bytes each time, served by the name alone, and the image as sparse as before."""
    content = filled(services)
    image = services.folder / "vol.img"
    before = digest(services)
    for layout in ("log", "raw"):
        done = services.command("device", "convert", "vol", "--to", layout, "--sparse")
        assert (done.returncode, done.stderr) == (ExitCode.OK, ""), done.stderr
        assert f"vol: its backup {image} is {layout} now; its name alone starts it" in done.stdout
        assert read_backup(image, SIZE) == content
        assert digest(services) == before == hashlib.sha256(content).hexdigest()
        assert leftovers(services) == []
        by_its_name(services, content)
    assert image.stat().st_size == SIZE
    assert image.stat().st_blocks * 512 < 5 * MIB


def test_to_another_file(services: Services) -> None:
    """The new file is the device's; the old one stays, and is not taken for it any more."""
    content = filled(services, "log")
    old, new = services.folder / "vol.img", services.folder / "new.img"
    done = services.command("device", "convert", "vol", "--to", "raw", "--backup", str(new))
    assert done.returncode == ExitCode.OK, done.stderr
    assert f"{old} stays" in done.stdout
    assert new.read_bytes() == content
    assert new.stat().st_blocks * 512 >= SIZE, "allocated, unless --sparse"
    again = services.command(
        "device",
        "serve",
        "vol",
        "--size",
        "8MiB",
        "--slab-size",
        "1MiB",
        "--backup",
        str(old),
        "--backup-layout",
        "log",
    )
    assert (again.returncode, "is not that of 'vol', which is" in again.stderr) == (ExitCode.REFUSED, True), (
        again.stderr
    )
    by_its_name(services, content)


def test_a_layout_in_a_file_is_told(services: Services) -> None:
    """Convert changes no file of its user: it says what to write where; the start with the old layout is refused."""
    file = services.folder / "vol.toml"
    file.write_text(f'name = "vol"\nsize = "8MiB"\nslab_size = "1MiB"\nbackup = "{services.folder}/vol.img"\n')
    services.expect_log("no peers are configured")
    serve = ("device", "serve", "--config", str(file))
    services.spawn("first", [*INFINISWAP, *serve]).read_ready(READY_TIMEOUT_S)
    services.started[-1].stop()
    done = services.command("device", "convert", "vol", "--to", "log")
    assert f'write backup_layout = "log" into {file} before it is started' in done.stdout
    old = services.command(*serve)
    assert (old.returncode, "give --backup-layout log" in old.stderr) == (ExitCode.REFUSED, True), old.stderr
    file.write_text(f'{file.read_text()}backup_layout = "log"\n')
    services.spawn("second", [*INFINISWAP, *serve]).read_ready(READY_TIMEOUT_S)


@both_layouts
def test_a_file_that_still_names_the_old_backup(services: Services, layout: str) -> None:
    """It is neither served nor made anew in the device's own backup's stead; check says what the start says."""
    file, old, new = (services.folder / each for each in ("vol.toml", "vol.img", "new.img"))
    options = f'name = "vol"\nsize = "8MiB"\nslab_size = "1MiB"\nsocket = "{services.folder}/vol.sock"\n'
    file.write_text(f'{options}backup = "{old}"\nbackup_layout = "{layout}"\n')
    content = filled(services, layout)
    services.expect_log("no peers are configured")
    services.spawn("first", [*INFINISWAP, "device", "serve", "--config", str(file)]).read_ready(READY_TIMEOUT_S)
    services.started[-1].stop()
    to = OTHER[layout]
    assert services.command("device", "convert", "vol", "--to", to, "--backup", str(new)).returncode == ExitCode.OK
    for what in ("is not that of 'vol', which is", "does not exist, and that of 'vol' is"):
        line = f"backup {old} {what} {new}: give --backup {new} --backup-layout {to}, or write that into the file"
        done = services.command("device", "serve", "vol")
        assert (done.returncode, line in done.stderr) == (ExitCode.REFUSED, True), done.stderr
        assert "--adopt-image" not in done.stderr
        looked = services.command("device", "check", "vol")
        assert (looked.returncode, line in looked.stdout) == (ExitCode.REFUSED, True), looked.stdout
        old.unlink(missing_ok=True)
    file.write_text(f'{options}backup = "{new}"\nbackup_layout = "{to}"\n')
    by_its_name(services, content)


@pytest.mark.parametrize(("layout", "to", "new"), [("raw", "log", ""), ("log", "raw", "new.img")])
def test_killed_at_each_step(services: Services, layout: str, to: str, new: str) -> None:
    """The next start finds the old backup or the new one, whole; nothing of the attempt is left."""
    services.expect_log("converting the backup to .* was interrupted: undone")
    content = filled(services, layout)
    target = str(services.folder / new) if new else ""
    for step in STEPS:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_AT, services.folder / "state", services.runtime_dir, step, to, target],
            env=services.environment,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        done = step == "record" or (step == "published" and not new)
        assert digest(services) == hashlib.sha256(content).hexdigest(), step
        assert leftovers(services) == [], step
        if new:
            assert (services.folder / new).exists() == done, step
        if not done:
            device = services.device("vol", "--backup-layout", layout, size="8MiB")
            with device.connect() as client:
                assert client.read(0, SIZE) == content
            assert device.stop() == ExitCode.OK
            continue
        by_its_name(services, content)
        if step != STEPS[-1]:
            assert services.command("device", "convert", "vol", "--to", layout, "--sparse").returncode == ExitCode.OK


def refused(services: Services, *arguments: str, code: ExitCode, words: str) -> None:
    """One line, and the image as it was."""
    done = services.command("device", *arguments)
    assert (done.returncode, done.stderr.count("\n"), words in done.stderr) == (code, 1, True), done.stderr


@both_layouts
def test_what_convert_refuses(services: Services, layout: str) -> None:
    """While it runs, after a kill, to what it is already, over a file, into nowhere; nothing is changed."""
    device = services.device(size="8MiB", peers=[services.daemon()])
    convert, to = ("convert", "vol", "--to"), OTHER[layout]
    refused(services, *convert, to, code=ExitCode.IN_USE, words="is running already")
    device.kill()
    refused(services, *convert, to, code=ExitCode.REFUSED, words="was not stopped in order")
    services.device(size="8MiB", peers=[services.daemon()]).stop()
    image = services.folder / "vol.img"
    before = image.stat()
    refused(services, *convert, layout, code=ExitCode.REFUSED, words=f"is {layout} already")
    refused(services, "convert", "other", "--to", to, code=ExitCode.NOT_FOUND, words="holds no state")
    there = services.folder / "there"
    there.write_bytes(b"mine")
    refused(services, *convert, to, "--backup", str(there), code=ExitCode.REFUSED, words="exists; name a file")
    nowhere = str(services.folder / "no" / "where")
    refused(services, *convert, to, "--backup", nowhere, code=ExitCode.NOT_FOUND, words="does not exist; create it")
    inside = str(services.folder / "state" / "vol" / "b")
    refused(services, *convert, to, "--backup", inside, code=ExitCode.USAGE, words="lies in the device's state folder")
    image.rename(services.folder / "away")
    refused(services, *convert, to, code=ExitCode.NOT_FOUND, words="does not exist")
    (services.folder / "away").rename(image)
    assert there.read_bytes() == b"mine"
    after = image.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
    assert leftovers(services) == []


@both_layouts
def test_pages_that_are_nowhere_else(services: Services, layout: str) -> None:
    """What only a peer's memory has is neither converted nor exported without."""
    only_in_memory(services)
    to = OTHER[layout]
    out = services.folder / "out.img"
    refused(services, "convert", "vol", "--to", to, code=ExitCode.REFUSED, words="in its peers' memory alone")
    refused(services, "export", "vol", str(out), code=ExitCode.REFUSED, words="in its peers' memory alone")
    assert not out.exists()


def test_export(services: Services) -> None:
    """A sparse image of either layout; what is there stays unless --force; what is no file is refused."""
    content = filled(services, "log")
    out = services.folder / "out.img"
    done = services.command("device", "export", "vol", str(out))
    assert (done.returncode, done.stdout) == (ExitCode.OK, f"vol: its content is in {out}\n")
    assert out.read_bytes() == content
    assert out.stat().st_blocks * 512 < 5 * MIB
    out.write_bytes(b"mine")
    refused(services, "export", "vol", str(out), code=ExitCode.REFUSED, words="give --force")
    assert out.read_bytes() == b"mine"
    assert services.command("device", "export", "vol", str(out), "--force").returncode == ExitCode.OK
    assert out.read_bytes() == content
    refused(services, "export", "vol", str(services.folder), code=ExitCode.REFUSED, words="is not a file")
    own = services.folder / "vol.img"
    refused(services, "export", "vol", str(own), "--force", code=ExitCode.REFUSED, words="is a backup (device 'vol'")
    assert read_backup(own, SIZE) == content
    nowhere = str(services.folder / "no" / "where")
    refused(services, "export", "vol", nowhere, code=ExitCode.NOT_FOUND, words="does not exist")
    assert [path.name for path in services.folder.iterdir() if "export" in path.name] == []
    device = services.device("vol", "--backup-layout", "log", size="8MiB")
    refused(services, "export", "vol", str(out), code=ExitCode.IN_USE, words="is running already")
    device.stop()


def test_a_copy_that_is_not_what_was_written(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back otherwise is found out: the old backup counts, and nothing of the new one is left."""
    content = filled(services)
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)

    def spoilt(source: object, target: object, progress: object, **options: bool) -> None:
        copy(source, target, progress, **options)  # type: ignore[arg-type]
        target.write(memoryview(bytearray(b"x" * PAGE_BYTES)), MIB)  # type: ignore[attr-defined]
        target.sync()  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "copy", spoilt)
    with pytest.raises(UserError, match="read back is another one") as caught:
        module.convert("vol", "log", services.folder / "state", services.runtime_dir, sparse=True)
    assert caught.value.code == ExitCode.FAILED
    assert leftovers(services) == []
    assert (services.folder / "vol.img").read_bytes() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device takes root")
def test_block_devices(services: Services) -> None:
    """Onto a blank one and off it again; in place, or onto one that holds something, is refused."""
    content = filled(services)
    with loop_device(services.folder / "disk", log_file_bytes(SIZE) + MIB) as disk:
        done = services.command("device", "convert", "vol", "--to", "log", "--backup", str(disk))
        assert done.returncode == ExitCode.OK, done.stderr
        by_its_name(services, content)
        refused(services, "convert", "vol", "--to", "raw", code=ExitCode.USAGE, words="give --backup NEWFILE")
        back = services.folder / "back.img"
        done = services.command("device", "convert", "vol", "--to", "raw", "--backup", str(back))
        assert done.returncode == ExitCode.OK, done.stderr
        assert back.read_bytes() == content
        holds = ("convert", "vol", "--to", "log", "--backup", str(disk))
        refused(services, *holds, code=ExitCode.REFUSED, words="blkdiscard -z")
    services.command("device", "convert", "vol", "--to", "log")
    with loop_device(services.folder / "exact", SIZE) as disk:
        done = services.command("device", "convert", "vol", "--to", "raw", "--backup", str(disk))
        assert done.returncode == ExitCode.OK, done.stderr
        assert Path(disk).read_bytes() == content
        by_its_name(services, content)
