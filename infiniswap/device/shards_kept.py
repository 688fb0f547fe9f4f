"""What state directories know of devices with shards: one line each, and taking one away for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infiniswap.device.config import DeviceConfig
from infiniswap.device.offline import hold_offline
from infiniswap.device.shards import FILE_NAME, read_record
from infiniswap.shared import paths
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, shard_name, shard_path, whole_of

_WORST = ("damaged", "dead", "elsewhere", "stopped")


@dataclass(frozen=True, slots=True)
class Stopped:
    """What is kept of a device that does not run. backup: None where nothing says which."""

    name: str
    state: str  # stopped, dead (killed), damaged, elsewhere (it runs, with another runtime directory)
    directory: Path
    size_bytes: int | None
    slab_bytes: int | None
    backup: str | None
    backup_layout: str | None
    backup_state: str | None  # good, missing
    lost_pages: int | None  # that an orderly stop could not save; None: not known

    def as_row(self) -> dict[str, object]:
        """As in the table of device list."""
        keys = ("name", "state", "size_bytes", "slab_bytes", "backup", "backup_layout", "backup_state")
        row = {key: getattr(self, key) for key in keys}
        return {**row, "lost_pages": self.lost_pages, "state_dir": str(self.directory)}


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def folded(found: Sequence[Stopped]) -> list[Stopped]:
    """With the shards of each device as one: as bad as the worst of them, damaged where one is missing."""
    out: list[Stopped] = []
    groups: dict[tuple[Path, str], list[Stopped]] = {}
    for device in found:
        if is_shard(device.name):
            groups.setdefault((device.directory.parent, whole_of(device.name)), []).append(device)
        else:
            out.append(device)
    for (folder, name), parts in groups.items():
        try:
            record = read_record(paths.device_state_dir(folder, name))
        except UserError:
            record = None
        whole = record is not None and len(parts) == record.shards
        missing = any(part.backup_state != "good" for part in parts)
        out.append(
            Stopped(
                name,
                min((part.state for part in parts), key=_WORST.index) if whole else "damaged",
                paths.device_state_dir(folder, name),
                _sum([part.size_bytes for part in parts]),
                parts[0].slab_bytes,
                None if record is None else record.backup,
                parts[0].backup_layout,
                "missing" if missing else "good",
                _sum([part.lost_pages for part in parts]),
            )
        )
    return sorted(out, key=lambda device: (str(device.directory.parent), device.name))


def parts_there(config: DeviceConfig) -> set[Path]:
    """What exists of the shards' state directories and backups."""
    numbers = range(config.shards)
    folders = (paths.device_state_dir(config.state_dir, shard_name(config.name, number)) for number in numbers)
    return {path for path in (*folders, *(shard_path(config.backup, n) for n in numbers)) if path.exists()}


def rest_of_first_start(config: DeviceConfig, before: set[Path]) -> str:
    """What a first start that failed has made and leaves, and the ways on, in words; "" where it leaves nothing.

    before: parts_there() then. The rest stays: a shard that served for a moment may have been written to.
    """
    made = parts_there(config) - before
    folders, names, with_backup = set(), [], False
    for number in range(config.shards):
        name, backup = shard_name(config.name, number), shard_path(config.backup, number)
        folder = paths.device_state_dir(config.state_dir, name)
        if made & {folder, backup}:
            names.append(name)
            folders.add(folder)
            with_backup |= backup in made
    if not names:
        return ""
    words = f"what this start made of {', '.join(names)} stays: the same command again goes on with it"
    if folders <= made:  # else there is something older, or 'device rm' does not know the backup
        # A backup that was there before is the user's, and not for a hint to take away.
        option = " --backup" if with_backup and not before else ""
        words += f", 'infiniswap device rm {config.name}{option}' clears it"
    return words


def remove_whole(
    name: str,
    folder: Path,
    runtime_dir: Path,
    lost: Callable[[str], list[str]],
    remove: Callable[[str], list[str]],
    *,
    force: bool,
) -> list[str]:
    """Take away all shards of device name, and its record. lost: what would be lost of one; remove: takes one away.

    Nothing is touched where one of them runs, or would lose pages (unless force). UserError.
    """
    record = read_record(paths.device_state_dir(folder, name))
    assert record is not None
    names = [shard_name(name, number) for number in range(record.shards)]
    names = [each for each in names if paths.device_state_dir(folder, each).is_dir()]
    with ExitStack() as held:
        hold_offline(name, runtime_dir, held)
        with ExitStack() as looked:
            for each in names:
                _hold(each, name, runtime_dir, looked)
            said = [line for each in names for line in lost(each)]
        if said and not force:
            raise UserError(
                f"{said[0]}; start it and stop it in order first, or give --force to lose them", ExitCode.REFUSED
            )
        for each in names:
            said += [f"{each}: {line}" for line in remove(each)]
        directory = paths.device_state_dir(folder, name)
        try:
            for file in directory.iterdir():
                if file.name != FILE_NAME:
                    file.unlink()
            (directory / FILE_NAME).unlink()  # last: while it is there, this can be done again
            directory.rmdir()
        except OSError as error:
            raise UserError(f"cannot remove {directory}: {error.strerror}", ExitCode.RESOURCES) from None
        (runtime_dir / f"{name}.control").unlink(missing_ok=True)
        return [*said, f"removed its record {directory}"]


def _hold(shard: str, whole: str, runtime_dir: Path, held: ExitStack) -> None:
    try:
        hold_offline(shard, runtime_dir, held)
    except UserError as error:
        if error.code != ExitCode.IN_USE or "as a part of" not in str(error):
            raise
        raise UserError(
            f"shard '{shard}' serves without its parent: 'infiniswap device serve {whole}' takes it up, and "
            f"'infiniswap device stop {whole}' ends it",
            ExitCode.IN_USE,
        ) from None
