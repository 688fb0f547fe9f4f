"""A device as several services: what each of them is asked to be, and what is kept of how many there are.

VOL with shards = N is served by one parent, which starts VOL~0 … VOL~N-1, each a device service as any other, with one
Nth of the device on a backup of its own. What is kept of the whole is a record in its folder, beside its options.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infiniswap.device.backup import free_bytes
from infiniswap.device.backup_log import needed_bytes
from infiniswap.device.config import DeviceConfig
from infiniswap.device.last_start import Sources
from infiniswap.device.limits import PAGE_BYTES
from infiniswap.device.options import OPTIONS
from infiniswap.device.startup import mark_elsewhere, now_of
from infiniswap.device.state import DamagedState, Header, Phase, StateDirectory
from infiniswap.device.verdict import check_not_elsewhere
from infiniswap.shared import paths
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import replace_file
from infiniswap.shared.shard_names import SHARDS_MAX, is_shard, shard_name, shard_path, whole_of
from infiniswap.shared.sizes import format_size

log = logging.getLogger(__name__)

FILE_NAME = "shards.json"
_BYTES_MAX = 4096
_PORTS = ("tcp", "web")  # each shard has the next one
_PARENTS = ("metrics_listen",)  # the parent has it, for all
OWN_OPTIONS = ("shards", "size", "backup", "pending_limit", "state_dir", "runtime_dir", "socket", *_PARENTS, *_PORTS)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a device with shards."""

    shards: int
    backup: str  # of the whole: theirs are called after it

    def write(self, folder: Path) -> None:
        """Put it into the device's folder; OSError."""
        replace_file(folder / FILE_NAME, json.dumps(asdict(self)).encode(), sync=True)


def read_record(folder: Path) -> Record | None:
    """What is kept in a device's folder; None where it has no shards. UserError: it cannot be understood."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_BYTES_MAX))
        record = Record(content["shards"], content["backup"])
        if type(record.shards) is not int or not 2 <= record.shards <= SHARDS_MAX:
            raise ValueError("a wrong number of shards")
        if type(record.backup) is not str or not record.backup:
            raise ValueError("no name of a backup")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", ExitCode.RESOURCES) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and start the device with its --shards") from None
    return record


def check_number(config: DeviceConfig) -> None:
    """UserError where the device, or its backup, is known with another number of shards: its pages would not be found.

    Changes nothing.
    """
    if is_shard(config.name):
        return
    name, wanted, backup = config.name, config.shards, config.backup
    record = read_record(config.device_dir)
    known = 1 if record is None else record.shards
    if record is None and StateDirectory(config.device_dir).read_header() is None:
        known = wanted if not _looks_otherwise(config) else 0
        if known > 1:
            _check_all_backups(config)
    if known == wanted:
        return
    if not known:
        if wanted == 1:
            found, word = shard_path(backup, 0), "is of a device with --shards"
        elif backup.is_block_device():
            raise UserError(
                f"--backup {backup} is one block device, and {wanted} shards need one each: name a path that is not "
                f"there, and make links {shard_path(backup, 0).name} and so on beside it to a partition each"
            )
        else:
            found, word = backup, f"is of a device without shards ({wanted} shards have {shard_path(backup, 0)} …)"
        raise UserError(f"backup {found} {word}; choose another --backup, or move it away", ExitCode.REFUSED)
    raise UserError(
        f"device '{name}' has {known} shards, not {wanted}: start it with --shards {known}, or begin anew after "
        f"'infiniswap device rm {name} --backup', which ends what is on it"
        if known > 1
        else f"device '{name}' has no shards: start it without --shards, or begin anew after 'infiniswap device rm "
        f"{name} --backup', which ends what is on it",
        ExitCode.REFUSED,
    )


def _looks_otherwise(config: DeviceConfig) -> bool:
    """Whether what is at the place of the backup is of a device with another number of shards."""
    if config.shards > 1:
        return config.backup.exists()
    return not config.backup.exists() and shard_path(config.backup, 0).exists()


def _check_all_backups(config: DeviceConfig) -> None:
    """UserError where some of the backups are there and others are not, or one more is: nothing else is known."""
    there = [path for number in range(config.shards + 1) if (path := shard_path(config.backup, number)).exists()]
    last = shard_path(config.backup, config.shards)
    if not there or (len(there) == config.shards and last not in there):
        return
    if last in there:
        words = f"{last} is there, and of {config.shards} shards none has it"
    else:
        lacking = [path.name for n in range(config.shards) if not (path := shard_path(config.backup, n)).exists()]
        words = f"{there[0]} is there, and {', '.join(lacking)} not"
    raise UserError(
        f"backup {words}: what is on them is of another number of shards, or not whole; put all of them in place, give "
        "the right --shards, or choose another --backup",
        ExitCode.REFUSED,
    )


def check_backups(config: DeviceConfig) -> None:
    """UserError where a part that was served before has lost its backup and others have not, or there is no room.

    Alone a device begins anew where its backup was taken away: that is a way to clear it. A part would be a hole.
    Changes nothing; the caller holds the device's name.
    """
    parts = {shard_name(config.name, n): shard_path(config.backup, n) for n in range(config.shards)}
    missing = {name: path for name, path in parts.items() if not path.exists()}
    for name, path in missing.items() if not config.accept_backup else ():
        directory = StateDirectory(paths.device_state_dir(config.state_dir, name))
        record = directory.read_record()
        now = replace(now_of(config), name=name, backup=str(path))
        check_not_elsewhere(directory.read_header(), record, mark_elsewhere(record, path), None, now)
    if len(missing) < len(parts) and not config.accept_backup:
        for name, path in missing.items():
            if _was_served(StateDirectory(paths.device_state_dir(config.state_dir, name)).read_header()):
                raise UserError(
                    f"backup {path} of '{name}' is not there, and a new one would be a hole in '{config.name}': put "
                    "it back; if it is gone for good, remove the others as well to begin anew, or give --accept-backup "
                    "to take what is on them, with that part empty",
                    ExitCode.REFUSED,
                )
    if missing and not config.sparse:
        _check_room(config, len(missing))


def is_hole(name: str, header: Header, folder: Path) -> bool:
    """Whether device name, which lacks its backup, is a shard of which others have theirs."""
    backups = backups_kept(whole_of(name), folder) if is_shard(name) else {}
    return _was_served(header) and any(path.exists() for other, path in backups.items() if other != name)


def _was_served(header: Header | DamagedState | None) -> bool:
    """Whether it was stopped in order after it had served: of any other its own start judges."""
    if not isinstance(header, Header):
        return False
    return header.phase is Phase.CLEAN or (header.phase is Phase.STARTING and header.previous != "")


def _check_room(config: DeviceConfig, count: int) -> None:
    """Each of them looks for itself, at a moment when the others are not made yet."""
    size_bytes, folder = config.size_bytes // config.shards, config.backup.parent
    log_bytes = needed_bytes(size_bytes, config.backup_log_space_percent)
    needed = count * (log_bytes if config.backup_layout == "log" else size_bytes)
    try:
        free = free_bytes(folder)
    except OSError:
        return  # what is wrong with the folder they say themselves
    if free < needed:
        raise UserError(
            f"the backups of {count} shards need {format_size(needed)} in {folder}, its file system has "
            f"{format_size(free)} free; free some, choose another place, or give --sparse",
            ExitCode.RESOURCES,
        )


def shard_arguments(
    config: DeviceConfig, sources: Sources, number: int, *, first: bool = True, accept: bool = True
) -> list[str]:
    """Arguments of 'device serve' for one shard; first: what is meant for one start counts (it does not again).

    accept: --accept-backup does.
    """
    given: dict[str, object] = {}
    for key, value in {**sources.last, **sources.given}.items():
        option = OPTIONS.find(key)
        if value is not None and value not in ((), []) and (first or not option.once):
            given[option.name] = value
    given |= _own(config, number)
    if not accept:
        given.pop("accept_backup", None)
    arguments = [shard_name(config.name, number)]
    if sources.file is not None:
        arguments += ["--config", str(sources.file.absolute())]
    for name, value in given.items():
        option = OPTIONS.find(name)
        if option.switch:
            on, _, off = (option.flags[0] if option.flags else option.flag).partition("/")
            arguments.append(on if value in (True, "true", "True") else off)
        elif option.many:
            for each in value if isinstance(value, list | tuple) else [value]:
                arguments += [option.flag, str(each)]
        else:
            arguments += [option.flag, str(value)]
    return arguments


def _own(config: DeviceConfig, number: int) -> dict[str, object]:
    """Options that a shard has otherwise than the whole."""
    own: dict[str, object] = {
        "shards": 1,
        "size": config.size_bytes // config.shards,
        "backup": shard_path(config.backup, number),
        "pending_limit": config.pending_limit_bytes // config.shards // PAGE_BYTES * PAGE_BYTES,
        "state_dir": config.state_dir,
        "runtime_dir": config.runtime_dir,
        "socket": shard_socket(config, number),
    }
    for name in _PORTS:
        value = getattr(config, OPTIONS.find(name).field)
        addresses = value if isinstance(value, tuple) and not isinstance(value, HostPort) else (value,)
        moved = [_moved(address, number) for address in addresses if address is not None]
        if moved:
            own[name] = moved if OPTIONS.find(name).many else moved[0]
    return own


def shard_socket(config: DeviceConfig, number: int) -> Path:
    """Where a shard serves NBD."""
    if config.socket_path == paths.nbd_socket(config.runtime_dir, config.name):
        return paths.nbd_socket(config.runtime_dir, shard_name(config.name, number))
    return shard_path(config.socket_path, number)


def _moved(address: HostPort, number: int) -> HostPort:
    port = address.port + number if address.port else 0
    if port > 65535:
        raise UserError(f"{address} leaves no port for shard {number}: each has the next one")
    return HostPort(address.host, port)


def shards_kept(name: str, folder: Path) -> list[str]:
    """Names of the shards of device name, of which folder (a state directory) keeps the record; none of any other."""
    record = read_record(paths.device_state_dir(folder, name))
    return [] if record is None else [shard_name(name, number) for number in range(record.shards)]


def backups_kept(name: str, folder: Path) -> dict[str, Path]:
    """Of each shard of device name the backup that it had, as the record of the whole says."""
    record = read_record(paths.device_state_dir(folder, name))
    numbers = range(0 if record is None else record.shards)
    return {} if record is None else {shard_name(name, n): shard_path(Path(record.backup), n) for n in numbers}


def refuse_part(name: str, folder: Path, what: str) -> None:
    """UserError where name is a shard of a device, and not to be treated alone. what: as in 'is a part, and WHAT'."""
    whole = whole_of(name)
    if is_shard(name) and name in shards_kept(whole, folder):
        raise UserError(f"'{name}' is a part of device '{whole}', and {what}", ExitCode.REFUSED)


def refuse_shards(name: str, folder: Path, what: str, way_out: str) -> None:
    """UserError where device name has shards, for which something cannot be done. what: as in 'cannot be WHAT'."""
    if shards := shards_kept(name, folder):
        raise UserError(f"device '{name}' has {len(shards)} shards and cannot be {what}: {way_out}", ExitCode.REFUSED)
