"""The owner's mark on a backup: who uses it now, or used it last and how that ended.

The image itself stays plain, so the mark lies beside its content: in an extended attribute where the file system has
them, else in a file beside the image (NAME.infiniswap), else in this host's folder of marks (paths.backups_dir(), one
file a backup, named by a hash of what identifies it). Block devices have their marks in that folder alone. The first
place that takes the mark keeps it; a mark that can be put nowhere stops the start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infiniswap.device.limits import BACKUP_LAYOUTS
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import backups_dir, backups_dirs
from infiniswap.shared.private_files import replace_file

MARK_ATTRIBUTE = "user.infiniswap.in_use_by"
NEIGHBOUR_SUFFIX = ".infiniswap"
MARK_BYTES_MAX = 16 << 10
_NO_ATTRIBUTES = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL)
# What names a disk however it is found, most telling first; relative to /sys/dev/block/MAJOR:MINOR of the whole disk.
_NAMES = ("dm/uuid", "dm/name", "md/uuid", "wwid", "device/wwid", "serial", "device/serial")


@dataclass(frozen=True, slots=True)
class Mark:
    """host_id: machine-id(5), "" where there is none. life: drawn anew by each start that did not recover.

    in_use: not ended in order so far. lost: pages that an orderly stop could not save. life is "", as are name and
    state_dir, in a mark of version 1, which was there only while the backup was in use. layout: how the backup is kept.
    """

    device_id: str
    boot_id: str
    host_id: str = ""
    life: str = ""
    in_use: bool = True
    lost: int = 0
    name: str = ""
    state_dir: str = ""
    since: str = ""
    layout: str = "raw"

    def pack(self) -> bytes:
        """Three words as in version 1, whose programs then refuse what they do not know; and the rest."""
        rest: dict[str, object] = {"life": self.life, "in_use": self.in_use, "lost": self.lost}
        rest |= {"name": self.name, "state_dir": self.state_dir, "since": self.since}
        if self.layout != "raw":
            rest["layout"] = self.layout
        return f"{self.device_id} {self.boot_id} {self.host_id or '-'} {json.dumps(rest)}".encode()

    @classmethod
    def parse(cls, raw: bytes) -> Mark:
        """The mark in raw; ValueError when it is damaged."""
        words = raw.decode("ascii").split(" ", 3)
        if len(words) < 2 or not words[0] or not words[1]:
            raise ValueError("words are missing")
        host_id = words[2] if len(words) > 2 and words[2] != "-" else ""
        if len(words) < 4:
            return cls(words[0], words[1], host_id)
        try:
            rest = json.loads(words[3])
            life, in_use, lost = rest["life"], rest["in_use"], rest["lost"]
            name, state_dir, since = texts = [rest[key] for key in ("name", "state_dir", "since")]
            layout = rest.get("layout", "raw")
        except (RecursionError, KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from None
        if not (isinstance(in_use, bool) and type(lost) is int and lost >= 0 and isinstance(life, str)):
            raise ValueError("it has wrong values")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("it has wrong values")
        if layout not in BACKUP_LAYOUTS:
            raise ValueError("the backup is kept in a way that this version does not know")
        return cls(words[0], words[1], host_id, life, in_use, lost, name, state_dir, since, layout)

    def describe(self) -> str:
        """Whose it is, since when, where its state is, in words."""
        who = f"device '{self.name}'" if self.name else f"the device with id {self.device_id}"
        since = f" since {self.since}" if self.since else ""
        where = f", state directory {self.state_dir}" if self.state_dir else ""
        return f"{who}{since}{where}, boot {self.boot_id}"


class _Place(Protocol):
    def read(self) -> bytes | None:
        """The mark there, None when there is none or there cannot be any; OSError when that cannot be told."""

    def write(self, raw: bytes) -> None:
        """Durably, in one step."""

    def remove(self) -> None:
        """Durably; nothing to do where there is none."""


class _Attribute:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> bytes | None:
        try:
            return os.getxattr(self._fd, MARK_ATTRIBUTE)
        except OSError as error:
            if error.errno in (errno.ENODATA, *_NO_ATTRIBUTES):
                return None
            raise

    def write(self, raw: bytes) -> None:
        os.setxattr(self._fd, MARK_ATTRIBUTE, raw)
        os.fsync(self._fd)

    def remove(self) -> None:
        try:
            os.removexattr(self._fd, MARK_ATTRIBUTE)
        except OSError as error:
            if error.errno in (errno.ENODATA, *_NO_ATTRIBUTES):
                return
            raise
        os.fsync(self._fd)


class _File:
    """paths: where to read, first found first; the first one is written, with its folder made if that is missing."""

    def __init__(self, *paths: Path, make_folder: bool = False) -> None:
        self._paths = paths
        self._make_folder = make_folder

    def read(self) -> bytes | None:
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as stream:
                return stream.read(MARK_BYTES_MAX)
        return None

    def write(self, raw: bytes) -> None:
        path = self._paths[0]
        if self._make_folder:
            path.parent.mkdir(0o755, parents=True, exist_ok=True)
        replace_file(path, raw, sync=True, mode=0o644)
        sync_directory(path.parent)

    def remove(self) -> None:
        path = self._paths[0]
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        sync_directory(path.parent)


class MarkPlaces:
    """Where the mark of one backup may be."""

    def __init__(self, path: Path, fd: int, block_device: int | None) -> None:
        """The caller keeps fd. block_device: its device number, None for a file."""
        self._path = path
        self._places: list[_Place] = []
        if block_device is None:
            real = Path(os.path.realpath(path))
            self._places += [_Attribute(fd), _File(real.with_name(real.name + NEIGHBOUR_SUFFIX))]
            identity = f"file {real}"
        else:
            identity = block_identity(path, block_device)
        name = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]
        own = backups_dir()
        others = [folder / name for folder in backups_dirs() if folder != own]
        self._places.append(_File(own / name, *others, make_folder=True))

    def read(self) -> Mark | None:
        """The mark, None without one; UserError when it is damaged or cannot be read."""
        raw = self._find()[1]
        if raw is None:
            return None
        try:
            return Mark.parse(raw)
        except ValueError as error:
            raise UserError(
                f"the owner's mark on backup {self._path} is damaged ({error}); if what is on it counts, give "
                "--accept-backup",
                ExitCode.REFUSED,
            ) from None

    def write(self, mark: Mark) -> None:
        """Put mark where it fits and nowhere else, durably; UserError when it fits nowhere."""
        holder, _ = self._find()
        reason = ""
        for number, place in enumerate(self._places):
            try:
                place.write(mark.pack())
            except OSError as error:
                reason = error.strerror or str(error)
                if number == holder:
                    break  # the old mark there would go before any other
                continue
            for other in self._places[number + 1 :]:
                with contextlib.suppress(OSError):  # what is found first counts
                    other.remove()
            return
        raise UserError(
            f"backup {self._path} cannot be marked as this device's, neither on it nor in {backups_dir()}: {reason}",
            ExitCode.RESOURCES,
        )

    def remove(self) -> None:
        """Take the mark away everywhere. OSError when that fails."""
        for place in reversed(self._places):
            place.remove()

    def forget_names(self) -> None:
        """Take the mark away wherever it goes by the backup's name and not with its file. OSError when that fails."""
        for place in reversed(self._places):
            if not isinstance(place, _Attribute):
                place.remove()

    def _find(self) -> tuple[int | None, bytes | None]:
        for number, place in enumerate(self._places):
            try:
                raw = place.read()
            except OSError as error:
                raise UserError(
                    f"the owner's mark on backup {self._path} cannot be read: {error.strerror}", ExitCode.RESOURCES
                ) from None
            if raw is not None:
                return number, raw
        return None, None


def mark_on(path: Path) -> Mark | None:
    """The mark on the backup at path; None: there is no backup, or none that is known to be a device's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        return MarkPlaces(path, fd, status.st_rdev if stat.S_ISBLK(status.st_mode) else None).read()
    except (OSError, UserError):
        return None
    finally:
        os.close(fd)


def block_identity(path: Path, number: int, sys_root: Path = Path("/sys")) -> str:
    """What tells this block device from all others, also after a boot as far as the kernel knows it."""
    folder = (sys_root / "dev/block" / f"{os.major(number)}:{os.minor(number)}").resolve()
    partition = _text(folder / "partition")
    part = f" partition {partition} at {_text(folder / 'start')}" if partition else ""
    whole = folder.parent if partition else folder
    backing = _text(whole / "loop/backing_file")
    if backing:
        return f"loop {backing} from {_text(whole / 'loop/offset')}{part}"
    for name in _NAMES:
        value = _text(whole / name)
        if value:
            return f"{name} {value}{part}"
    return f"path {os.path.realpath(path)}"


def sync_directory(path: Path) -> None:
    """See to it that names in path are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to write
            raise
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
