"""A configuration file with its drop-ins as one set of options, each of which knows where it was stated.

FILE.d/*.toml are read after FILE in the order of their names, and a later statement wins. A table [attach] in a file
makes options named attach.KEY.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.options import Options
from infiniswap.shared.toml_file import parse_toml, read_file

DROP_INS_MAX = 64
DROP_IN_SUFFIX = ".toml"
_HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
_KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")


class Source(StrEnum):
    """What kind of place a value in force comes from."""

    DEFAULT = "default"
    FILE = "file"
    DROP_IN = "drop-in"
    LAST_START = "last start"  # the command line of the last start
    COMMAND_LINE = "command line"
    RUN_TIME = "run time"
    DISCOVERY = "discovery"


@dataclass(frozen=True, slots=True)
class Stated:
    """A value as it was written, and where. place: FILE:LINE, or what else tells more than the source does."""

    value: Any
    source: Source
    place: str = ""

    @property
    def where(self) -> str:
        """For people."""
        words = {Source.RUN_TIME: "set at run time", Source.LAST_START: "command line of the last start"}
        if self.source in (Source.FILE, Source.DROP_IN):
            return self.place
        return words.get(self.source, str(self.source)) + (f", {self.place}" if self.place else "")


def drop_ins(file: Path) -> list[Path]:
    """The drop-ins of file, in the order in which they count. UserError: too many, or not to be read."""
    folder = file.parent / f"{file.name}.d"
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == DROP_IN_SUFFIX and path.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except ValueError:  # no path has a zero byte; reading the file says so
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}", ExitCode.RESOURCES) from None
    if len(found) > DROP_INS_MAX:
        raise UserError(f"{folder} holds {len(found)} files, the most is {DROP_INS_MAX}")
    return found


def files_of(file: Path) -> list[Path]:
    """File and its drop-ins; the file itself may be missing where there are drop-ins, which then say it all."""
    more = drop_ins(file)
    return more if more and not file.exists() else [file, *more]


def read_layers(file: Path, sections: Mapping[str, Options], free: tuple[str, ...] = ()) -> dict[str, Stated]:
    """What file and its drop-ins state, by the options' names; UserError names the file and the line.

    sections: the options of each table, "" for those outside any. free: keys that are no options, and are handed on.
    """
    found: dict[str, Stated] = {}
    for path in files_of(file):
        source = Source.FILE if path == file else Source.DROP_IN
        found.update(_read_one(path, source, sections, free))
    return found


def convert(
    stated: Mapping[str, Stated], sections: Mapping[str, Options], mistakes: list[str] | None = None
) -> dict[str, Any]:
    """Fields of a configuration out of what is stated; those of tables are checked and left out.

    UserError: the first mistake. mistakes: gets them all, before.
    """
    fields: dict[str, Any] = {}
    wrong: list[UserError] = []
    for key, each in stated.items():
        section, _, own = key.rpartition(".")
        option = sections[section].find(own)
        what = option.flag if each.source is Source.COMMAND_LINE else f"{each.where}: {own}"
        try:
            value = option.convert(what, each.value)
        except UserError as error:
            wrong.append(error)
        else:
            if not section:
                fields[option.field] = value
    if wrong:
        if mistakes is not None:
            mistakes += [str(error) for error in wrong]
        raise wrong[0]
    return fields


def shown(config: object, stated: Mapping[str, Stated], sections: Mapping[str, Options]) -> list[dict[str, Any]]:
    """Each option with its value in force, where it was stated, and whether it can be changed at run time; for JSON.

    config: what convert()'s fields have become.
    """
    rows = []
    for section, options in sections.items():
        prefix = f"{section}." if section else ""
        for option in options:
            each = stated.get(prefix + option.name, Stated(option.default, Source.DEFAULT))
            if not section:
                value = getattr(config, option.field)
            elif each.source is Source.DEFAULT:
                value = option.default
            else:
                value = option.convert(option.name, each.value)
            rows.append(
                {
                    "option": prefix + option.name,
                    "value": option.as_written(value),
                    "source": str(each.source),
                    "where": each.where,
                    "live": option.live,
                    "default": option.default_text,
                }
            )
    return rows


def _read_one(path: Path, source: Source, sections: Mapping[str, Options], free: tuple[str, ...]) -> dict[str, Stated]:
    text = read_file(path)
    lines = line_numbers(text)
    found: dict[str, Stated] = {}
    for key, value in parse_toml(text, path).items():
        if isinstance(value, dict) and key in sections:
            inner = {f"{key}.": (sections[key], value)}
        else:
            inner = {"": (sections[""], {key: value})}
        for prefix, (options, table) in inner.items():
            for own, stated in table.items():
                line = lines.get((prefix.rstrip("."), own))
                place = f"{path}:{line}" if line else str(path)
                name = own if not prefix and own in free else prefix + options.find(own, f"{place}: ").name
                if name in found:
                    raise UserError(f"{place}: option '{own}' is given twice")
                found[name] = Stated(stated, source, place)
    return found


def line_numbers(text: str) -> dict[tuple[str, str], int]:
    """Table and key to the line where the key seems to stand first; keys written in an unusual way are missing."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[1]
        elif key := _KEY.match(line):
            found.setdefault((table, key[1]), number)
    return found
