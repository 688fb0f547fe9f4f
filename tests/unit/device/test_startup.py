"""Start: names and files are held by one device only, and a start that fails leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infiniswap.device import startup
from infiniswap.device.backup import create_image
from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.owner import Mark
from infiniswap.device.startup import Prepared, device_uri, hold_name, look, make_directory, prepare
from infiniswap.device.state import HEADER_BYTES, Header, Phase
from infiniswap.device.verdict import Start
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.notify import notify

SIZE = 4 << 20


def config_in(folder: Path, **options: Any) -> DeviceConfig:
    """A small device with everything in folder."""
    given = {
        "size": SIZE,
        "slab_size": "1MiB",
        "backup": str(folder / "b.img"),
        "state_dir": str(folder / "state"),
        "runtime_dir": str(folder / "run"),
        **options,
    }
    return load_config("vol", given)


class Starts:
    """Prepares devices and ends them."""

    def __init__(self) -> None:
        self.cleanup, self.undo = ExitStack(), ExitStack()

    def prepare(self, config: DeviceConfig) -> Prepared:
        """As start_device() does it."""
        hold_name(config, self.cleanup, self.undo)
        return prepare(config, look(config, self.cleanup), self.cleanup, self.undo)

    def succeed(self) -> None:
        """The device served, and has ended."""
        self.undo.pop_all()
        self.cleanup.close()

    def fail(self) -> None:
        """The start failed."""
        self.cleanup.close()
        self.undo.close()


@pytest.fixture
def starts() -> Iterator[Starts]:
    """Undone at the end if the test did not."""
    starts = Starts()
    yield starts
    starts.fail()


def test_failed_start_leaves_nothing(short_path: Path, starts: Starts) -> None:
    """Whatever had been created by then."""
    starts.prepare(config_in(short_path))
    assert (short_path / "b.img").exists()
    assert (short_path / "run" / "vol.control").exists()
    starts.fail()
    assert list(short_path.iterdir()) == []


def test_ended_device_leaves_backup_and_state_only(short_path: Path, starts: Starts) -> None:
    """Sockets and lock are gone, and the next start finds a clean device."""
    config = config_in(short_path)
    prepared = starts.prepare(config)
    assert prepared.start is Start.FORGET
    prepared.mark_in_use()
    device_id = prepared.state.device_id
    prepared.mark_clean()
    starts.succeed()
    assert sorted(path.name for path in short_path.rglob("*")) == [
        "b.img", "backup.json", "run", "state", "state", "vol",
    ]  # fmt: skip
    again = Starts()
    prepared = again.prepare(config)
    assert (prepared.start, prepared.state.device_id) == (Start.REBUILD, device_id)
    again.fail()
    assert (short_path / "b.img").exists(), "an undo removes only what its own start created"
    assert (short_path / "state" / "vol" / "state").exists()


def test_killed_device_is_recovered(short_path: Path, starts: Starts) -> None:
    """In use and never marked clean."""
    config = config_in(short_path)
    starts.prepare(config).mark_in_use()
    starts.succeed()
    again = Starts()
    assert again.prepare(config).start is Start.RECOVER
    again.succeed()


def test_marked_backup_with_another_state_dir(short_path: Path, starts: Starts) -> None:
    """Is refused with nothing created, until the user says otherwise."""
    starts.prepare(config_in(short_path)).mark_in_use()
    starts.succeed()
    before = sorted(short_path.rglob("*"))
    other: dict[str, Any] = {"state_dir": str(short_path / "other")}
    again = Starts()
    with pytest.raises(UserError, match="--accept-backup") as caught:
        again.prepare(config_in(short_path, **other))
    assert caught.value.code == ExitCode.REFUSED
    again.fail()
    assert sorted(short_path.rglob("*")) == before
    again = Starts()
    assert again.prepare(config_in(short_path, **other, accept_backup=True)).start is Start.FORGET
    again.succeed()


def test_name_in_use(short_path: Path, starts: Starts) -> None:
    """The message names the device, and the running one is not disturbed."""
    config = config_in(short_path)
    starts.prepare(config)
    again = Starts()
    with pytest.raises(UserError, match="a device named 'vol' is running already") as caught:
        again.prepare(config)
    assert caught.value.code == ExitCode.IN_USE
    again.fail()
    assert config.lock_path.exists()
    assert config.control_path.exists()


def test_stale_lock_file_is_no_hindrance(short_path: Path, starts: Starts) -> None:
    """A killed device leaves its lock file and sockets behind."""
    config = config_in(short_path)
    config.runtime_dir.mkdir()
    config.lock_path.write_text("")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(config.control_path))
    starts.prepare(config)


def test_tcp_port_in_use(short_path: Path, starts: Starts) -> None:
    """Nothing is created."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            starts.prepare(config_in(short_path, tcp=[f"127.0.0.1:{port}"]))
    assert caught.value.code == ExitCode.IN_USE
    starts.fail()
    assert list(short_path.iterdir()) == []


def test_tcp_any_port(short_path: Path, starts: Starts) -> None:
    """Port 0 takes a free one, and what is listened on is told."""
    prepared = starts.prepare(config_in(short_path, tcp=["127.0.0.1:0"]))
    assert prepared.uri == f"nbd+unix:///vol?socket={short_path}/run/vol.sock"
    (address,) = prepared.tcp
    port = int(address.removeprefix("127.0.0.1:"))
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_socket_activation(short_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that were passed are used in place of our own."""
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(str(short_path / "passed.sock"))
    passed.listen()
    monkeypatch.setattr(startup, "sockets_from_environment", lambda: [passed])
    prepared = starts.prepare(config_in(short_path))
    assert prepared.nbd_sockets == [passed]
    assert prepared.uri == f"nbd+unix:///vol?socket={short_path}/passed.sock"
    assert not (short_path / "run" / "vol.sock").exists()


def test_uris() -> None:
    """UNIX before TCP; what a URI does not allow is escaped."""
    assert device_uri("v", "/a b/s", []) == "nbd+unix:///v?socket=/a%20b/s"
    assert device_uri("v", None, ["127.0.0.1:5"]) == "nbd://127.0.0.1:5/v"


def test_runtime_directory_of_somebody_else(short_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory planted in /tmp would get our sockets."""
    (short_path / "run").mkdir()
    os.chown(short_path / "run", os.getuid(), -1)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1000)
    (short_path / "run").chmod(0o777)
    owner = (short_path / "run").stat().st_uid
    if owner == 0:
        os.chown(short_path / "run", 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        starts.prepare(config_in(short_path))


def test_directories_are_undone_when_empty(tmp_path: Path) -> None:
    """Only those that were created, and only while nobody else uses them."""
    with ExitStack() as undo:
        make_directory(tmp_path / "a" / "b" / "c", 0o700, undo)
        assert (tmp_path / "a" / "b" / "c").is_dir()
        (tmp_path / "a" / "kept").write_text("")
    assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "kept").exists()
    (tmp_path / "file").write_text("")
    with ExitStack() as undo, pytest.raises(UserError, match="cannot create directory"):
        make_directory(tmp_path / "file" / "x", 0o700, undo)


def test_foreign_content(short_path: Path, starts: Starts) -> None:
    """An image that no device is known to have written is refused as it is, until the user says that it is meant."""
    create_image(short_path / "b.img", SIZE, sparse=True).close()
    with (short_path / "b.img").open("r+b") as stream:
        stream.seek(4086)
        stream.write(b"SWAPSPACE2")
    before = sorted(short_path.rglob("*"))
    with pytest.raises(UserError, match=r"holds swap space.*--adopt-image") as caught:
        starts.prepare(config_in(short_path))
    assert caught.value.code == ExitCode.REFUSED
    starts.fail()
    assert sorted(short_path.rglob("*")) == before
    adopted = Starts()
    prepared = adopted.prepare(config_in(short_path, adopt_image=True))
    prepared.mark_in_use()
    prepared.mark_clean()
    adopted.succeed()
    again = Starts()
    assert again.prepare(config_in(short_path)).start is Start.REBUILD, "known from now on"
    again.succeed()
    other = Starts()
    moved = config_in(short_path, state_dir=str(short_path / "other"))
    assert other.prepare(moved).start is Start.FORGET, "the mark tells that everything is on it"
    other.succeed()


def test_image_of_another_device(short_path: Path, starts: Starts) -> None:
    """However orderly it was closed, it is served under its own name alone."""
    prepared = starts.prepare(config_in(short_path))
    prepared.mark_in_use()
    prepared.mark_clean()
    starts.succeed()
    for words in (
        r"is that of device 'vol' since .*kept on this host: give 'two' a backup of its own; .* rm vol'.*--adopt-image",
        r"belongs to device 'vol' since .*--adopt-image",
    ):
        again = Starts()
        with pytest.raises(UserError, match=words):
            again.prepare(replace(config_in(short_path), name="two"))
        again.fail()
        shutil.rmtree(config_in(short_path).device_dir, ignore_errors=True)
    again = Starts()
    assert again.prepare(replace(config_in(short_path, adopt_image=True), name="two")).start is Start.FORGET
    again.fail()


@pytest.mark.parametrize("killed_after", ["create", "mark"])
def test_killed_while_starting(short_path: Path, starts: Starts, killed_after: str) -> None:
    """At any step before it serves: what was true before still is."""
    prepared = starts.prepare(config_in(short_path))
    prepared.mark_in_use()
    prepared.mark_clean()
    starts.succeed()
    killed = Starts()
    prepared = killed.prepare(config_in(short_path))
    if killed_after == "mark":
        prepared.mark_in_use()
        prepared.state.set_phase(Phase.STARTING)
    killed.succeed()
    again = Starts()
    assert again.prepare(config_in(short_path)).start is Start.REBUILD
    again.succeed()


def test_start_that_fails_after_marking_takes_it_back(short_path: Path, starts: Starts) -> None:
    """Also for those who then come with another state directory."""
    prepared = starts.prepare(config_in(short_path))
    prepared.mark_in_use()
    prepared.mark_clean()
    before = prepared.backup.mark()
    starts.succeed()
    failing = Starts()
    prepared = failing.prepare(config_in(short_path))
    prepared.mark_in_use()
    prepared.take_back()
    assert prepared.backup.mark() == before
    failing.fail()
    again = Starts()
    assert again.prepare(config_in(short_path)).start is Start.REBUILD
    again.succeed()


def test_another_backup_after_a_kill(short_path: Path, starts: Starts) -> None:
    """Is refused though the record of the first one is gone, whether it is there or to be made."""
    starts.prepare(config_in(short_path)).mark_in_use()
    starts.succeed()
    (short_path / "state" / "vol" / "backup.json").unlink()
    other = config_in(short_path, backup=str(short_path / "c.img"))
    for _ in range(2):
        again = Starts()
        with pytest.raises(UserError, match=r"(not the file|not the one).*--accept-backup"):
            again.prepare(other)
        again.fail()
        if not (short_path / "c.img").exists():
            create_image(short_path / "c.img", SIZE, sparse=True).close()
    again = Starts()
    assert again.prepare(config_in(short_path)).start is Start.RECOVER, "its own needs no record"
    again.succeed()


def test_flipped_flag_and_torn_header(short_path: Path, starts: Starts) -> None:
    """Neither is taken for an orderly stop, nor for anything else."""
    starts.prepare(config_in(short_path)).mark_in_use()
    starts.succeed()
    path = short_path / "state" / "vol" / "state"
    raw = path.read_bytes()
    header = Header.parse(raw[:HEADER_BYTES], len(raw))
    torn = (raw[:12] + b"\x01" + raw[13:], raw[:100] + bytes(100) + raw[200:], b"", bytes(len(raw)))
    for damaged in torn:
        path.write_bytes(damaged)
        again = Starts()
        with pytest.raises(UserError, match=r"damaged.*device 'vol'.*--accept-backup"):
            again.prepare(config_in(short_path))
        again.fail()
        assert path.read_bytes() == damaged
    path.write_bytes(replace(header, life="another").pack() + raw[HEADER_BYTES:])
    again = Starts()
    with pytest.raises(UserError, match="last used otherwise"):
        again.prepare(config_in(short_path))
    again.fail()
    path.write_bytes(raw)
    again = Starts()
    assert again.prepare(config_in(short_path)).start is Start.RECOVER
    again.succeed()


def test_recovery_writes_nothing(short_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a full disk cannot stop it."""
    starts.prepare(config_in(short_path)).mark_in_use()
    starts.succeed()
    before = (short_path / "b.img").stat().st_ctime_ns

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write", "pwrite", "setxattr", "posix_fallocate", "mkdir"):
        monkeypatch.setattr(os, name, full)
    again = Starts()
    prepared = again.prepare(config_in(short_path))
    assert prepared.start is Start.RECOVER
    prepared.mark_in_use()
    again.succeed()
    assert (short_path / "b.img").stat().st_ctime_ns == before


def test_image_that_cannot_be_marked(short_path: Path, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not served: nobody could tell later whose newest pages are where."""

    def denied(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    prepared = starts.prepare(config_in(short_path))
    monkeypatch.setattr(os, "setxattr", denied)
    monkeypatch.setattr(os, "rename", denied)
    with pytest.raises(UserError, match=r"cannot (write in state directory|be marked)"):
        prepared.mark_in_use()


def test_state_of_another_boot(short_path: Path, starts: Starts, caplog: pytest.LogCaptureFixture) -> None:
    """Is not trusted: the backup's content counts."""
    config = config_in(short_path)
    prepared = starts.prepare(config)
    prepared.mark_in_use()
    device_id, mark = prepared.state.device_id, prepared.backup.mark()
    starts.succeed()
    path = short_path / "state" / "vol" / "state"
    raw = path.read_bytes()
    header = replace(Header.parse(raw[:HEADER_BYTES], len(raw)), boot_id="0" * 36)
    path.write_bytes(header.pack() + raw[HEADER_BYTES:])
    again = Starts()
    prepared = again.prepare(config)
    assert (prepared.start, prepared.state.device_id) == (Start.REBUILD, device_id)
    assert "before the last boot" in caplog.text
    assert isinstance(mark, Mark)
    assert prepared.backup.mark() == mark
    again.fail()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(short_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """One datagram with a line per assignment, to a path or an abstract name; nothing where there is no manager."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    name = f"isw-test-{os.getpid()}" if abstract else str(short_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        assert notify("READY=1", "STATUS=serving")
        assert manager.recv(1000) == b"READY=1\nSTATUS=serving"
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "gone"))
    assert not notify("READY=1")
