"""Everything that is found, checked, locked and created before a device can start, and how it is undone on failure.

Nothing is created before everything has been checked; what was created for a start that failed is removed again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from infiniswap.device.backup import Backup
from infiniswap.device.backup_kinds import create_backup, open_backup
from infiniswap.device.config import DeviceConfig
from infiniswap.device.loss import note_loss
from infiniswap.device.owner import Mark, mark_on
from infiniswap.device.seals import SealingPlan, Seals, make_seals, open_seals
from infiniswap.device.state import (
    DamagedState,
    Header,
    Phase,
    Record,
    StateDirectory,
    StateFile,
    is_kept,
    new_device_id,
    read_boot_id,
    read_host_id,
)
from infiniswap.device.verdict import Image, Now, Start, judge
from infiniswap.kernel_shim.storage import is_plain
from infiniswap.nbd.listener import open_tcp_socket, open_unix_socket, sockets_from_environment
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import RUNTIME_FOLDER, STATE_FOLDER, LockedError, check_folder, take_lock

log = logging.getLogger(__name__)


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
    name: str
    before: Mark | None  # what the backup's mark was
    seals: Seals | None = None  # pages at peers are sealed

    def mark_in_use(self) -> None:
        """From here on the page table is worth more than the backup alone. A recovery finds it so already.

        UserError: it cannot be said, so nothing may be served; take_back() leaves all as it was.
        """
        path = os.path.realpath(self.backup.path)
        record = Record(self.state.device_id, path, marked=True, layout=self.backup.layout)
        recovering = self.start is Start.RECOVER
        try:
            if record != self.directory.read_record():
                self.directory.write_record(record)
        except OSError as error:
            if not recovering:
                raise UserError(
                    f"cannot write in state directory {self.directory.path}: {error.strerror}", ExitCode.RESOURCES
                ) from None
            log.warning("the record of the backup stays as it is: %s", error.strerror)
        if not recovering:
            self.backup.set_mark(self._mark(in_use=True))
            try:
                self.state.set_phase(Phase.IN_USE)
            except OSError as error:
                raise UserError(f"cannot write the state file: {error.strerror}", ExitCode.RESOURCES) from None
        elif self.before is None:  # of version 1, on a backup that could not be marked then
            self.backup.set_mark(self._mark(in_use=True))

    def take_back(self) -> None:
        """The start failed before anything was served."""
        try:
            self.state.set_phase(Phase.STARTING)
            if self.before != self.backup.mark():
                self.backup.set_mark(self.before)
        except (OSError, UserError) as error:  # the next start finds that nothing was served
            log.warning("the mark on backup %s stays: %s", self.backup.path, error)

    def mark_clean(self, lost: int = 0, newly: int = 0) -> None:
        """Everything but `lost` pages is on the backup. OSError: that cannot be said in the state file.

        newly: of them, those that no earlier stop has told.
        """
        note_loss(self.directory.path, newly)
        self.state.set_phase(Phase.CLEAN, self.state.life or new_device_id())
        if self.seals is not None:
            self.seals.forget_key()
        try:
            self.backup.set_mark(self._mark(in_use=False, lost=lost))
        except UserError as error:  # the state file alone is proof enough for a start with it
            log.warning("%s", error)

    def _mark(self, *, in_use: bool, lost: int = 0) -> Mark:
        return Mark(
            device_id=self.state.device_id,
            boot_id=self.boot_id,
            host_id=read_host_id(),
            life=self.state.life,
            in_use=in_use,
            lost=lost,
            name=self.name,
            state_dir=str(self.directory.path.parent),
            since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            layout=self.backup.layout,
        )


@dataclass(slots=True)
class Findings:
    """What was there before anything was created."""

    directory: StateDirectory
    backup: Backup | None
    header: Header | DamagedState | None
    mark: Mark | None
    now: Now
    start: Start


def look(config: DeviceConfig, cleanup: ExitStack) -> Findings:
    """Open what exists and decide how to start. Changes nothing; UserError when the device may not start."""
    directory = StateDirectory(config.device_dir)
    directory.check_owner()
    check_folder(config.device_dir, *STATE_FOLDER)
    check_folder(config.device_dir.parent, *STATE_FOLDER)
    backup = open_backup(
        config.backup,
        config.size_bytes,
        config.backup_layout,
        name=config.name,
        sparse=config.sparse,
        accept=config.accept_backup,
        log_space_percent=config.backup_log_space_percent,
    )
    if backup is not None:
        cleanup.callback(backup.close)
    header, record = directory.read_header(), directory.read_record()
    now = now_of(config)
    image = None
    if backup is not None:
        mark = _read_mark(backup, now)
        image = Image(os.path.realpath(backup.path), mark, kept=is_kept(mark))
    start = judge(header, record, image, now, mark_elsewhere(record, config.backup))
    if backup is not None and image is not None and start is Start.FORGET and image.mark is None:
        check_foreign(backup, now)
    return Findings(directory, backup, header, None if image is None else image.mark, now, start)


def now_of(config: DeviceConfig) -> Now:
    """What this start is asked for."""
    return Now(
        size_bytes=config.size_bytes,
        slab_bytes=config.slab_bytes,
        boot_id=read_boot_id(),
        host_id=read_host_id(),
        name=config.name,
        backup=str(config.backup),
        accept=config.accept_backup,
        adopt=config.adopt_image,
        sealed=bool(config.encrypt),
    )


def mark_elsewhere(record: Record | None, backup: Path) -> Mark | None:
    """The mark on the backup on record, where that is another one than the backup that is asked for."""
    if record is None or record.backup == os.path.realpath(backup):
        return None
    return mark_on(Path(record.backup))


def _read_mark(backup: Backup, now: Now) -> Mark | None:
    try:
        return backup.mark()
    except UserError:
        if now.accept:
            return None  # whatever it was, it does not count
        raise


def check_foreign(backup: Backup, now: Now) -> None:
    """UserError when an image that is not known as a device's holds what nobody has said shall be served."""
    if now.accept or now.adopt:
        return
    content = backup.foreign_content()
    if content is not None:
        clear = f"remove it with 'wipefs -a {backup.path}'" if backup.is_block_device else "remove it"
        raise UserError(
            f"backup {backup.path} holds {content}, and is not known as this device's; if that shall be served, give "
            f"--adopt-image; if it is not needed, {clear}",
            ExitCode.REFUSED,
        )


def prepare(config: DeviceConfig, found: Findings, cleanup: ExitStack, undo: ExitStack) -> Prepared:
    """Bind and create what was not there. cleanup is to be run at the end in any case, undo when the start fails."""
    nbd_sockets, control_socket = bind(config, cleanup, undo)
    backup = found.backup
    if backup is None:
        _tell_of_missing(found, config.backup)
        backup = create_backup(
            config.backup,
            config.size_bytes,
            config.backup_layout,
            sparse=config.sparse,
            log_space_percent=config.backup_log_space_percent,
        )
        cleanup.callback(backup.close)
        undo.callback(backup.discard)
    same_boot = found.mark is not None and found.mark.boot_id == found.now.boot_id
    backup.take_up(same_boot=same_boot, accept=found.now.accept)
    state = _open_state(found, backup, cleanup, undo)
    socket_path = next((str(s.getsockname()) for s in nbd_sockets if s.family == socket.AF_UNIX), None)
    tcp = [str(HostPort(*s.getsockname()[:2])) for s in nbd_sockets if s.family != socket.AF_UNIX]
    return Prepared(
        directory=found.directory,
        state=state,
        backup=backup,
        start=found.start,
        boot_id=found.now.boot_id,
        nbd_sockets=nbd_sockets,
        control_socket=control_socket,
        uri=device_uri(config.name, socket_path, tcp),
        socket_path=socket_path,
        tcp=tcp,
        name=config.name,
        before=found.mark,
    )


def _tell_of_missing(found: Findings, backup: Path) -> None:
    """Its user may have taken it away to begin anew; or a disk is not mounted that should be."""
    record = found.directory.read_record()
    if isinstance(found.header, Header) and record is not None and record.backup == os.path.realpath(backup):
        log.warning("backup %s is not there any more: a new one is made, and the device is empty", backup)


def take_up_seals(sealing: SealingPlan | None, prepared: Prepared, cleanup: ExitStack) -> None:
    """Open what a killed device sealed its pages with, where that can be."""
    if sealing is not None and sealing.past is not None:
        prepared.seals = open_seals(sealing, sealing.past)
        cleanup.callback(prepared.seals.close)


def create_seals(sealing: SealingPlan | None, prepared: Prepared, size_bytes: int, cleanup: ExitStack) -> None:
    """Make what pages are sealed with from now on, unless it was taken up. No page at a peer counts then."""
    if sealing is not None and prepared.seals is None:
        prepared.seals = make_seals(sealing, prepared.state, size_bytes)
        cleanup.callback(prepared.seals.close)
    if prepared.seals is not None and is_plain(prepared.backup.path):
        log.info(
            "pages are sealed, and backup %s is on a disk in the clear: see 'infiniswap doctor'", prepared.backup.path
        )


def device_uri(name: str, socket_path: str | None, tcp: list[str]) -> str:
    """NBD URI (doc/uri.md of the NBD project) of the export."""
    if socket_path is not None:
        return f"nbd+unix:///{quote(name)}?socket={quote(socket_path)}"
    return f"nbd://{tcp[0]}/{quote(name)}"


def _open_state(found: Findings, backup: Backup, cleanup: ExitStack, undo: ExitStack) -> StateFile:
    directory, now = found.directory, found.now
    make_directory(directory.path.parent, 0o755, undo)
    make_directory(directory.path, 0o700, undo)
    check_folder(directory.path, *STATE_FOLDER)  # somebody may have been quicker
    if found.start is Start.RECOVER:
        state = directory.open()
        cleanup.callback(state.close)
        state.drop_volatile()
        return state
    keep_lost = found.start is Start.REBUILD
    device_id = found.header.device_id if keep_lost and isinstance(found.header, Header) else new_device_id()
    header = Header(
        phase=Phase.STARTING,
        sealed=now.sealed,
        size_bytes=now.size_bytes,
        slab_bytes=now.slab_bytes,
        boot_id=now.boot_id,
        device_id=device_id,
        life=new_device_id(),
        previous="" if found.mark is None else found.mark.life,
    )
    if found.header is None:
        undo.callback(shutil.rmtree, directory.path, ignore_errors=True)
    state = directory.create(header, backup.data_extents(), keep_lost=keep_lost)
    cleanup.callback(state.close)
    directory.leases_path.unlink(missing_ok=True)  # of a past that does not count
    return state


class Named(Protocol):
    """What the name of a device needs to be held by (DeviceConfig)."""

    @property
    def name(self) -> str:
        """Of the device."""

    @property
    def runtime_dir(self) -> Path:
        """Where sockets and locks are."""

    @property
    def lock_path(self) -> Path:
        """File whose flock says that the name is in use."""


def hold_name(config: Named, cleanup: ExitStack, undo: ExitStack) -> None:
    """Take the device's name in the runtime directory for this process, until cleanup."""
    check_folder(config.runtime_dir, *RUNTIME_FOLDER)
    make_directory(config.runtime_dir, 0o700, undo)
    check_folder(config.runtime_dir, *RUNTIME_FOLDER)
    path = config.lock_path
    try:
        fd = take_lock(path)
    except LockedError:
        raise UserError(
            f"a device named '{config.name}' is running already; stop it with 'infiniswap device stop "
            f"{config.name}' or choose another name",
            ExitCode.IN_USE,
        ) from None
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}", ExitCode.RESOURCES) from None
    cleanup.callback(os.close, fd)
    cleanup.callback(path.unlink, missing_ok=True)  # before the lock is let go


def bind(config: DeviceConfig, cleanup: ExitStack, undo: ExitStack) -> tuple[list[socket.socket], socket.socket]:
    """Listening sockets for NBD (those of socket activation, else our own) and for control."""
    nbd_sockets = sockets_from_environment()
    for sock in nbd_sockets:
        cleanup.callback(sock.close)
    if not nbd_sockets:
        if config.socket_path.parent == config.runtime_dir:
            make_directory(config.socket_path.parent, 0o700, undo)
        nbd_sockets.append(open_unix_socket(config.socket_path, lock_dir=config.runtime_dir))
        cleanup.callback(nbd_sockets[-1].close)
    for address in config.tcp:
        nbd_sockets.append(open_tcp_socket(address.host, address.port))
        cleanup.callback(nbd_sockets[-1].close)
    control_socket = open_unix_socket(config.control_path, lock_dir=config.runtime_dir)
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
