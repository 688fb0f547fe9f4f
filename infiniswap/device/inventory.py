"""The devices that state directories know, running or not, and taking one away for good."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from infiniswap.device.check import count_pages
from infiniswap.device.convert import settle
from infiniswap.device.offline import hold_offline
from infiniswap.device.owner import MarkPlaces, mark_on
from infiniswap.device.shards import shards_kept
from infiniswap.device.shards_kept import Stopped, folded, remove_whole
from infiniswap.device.state import DamagedState, Header, Phase, StateDirectory
from infiniswap.shared.address import check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import default_state_dir
from infiniswap.shared.shard_names import whole_of
from infiniswap.shared.sizes import format_size

DEVICES_MAX = 4096  # folders looked at in one state directory


def state_dirs(given: Path | None, runtime_dir: Path) -> list[Path]:
    """Where state may be: the one that was given, else the usual one and the one of the systemd units."""
    return [given] if given is not None else list(dict.fromkeys([default_state_dir(), runtime_dir / "state"]))


def kept_devices(folders: Sequence[Path]) -> list[Stopped]:
    """Each device of which one of the folders holds state, by name; who asks knows which of them run.

    One with shards is one device.
    """
    return folded(_kept(folders))


def _kept(folders: Sequence[Path]) -> list[Stopped]:
    found = []
    for folder in folders:
        try:
            names = sorted(path.name for path in folder.iterdir() if path.is_dir())[:DEVICES_MAX]
        except OSError:
            continue  # there is none, or it is another user's
        for name in names:
            device = _look(folder / name, name)
            if device is not None:
                found.append(device)
    return found


def folder_of(name: str, folders: Sequence[Path]) -> Path:
    """The state directory that holds device name, or that it is a shard of; the first of folders where none does.

    UserError: several do.
    """
    known = [device.directory.parent for device in kept_devices(folders) if device.name == whole_of(name)]
    if len(known) > 1:
        where = ", ".join(map(str, known))
        raise UserError(f"several state directories have a device '{name}': {where}; give --state-dir")
    return known[0] if known else folders[0]


def _look(path: Path, name: str) -> Stopped | None:
    directory = StateDirectory(path)
    try:
        check_name(name)
        header, record = directory.read_header(), directory.read_record()
    except UserError:
        return None
    if header is None and record is None:
        return None
    own = header if isinstance(header, Header) else None
    state = "damaged" if isinstance(header, DamagedState) else "stopped"
    if own is not None and own.phase is Phase.IN_USE:
        state = "elsewhere" if _is_locked(directory.state_path) else "dead"
    backup = None if record is None else Path(record.backup)
    mark = None if backup is None else mark_on(backup)
    lost = mark.lost if mark is not None and own is not None and mark.device_id == own.device_id else None
    return Stopped(
        name,
        state,
        path,
        None if own is None else own.size_bytes,
        None if own is None else own.slab_bytes,
        None if backup is None else str(backup),
        None if record is None else record.layout,
        None if backup is None else "good" if backup.exists() else "missing",
        None if mark is None or mark.in_use else lost,
    )


def _is_locked(path: Path) -> bool:
    """Whether a process serves with this state file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)  # and with it the lock
    return False


def _places(backup: Path, fd: int) -> MarkPlaces:
    status = os.fstat(fd)
    return MarkPlaces(backup, fd, status.st_rdev if stat.S_ISBLK(status.st_mode) else None)


def remove(
    name: str, folders: Sequence[Path], runtime_dir: Path, *, force: bool = False, backup_too: bool = False
) -> list[str]:
    """Take away what is kept of device name; what was done and what was lost, a sentence each.

    UserError: it runs, nothing is known of it, or pages are nowhere else (unless force). backup_too: its file as well.
    """
    check_name(name)
    folder = folder_of(name, folders)
    if shards_kept(name, folder):

        def lost(shard: str) -> list[str]:
            device = _look(folder / shard, shard)
            return [] if device is None else _what_would_be_lost(device)

        def away(shard: str) -> list[str]:
            return remove(shard, [folder], runtime_dir, force=True, backup_too=backup_too)

        return remove_whole(name, folder, runtime_dir, lost, away, force=force)
    with ExitStack() as held:
        hold_offline(name, runtime_dir, held)
        known = [device for device in _kept(folders) if device.name == name]
        if not known:
            where = " or ".join(map(str, folders))
            raise UserError(f"{where} holds no state of a device '{name}'; give --state-dir", ExitCode.NOT_FOUND)
        if len(known) > 1:
            where = ", ".join(str(device.directory.parent) for device in known)
            raise UserError(f"several state directories have a device '{name}': {where}; give --state-dir")
        (device,) = known
        if device.state == "elsewhere":
            raise UserError(f"'{name}' runs, with another --runtime-dir; stop it first", ExitCode.IN_USE)
        said = _what_would_be_lost(device)
        if said and not force:
            raise UserError(
                f"{said[0]}; start it and stop it in order first, or give --force to lose them", ExitCode.REFUSED
            )
        settle(StateDirectory(device.directory))
        said += _end_backup(device, backup_too=backup_too)
        try:
            shutil.rmtree(device.directory)
        except OSError as error:
            raise UserError(f"cannot remove {device.directory}: {error.strerror}", ExitCode.RESOURCES) from None
        (runtime_dir / f"{name}.control").unlink(missing_ok=True)
        return [*said, f"removed its state {device.directory}"]


def _what_would_be_lost(device: Stopped) -> list[str]:
    header = StateDirectory(device.directory).read_header()
    if not isinstance(header, Header):
        return [] if header is None else ["the state is damaged: what was in peers' memory cannot be told"]
    if header.phase is not Phase.IN_USE:
        return []
    only_remote, _ = count_pages(device.directory / "state", header)
    pages = int(only_remote.sum())
    if not pages:
        return []
    return [f"{pages} pages ({format_size(pages * 4096)}) of '{device.name}' are in its peers' memory alone"]


def _end_backup(device: Stopped, *, backup_too: bool) -> list[str]:
    """Its mark goes where newer pages went, or with it; the file where that is wanted."""
    if device.backup is None or device.backup_state == "missing":
        return []
    path = Path(device.backup)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"cannot open backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    try:
        places, block = _places(path, fd), stat.S_ISBLK(os.fstat(fd).st_mode)
        mark = places.read()
        header = StateDirectory(device.directory).read_header()
        ours = mark is not None and isinstance(header, Header) and mark.device_id == header.device_id
        if not ours:
            return [f"backup {path} stays: it is not known as this device's any more"]
        if backup_too or device.state == "dead":
            places.remove()
    except OSError as error:
        raise UserError(f"cannot take the mark off backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    finally:
        os.close(fd)
    if not backup_too:
        behind = ", behind what is lost now; serving it takes --adopt-image" if device.state == "dead" else ""
        return [f"backup {path} stays{behind}"]
    if block:
        how = "blkdiscard -z" if device.backup_layout == "log" else "wipefs -a"
        return [f"block device {path} stays as it is, no longer marked; '{how} {path}' clears it"]
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f"cannot remove backup {path}: {error.strerror}", ExitCode.RESOURCES) from None
    return [f"removed its backup {path}"]
