"""A device that does not run, held so that it does not begin to while something is done to it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infiniswap.device.backup import Backup
from infiniswap.device.backup_kinds import open_backup
from infiniswap.device.owner import Mark
from infiniswap.device.startup import hold_name
from infiniswap.device.state import DamagedState, Header, Phase, StateDirectory
from infiniswap.kernel_shim import sysfs
from infiniswap.shared.address import check_name
from infiniswap.shared.device_client import way_to_stop
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import lock_file
from infiniswap.shared.shard_names import is_shard, whole_of


@dataclass(frozen=True, slots=True)
class OfflineName:
    """What hold_name needs to know."""

    name: str
    runtime_dir: Path

    @property
    def lock_path(self) -> Path:
        """Its lock."""
        return lock_file(self.runtime_dir, self.name)


def hold_offline(name: str, runtime_dir: Path, held: ExitStack) -> None:
    """Until held ends nobody else starts it. UserError: it runs, or the kernel waits for it to come back."""
    check_name(name)
    undo = held.enter_context(ExitStack())
    try:
        hold_name(OfflineName(name, runtime_dir), held, undo)
    except UserError as error:
        if error.code == ExitCode.IN_USE and is_shard(name):
            raise UserError(
                f"'{name}' runs, as a part of '{whole_of(name)}': {way_to_stop(name, runtime_dir)}", error.code
            ) from None
        raise
    kernel_device = sysfs.attached(name)
    if kernel_device is not None:
        raise UserError(
            f"'{name}' is attached as {kernel_device.path}, which waits for it to be started again; start it, and "
            f"'infiniswap device detach {name}' first",
            ExitCode.IN_USE,
        )


def stopped_in_order(name: str, directory: StateDirectory) -> Header:
    """Its state; UserError where there is none, or pages may be elsewhere than on its backup."""
    header = directory.read_header()
    if header is None:
        raise UserError(f"{directory.path} holds no state of a device '{name}'; give --state-dir", ExitCode.NOT_FOUND)
    if isinstance(header, DamagedState):
        raise UserError(f"the state of '{name}' is damaged: {header.reason}", ExitCode.REFUSED)
    if header.phase is not Phase.CLEAN:
        raise UserError(
            f"'{name}' was not stopped in order: pages may be in its peers' memory alone; start it, and stop it with "
            f"'infiniswap device stop {name}' first",
            ExitCode.REFUSED,
        )
    return header


def own_backup(name: str, directory: StateDirectory, header: Header, *, sparse: bool = False) -> tuple[Backup, Mark]:
    """The backup of a device that was stopped in order, locked and as it left it, with its mark. UserError."""
    record = directory.read_record()
    if record is None or record.device_id != header.device_id:
        raise UserError(f"{directory.path} does not say which backup '{name}' has; start it once", ExitCode.REFUSED)
    path = Path(record.backup)
    if not path.exists():
        raise UserError(f"backup {path} of '{name}' does not exist", ExitCode.NOT_FOUND)
    backup = open_backup(path, header.size_bytes, record.layout, name=name, sparse=sparse)
    if backup is None:
        raise UserError(f"backup {path} of '{name}' does not exist", ExitCode.NOT_FOUND)
    mark = backup.mark()
    if mark is None or mark.in_use or (mark.device_id, mark.life) != (header.device_id, header.life):
        backup.close()
        raise UserError(
            f"backup {path} is not as '{name}' left it; 'infiniswap device check {name}' tells more", ExitCode.REFUSED
        )
    return backup, mark
