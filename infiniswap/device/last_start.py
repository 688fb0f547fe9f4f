"""Which files and command lines describe a device that is started, and what of its last life still counts.

A command line and file that say size and backup describe the device wholly: nothing of the last command line counts.
One that does not is completed by the last one, or by the file in the usual place: so the name alone starts a device
again. What was set at run time counts until a file or a command line says something new of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infiniswap.device.config import DeviceConfig, Loaded, command_line, load, read_file
from infiniswap.device.limits import PEERS_MAX
from infiniswap.device.options import OPTIONS
from infiniswap.device.remembered import Remembered, read
from infiniswap.shared import paths
from infiniswap.shared.address import HostPort, check_name
from infiniswap.shared.errors import UserError
from infiniswap.shared.layers import Source, Stated

NEEDED = ("size", "backup")
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the options of a device come from, beside what is set at run time. last: of the last command line."""

    name: str | None
    file: Path | None = None
    given: Mapping[str, object] = field(default_factory=dict)
    last: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Described:
    """A device, where its options come from, what it remembers from now on, and what is worth telling of that."""

    loaded: Loaded
    sources: Sources
    remembered: Remembered
    named: tuple[HostPort, ...] = ()  # peers of files and command line
    notes: tuple[str, ...] = ()


def describe(name: str | None, given: Mapping[str, object], file: Path | None) -> Described:
    """The device to start; UserError. Reads, and changes nothing."""
    own = {key: each.value for key, each in command_line(given).items()}
    stated = read_file(file)
    if name is None and "name" in stated:
        name = str(stated["name"].value)
    if name is None:
        raise UserError("the device has no name; give one")
    check_name(name)
    folder = paths.device_state_dir(_state_dir(own, stated), name)
    remembered = read(folder) or Remembered()
    last: Mapping[str, object] = {}
    if not all(key in own or key in stated for key in NEEDED):
        last = {key: value for key, value in remembered.given.items() if key not in own}
        if file is None and remembered.file is not None:
            file = Path(remembered.file)
        elif file is None and not last and (usual := paths.config_file(name)).exists():
            file = usual
    try:
        return settle(Sources(name, file, own, last), remembered)
    except UserError as error:
        if file is None and not last and "is missing" in str(error) and not own.keys() & set(NEEDED):
            known = f"{error}; nothing is known of '{name}': neither {paths.config_file(name)} nor a start in {folder}"
            raise UserError(known, error.code) from None
        raise


def _state_dir(own: Mapping[str, object], stated: Mapping[str, Stated]) -> Path:
    value = own["state_dir"] if "state_dir" in own else stated["state_dir"].value if "state_dir" in stated else None
    return Path(value).absolute() if isinstance(value, str | Path) else paths.default_state_dir().absolute()


def settle(sources: Sources, remembered: Remembered) -> Described:
    """What these sources and what is remembered make together; UserError: a mistake in the sources."""
    base = load(sources.name, sources.given, sources.file, last=sources.last)
    written = as_written(base.config)
    notes: list[str] = []
    kept = {}
    for name, change in remembered.changed.items():
        where = base.stated[name].where if name in base.stated else "the default"
        if name not in OPTIONS.names or not OPTIONS.find(name).live:
            continue
        if written[name] == change.instead_of:
            kept[name] = change
        else:
            new = f"{name} = {written[name]} ({where})"
            notes.append(f"{new} is newer than {change.value}, which was set at run time, and counts")
    changed = {name: Stated(change.value, Source.RUN_TIME) for name, change in kept.items()}
    try:
        loaded = load(sources.name, sources.given, sources.file, last=sources.last, changed=changed)
    except UserError as error:
        notes.append(f"what was set at run time does not fit any more and does not count: {error}")
        loaded, kept = base, {}
    named = base.config.peers
    remembered = by_hand(named, remembered)
    loaded = Loaded(replace(loaded.config, peers=peers_of(named, remembered)), loaded.stated)
    for name, before in remembered.values.items():
        now = as_written(loaded.config).get(name, before)
        if sources.last and now != before and name in sources.given:
            notes.append(f"{name} is {now} now, and was {before} at the last start")
    remembered = replace(
        remembered,
        file=None if sources.file is None else str(sources.file.absolute()),
        given={key: _plain(value) for key, value in {**sources.last, **sources.given}.items() if not _once(key)},
        values=as_written(loaded.config),
        changed=kept,
    )
    return Described(loaded, sources, remembered, named, tuple(notes))


def by_hand(named: Sequence[HostPort], remembered: Remembered) -> Remembered:
    """Without what was added by hand and is named by now, and without what was removed and is not named any more."""
    added = tuple(address for address in remembered.added if address not in named)
    removed = tuple(address for address in remembered.removed if address in (*named, *remembered.discovered))
    return replace(remembered, added=added, removed=removed)


def peers_of(named: Sequence[HostPort], remembered: Remembered) -> tuple[HostPort, ...]:
    """Those named, without those removed by hand, with those added."""
    return (*(address for address in named if address not in remembered.removed), *remembered.added)[:PEERS_MAX]


def as_written(config: DeviceConfig) -> dict[str, Any]:
    """Each option as it could be written in a file."""
    return {option.name: option.as_written(getattr(config, option.field)) for option in OPTIONS}


def _once(name: str) -> bool:
    return OPTIONS.find(name).once


def _plain(value: object) -> Any:
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return value if isinstance(value, bool | int | float) else str(value)
