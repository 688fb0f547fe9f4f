"""Everything that is found, checked, locked and created before a device can start, and how it is undone on failure.

Nothing is created before everything has been checked; what was created for a start that failed is removed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from infiniswap import backup as backups
from infiniswap.backup import Backup
from infiniswap.config import DeviceConfig, HostPort
from infiniswap.errors import ExitCode, UserError
from infiniswap.nbd.listener import open_tcp_socket, open_unix_socket, sockets_from_environment
from infiniswap.state import (
    Header,
    Record,
    Start,
    StateDirectory,
    StateFile,
    judge,
    new_device_id,
    read_boot_id,
    read_host_id,
)

log = logging.getLogger(__name__)

LOCK_TRIES_MAX = 10


@dataclass(slots=True)
class Prepared:
    """A device that may start: all is locked and bound, nothing is served."""

    directory: StateDirectory
    state: StateFile
    backup: Backup
    start: Start
    boot_id: str
    nbd_sockets: list[socket.socket]
    control_socket: socket.socket
    uri: str
    socket_path: str | None
    tcp: list[str]

    def mark_in_use(self) -> None:
        """From here on the page table is worth more than the backup alone."""
        backup = self.backup
        marked = backup.set_mark(backups.Mark(self.state.device_id, self.boot_id, read_host_id()))
        self.directory.write_record(Record(self.state.device_id, os.path.realpath(backup.path), marked))
        self.state.set_clean(False)

    def mark_clean(self) -> None:
        """Everything is on the backup."""
        self.state.set_clean(True)
        self.backup.clear_mark()


@dataclass(slots=True)
class Found:
    """What was there before anything was created."""

    directory: StateDirectory
    backup: Backup | None
    header: Header | None
    wanted: Header
    start: Start


def look(config: DeviceConfig, cleanup: ExitStack) -> Found:
    """Open what exists and decide how to start. Changes nothing; UserError when the device may not start."""
    directory = StateDirectory(config.device_dir)
    backup = backups.open_image(config.backup, config.size_bytes, sparse=config.sparse)
    if backup is not None:
        cleanup.callback(backup.close)
    header, record = directory.read_header(), directory.read_record()
    wanted = Header(True, config.size_bytes, config.slab_bytes, read_boot_id(), "")
    start = judge(header, record, backup, wanted, accept_stale=config.accept_stale_backup, host_id=read_host_id())
    if backup is not None and backup.is_block_device and not config.accept_stale_backup:
        known = record is not None and record.backup == os.path.realpath(backup.path)
        signature = None if known else backups.foreign_signature(backup.fileno())
        if signature is not None:
            raise UserError(
                f"backup {backup.path} holds {signature}; if it is not needed, remove it with 'wipefs -a "
                f"{backup.path}'; if this is a device's own content, give --accept-stale-backup",
                ExitCode.REFUSED,
            )
    return Found(directory, backup, header, wanted, start)


def prepare(config: DeviceConfig, found: Found, cleanup: ExitStack, undo: ExitStack) -> Prepared:
    """Bind and create what was not there. cleanup is to be run at the end in any case, undo when the start fails."""
    nbd_sockets, control_socket = bind(config, cleanup, undo)
    backup = found.backup
    if backup is None:
        backup = backups.create_image(config.backup, config.size_bytes, sparse=config.sparse)
        cleanup.callback(backup.close)
        undo.callback(backup.discard)
    state = _open_state(found, backup, cleanup, undo)
    socket_path = next((str(s.getsockname()) for s in nbd_sockets if s.family == socket.AF_UNIX), None)
    tcp = [str(HostPort(*s.getsockname()[:2])) for s in nbd_sockets if s.family != socket.AF_UNIX]
    return Prepared(
        directory=found.directory,
        state=state,
        backup=backup,
        start=found.start,
        boot_id=found.wanted.boot_id,
        nbd_sockets=nbd_sockets,
        control_socket=control_socket,
        uri=device_uri(config.name, socket_path, tcp),
        socket_path=socket_path,
        tcp=tcp,
    )


def device_uri(name: str, socket_path: str | None, tcp: list[str]) -> str:
    """NBD URI (doc/uri.md of the NBD project) of the export."""
    if socket_path is not None:
        return f"nbd+unix:///{quote(name)}?socket={quote(socket_path)}"
    return f"nbd://{tcp[0]}/{quote(name)}"


def _open_state(found: Found, backup: Backup, cleanup: ExitStack, undo: ExitStack) -> StateFile:
    directory, wanted = found.directory, found.wanted
    make_directory(directory.path.parent, 0o755, undo)
    make_directory(directory.path, 0o700, undo)
    if found.start is Start.RECOVER:
        state = directory.open()
        cleanup.callback(state.close)
        state.drop_volatile()
        return state
    keep_lost = found.start is Start.REBUILD
    device_id = found.header.device_id if keep_lost and found.header is not None else new_device_id()
    header = Header(True, wanted.size_bytes, wanted.slab_bytes, wanted.boot_id, device_id)
    if found.header is None:
        undo.callback(shutil.rmtree, directory.path, ignore_errors=True)
    state = directory.create(header, backup.data_extents(), keep_lost=keep_lost)
    cleanup.callback(state.close)
    directory.leases_path.unlink(missing_ok=True)  # of a past that does not count
    return state


def hold_name(config: DeviceConfig, cleanup: ExitStack, undo: ExitStack) -> None:
    """Take the device's name in the runtime directory for this process, until cleanup."""
    make_directory(config.runtime_dir, 0o700, undo)
    _check_owner(config.runtime_dir)
    path = config.lock_path
    for _ in range(LOCK_TRIES_MAX):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UserError(f"cannot create {path}: {error.strerror}", ExitCode.RESOURCES) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise UserError(f"cannot lock {path}: {error.strerror}", ExitCode.RESOURCES) from None
            raise UserError(
                f"a device named '{config.name}' is running already; stop it with 'infiniswap device stop "
                f"{config.name}' or choose another name",
                ExitCode.IN_USE,
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                cleanup.callback(os.close, fd)
                cleanup.callback(path.unlink, missing_ok=True)  # before the lock is let go
                return
        os.close(fd)  # the former holder removed the file between our open and our lock
    raise UserError(f"{path} keeps changing under us; try again", ExitCode.IN_USE)


def bind(config: DeviceConfig, cleanup: ExitStack, undo: ExitStack) -> tuple[list[socket.socket], socket.socket]:
    """Listening sockets for NBD (those of socket activation, else our own) and for control."""
    nbd_sockets = sockets_from_environment()
    for sock in nbd_sockets:
        cleanup.callback(sock.close)
    if not nbd_sockets:
        if config.socket_path.parent == config.runtime_dir:
            make_directory(config.socket_path.parent, 0o700, undo)
        nbd_sockets.append(open_unix_socket(config.socket_path))
        cleanup.callback(nbd_sockets[-1].close)
    for address in config.tcp:
        nbd_sockets.append(open_tcp_socket(address.host, address.port))
        cleanup.callback(nbd_sockets[-1].close)
    control_socket = open_unix_socket(config.control_path)
    cleanup.callback(control_socket.close)
    return nbd_sockets, control_socket


def make_directory(path: Path, mode: int, undo: ExitStack) -> None:
    """Create path and its missing parents; undo removes those created, if they are empty then."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create directory {directory}: {error.strerror}", ExitCode.RESOURCES) from None
        undo.callback(_remove_if_empty, directory)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _check_owner(directory: Path) -> None:
    """A directory that somebody else made (in /tmp, say) could hand our sockets to them."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"runtime directory {directory} is not a directory", ExitCode.REFUSED)
    if status.st_uid not in (0, os.geteuid()):
        raise UserError(
            f"runtime directory {directory} belongs to another user; give --runtime-dir or set INFINISWAP_RUNTIME_DIR",
            ExitCode.REFUSED,
        )
