"""Bad input to `device serve`: one clear line, the documented exit code, and nothing created or changed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from infiniswap.cli.main import run
from infiniswap.engine.binding import DeviceEngine
from infiniswap.shared.errors import ExitCode
from tests.device.support import pattern
from tests.support.services import Services
from tests.support.waiting import wait_for

SIZE = 4 << 20
SOMEBODY = 12345


class Refusals:
    """Runs `infiniswap device serve` in this process, where it is expected not to start."""

    def __init__(self, services: Services, capsys: pytest.CaptureFixture[str]) -> None:
        """Everything happens in the folder of services."""
        self.services, self.folder, self._capsys = services, services.folder, capsys

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file with size and time of change; a dead device's lock is free for anybody to remove."""
        return {
            str(path.relative_to(self.folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if not path.is_dir() and path.suffix not in (".log", ".lock")
        }

    def __call__(self, options: Sequence[str], code: ExitCode, *words: str, name: str = "vol") -> None:
        """It says these words in one line, ends with code and leaves everything as it was."""
        before = self.listing()
        assert run(["device", "serve", name, *options]) == code
        out, err = self._capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, err
        for word in words:
            assert word in err
        assert self.listing() == before


@pytest.fixture
def refused(services: Services, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusals:
    """With state and runtime directories of the test's own."""
    for name in ("INFINISWAP_STATE_DIR", "INFINISWAP_RUNTIME_DIR", "INFINISWAP_BACKUPS_DIR"):
        monkeypatch.setenv(name, services.environment[name])
    return Refusals(services, capsys)


def good(services: Services, **change: str) -> list[str]:
    """Options of a device that would start, with some of them changed."""
    options = {"size": str(SIZE), "slab-size": "1MiB", "backup": str(services.folder / "b.img"), **change}
    return [item for name, value in options.items() for item in (f"--{name}", value)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "4097"}, "not a multiple of the page"),
        ({"slab-size": "3MiB"}, "power of two"),
        ({"slab-size": "512KiB"}, "power of two"),
        ({"size": "10MB"}, "write MiB instead"),
        ({"peer": "nowhere:"}, "not HOST:PORT"),
        ({"pending-limit": "1"}, "--pending-limit"),
    ],
)
def test_bad_values(services: Services, refused: Refusals, change: dict[str, str], words: str) -> None:
    """Values that make no sense, before anything is touched."""
    refused(good(services, **change), ExitCode.USAGE, words)


def test_two_names_of_one_peer(services: Services, refused: Refusals) -> None:
    """Two choices must be two."""
    refused(
        [*good(services), "--peer", "127.0.0.1:7401", "--peer", "localhost:7401"],
        ExitCode.USAGE,
        "are the same daemon",
    )


def test_bad_name(services: Services, refused: Refusals) -> None:
    """A name that would leave the folder."""
    refused(good(services), ExitCode.USAGE, "device name '../x'", name="../x")


def test_backup_of_the_wrong_size(services: Services, refused: Refusals) -> None:
    """Says which size it has."""
    (services.folder / "b.img").write_bytes(bytes(SIZE // 2))
    refused(good(services), ExitCode.REFUSED, f"--size {SIZE // 2}")


def test_backup_that_cannot_be(services: Services, refused: Refusals) -> None:
    """A directory, a missing folder, a device of characters."""
    refused(good(services, backup=str(services.folder)), ExitCode.REFUSED, "is a directory")
    refused(good(services, backup="/nowhere/b.img"), ExitCode.NOT_FOUND, "create it first")
    refused(good(services, backup="/dev/null"), ExitCode.REFUSED, "neither a file nor a block device")


def test_backup_where_nothing_can_be_written(services: Services, refused: Refusals) -> None:
    """/proc takes no files, whoever asks."""
    refused([*good(services, backup="/proc/b.img"), "--sparse"], ExitCode.RESOURCES, "/proc/b.img")


def test_disk_too_small(services: Services, refused: Refusals) -> None:
    """A backup larger than the free space is not begun."""
    free = shutil.disk_usage(services.folder).free
    size = str((free // SIZE + 1000) * SIZE)
    refused(good(services, size=size, **{"slab-size": "64MiB"}), ExitCode.RESOURCES, "--sparse")


def test_backup_in_use(services: Services, refused: Refusals) -> None:
    """By another device."""
    services.device("one", size=str(SIZE), backup=services.folder / "b.img")
    refused(good(services), ExitCode.IN_USE, "in use by another process", name="two")


def test_name_in_use(services: Services, refused: Refusals) -> None:
    """The running device goes on."""
    device = services.device("vol", size=str(SIZE))
    refused(good(services), ExitCode.IN_USE, "a device named 'vol' is running already")
    with device.connect() as client:
        client.write(0, b"still here")
        assert client.read(0, 10) == b"still here"


def test_socket_path_in_use(services: Services, refused: Refusals) -> None:
    """A live server, or a file that is no socket, keeps its path."""
    path = services.folder / "s"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        refused(good(services, socket=str(path)), ExitCode.IN_USE, "listening there already")
    path.unlink()
    path.write_text("precious")
    refused(good(services, socket=str(path)), ExitCode.REFUSED, "not a socket")
    assert path.read_text() == "precious"


def test_port_in_use(services: Services, refused: Refusals) -> None:
    """A TCP listener's port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(good(services, tcp=f"127.0.0.1:{port}"), ExitCode.IN_USE, str(port))


def test_killed_device_without_its_state(services: Services, refused: Refusals) -> None:
    """Its backup is behind: it is refused until the user accepts that."""
    device = services.device("vol", size=str(SIZE), backup=services.folder / "b.img")
    with device.connect() as client:
        client.write(0, pattern(4))
        client.flush()
    device.kill()
    state = services.folder / "state"
    state.rename(services.folder / "state-away")
    refused(good(services), ExitCode.REFUSED, "--accept-backup")
    again = services.device("vol", "--accept-backup", size=str(SIZE), backup=services.folder / "b.img")
    with again.connect() as client:
        assert client.read(0, len(pattern(4))) == pattern(4), "what was flushed is there"


def test_killed_device_with_another_state(services: Services, refused: Refusals) -> None:
    """A state directory that knows another device must not be mixed with this backup."""
    device = services.device("vol", size=str(SIZE), backup=services.folder / "b.img")
    device.kill()
    other = str(services.folder / "other")
    refused([*good(services), "--state-dir", other], ExitCode.REFUSED, "--accept-backup")
    assert not Path(other).exists()


def test_killed_device_with_another_backup(services: Services, refused: Refusals) -> None:
    """Its newest pages belong to the old one."""
    device = services.device("vol", size=str(SIZE), backup=services.folder / "b.img")
    device.kill()
    changed = good(services, backup=str(services.folder / "c.img"))
    refused(changed, ExitCode.REFUSED, str(services.folder / "b.img"))


def test_killed_device_with_a_copied_backup(services: Services, refused: Refusals) -> None:
    """A copy in the original's place carries no mark."""
    backup = services.folder / "b.img"
    device = services.device("vol", size=str(SIZE), backup=backup)
    device.kill()
    backup.rename(services.folder / "original.img")
    shutil.copyfile(services.folder / "original.img", backup)
    refused(good(services), ExitCode.REFUSED, "is not the file this device was using")


def test_killed_device_with_other_sizes(services: Services, refused: Refusals) -> None:
    """Slabs of another size would be other pages."""
    device = services.device("vol", size=str(SIZE), backup=services.folder / "b.img")
    device.kill()
    refused(good(services, **{"slab-size": "2MiB"}), ExitCode.REFUSED, "--slab-size 1048576")


@pytest.mark.parametrize("content", ["swap", "random", "file system"])
def test_file_with_something_on_it(services: Services, refused: Refusals, content: str) -> None:
    """What nobody said is meant to be served is left alone; with the word for it its content is the device's."""
    image = services.folder / "b.img"
    with image.open("wb") as stream:
        stream.truncate(SIZE)
        stream.write(pattern(4) if content == "random" else b"")
    if content != "random":
        tool = ["mkswap"] if content == "swap" else ["mkfs.ext4", "-q", "-F"]
        subprocess.run([*tool, str(image)], capture_output=True, timeout=30, check=True)
    refused(good(services), ExitCode.REFUSED, "unknown origin" if content == "random" else content, "--adopt-image")
    before = image.read_bytes()
    device = services.device("vol", "--adopt-image", size=str(SIZE), backup=image)
    with device.connect() as client:
        assert client.read(0, SIZE) == before
    device.stop()
    services.device("vol", size=str(SIZE), backup=image).stop()


def test_killed_device_on_a_file_without_attributes(services: Services, refused: Refusals) -> None:
    """A FUSE mount that holds the image alone: neither another state directory nor another name gets at it."""
    if not Path("/dev/fuse").exists() or shutil.which("nbdfuse") is None:
        pytest.skip("needs FUSE and nbdfuse")
    mount = services.folder / "fuse"
    mount.mkdir()
    fuse = subprocess.Popen(["nbdfuse", str(mount / "b.img"), "--command", "nbdkit", "-s", "memory", str(SIZE)])
    try:
        wait_for((mount / "b.img").exists, what="the mount")
        image = mount / "b.img"
        device = services.device("vol", size=str(SIZE), backup=image)
        with device.connect() as client:
            client.write(0, pattern(4))
        device.kill()
        options = good(services, backup=str(image))
        refused([*options, "--state-dir", str(services.folder / "other")], ExitCode.REFUSED, "device 'vol' since")
        refused(options, ExitCode.REFUSED, "device 'vol' since", name="two")
        device = services.device("vol", size=str(SIZE), backup=image)
        with device.connect() as client:
            assert len(client.read(0, SIZE)) == SIZE
        device.stop()
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], timeout=30, check=False)
        fuse.wait(30)


def test_start_that_fails_late_leaves_nothing(
    services: Services, refused: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backup and state had been created when the data path could not start."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory for the data path")

    monkeypatch.setattr(DeviceEngine, "__init__", fail)
    refused(good(services), ExitCode.RESOURCES, "no memory for the data path")
    assert refused.listing() == {}


def test_loop_device_rules(services: Services, refused: Refusals) -> None:
    """A block device that is mounted, swapped to or signed is refused; an empty one serves."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("needs root and loop devices")
    image = services.folder / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(SIZE)
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, timeout=30, check=True
    ).stdout.strip()
    try:
        refused(good(services, backup=str(image)), ExitCode.IN_USE, loop)
        device = services.device("vol", size=str(SIZE), backup=Path(loop))
        with device.connect() as client:
            client.write(0, pattern(8))
        device.stop()
        assert Path(loop).read_bytes()[: len(pattern(8))] == pattern(8)
        subprocess.run(["mkswap", loop], capture_output=True, timeout=30, check=True)
        assert services.device("vol", size=str(SIZE), backup=Path(loop)).stop() == 0, "our own device is known"
        refused(good(services, backup=loop, size=str(SIZE // 2)), ExitCode.REFUSED, f"--size {SIZE}")
        services.device("vol", size=str(SIZE), backup=Path(loop)).kill()
        away = [*good(services, backup=loop), "--state-dir", str(services.folder / "away")]
        refused(away, ExitCode.REFUSED, "device 'vol' since", str(services.folder / "state"), "--accept-backup")
        shutil.rmtree(services.folder / "marks")
        refused(away, ExitCode.REFUSED, "swap", "wipefs -a", "--adopt-image")
    finally:
        subprocess.run(["losetup", "--detach", loop], timeout=30, check=True)


@pytest.mark.parametrize("what", ["state", "runtime"])
def test_planted_folders(services: Services, refused: Refusals, what: str) -> None:
    """A folder of another user's, and one of our own by a link of his: neither is used, and both stay as they are."""
    his, ours, link = (services.folder / name for name in ("his", "ours", "link"))
    his.mkdir()
    (ours / "vol").mkdir(parents=True)
    link.symlink_to(ours)
    for path in (his, link):
        os.chown(path, SOMEBODY, -1, follow_symlinks=False)
    option = f"{what}-dir"
    refused(
        good(services, **{option: str(his)}), ExitCode.REFUSED, f"{what} directory", "belongs to another user", option
    )
    refused(good(services, **{option: str(link)}), ExitCode.REFUSED, f"{what} directory", "another user's link", option)
    his.chmod(0o777)
    os.chown(his, os.geteuid(), -1)
    refused(good(services, **{option: str(his)}), ExitCode.REFUSED, f"{what} directory", "written by everybody", option)


def test_planted_links(services: Services) -> None:
    """Names that a start is about to write lead to somebody's file: it stays, and the device serves."""
    precious = services.folder / "precious"
    precious.write_text("precious")
    folder = Path(services.environment["INFINISWAP_STATE_DIR"]) / "vol"
    folder.mkdir(parents=True)
    for name in ("backup.json", "options.json", "leases.json", "leases.slabs", "state"):
        (folder / f"{name}.new").symlink_to(precious)
    daemon = services.daemon()
    device = services.device("vol", "--map", "eager", peers=[daemon])
    with device.connect() as client:
        client.write(0, b"x" * 4096)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 1, what="mapping")
    assert device.stop() == 0
    assert precious.read_text() == "precious"
    assert not [path for path in folder.iterdir() if path.is_symlink()]


def test_folder_locked_by_another(services: Services) -> None:
    """Anybody who can see the folder of --socket can hold a lock on it; a start does not wait for him."""
    fd = os.open(services.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        device = services.device("vol")
        assert device.socket.parent == services.folder
        assert device.stop() == 0
        assert not device.socket.exists()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "vol~0", "--size", "1MiB", "--backup", "x"), "is a shard, and is started with the others"),
        (
            ("serve", "vol", "--size", "33MiB", "--slab-size", "1MiB", "--backup", "x", "--shards", "2"),
            "32MiB or 34MiB",
        ),
        (("serve", "vol", "--size", "1GiB", "--backup", "x", "--shards", "17"), "between 1 and 16"),
    ],
)
def test_shards_that_cannot_be(services: Services, arguments: tuple[str, ...], words: str) -> None:
    """Each is one line that says what can."""
    done = services.command("device", *arguments)
    assert done.returncode == ExitCode.USAGE
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
