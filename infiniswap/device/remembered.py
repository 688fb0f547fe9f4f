"""What a device remembers of how it was asked for: options.json in its state directory.

The command line of its last start, so that its name alone starts it again; what was set at run time, each with what it
took the place of, so that a later statement in a file is seen to be one; peers that were added and removed by hand, and
those that discovery named last. It lives as long as the page table beside it: in /run until the next boot.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.private_files import replace_file

log = logging.getLogger(__name__)

FILE_NAME = "options.json"
BYTES_MAX = 1 << 20
PEERS_MAX = 1024  # of a list that is read again


@dataclass(frozen=True, slots=True)
class Change:
    """A value set at run time, and what was in force below it then, both as they could be written in a file."""

    value: Any
    instead_of: Any


@dataclass(frozen=True, slots=True)
class Remembered:
    """All of it. given: options of the command line. values: what was in force at the start."""

    file: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, Change] = field(default_factory=dict)
    added: tuple[HostPort, ...] = ()
    removed: tuple[HostPort, ...] = ()
    discovered: tuple[HostPort, ...] = ()

    def write(self, folder: Path) -> None:
        """Put it on record in the device's folder; OSError."""
        content = asdict(self)
        for key in ("added", "removed", "discovered"):
            content[key] = [str(address) for address in getattr(self, key)]
        replace_file(folder / FILE_NAME, json.dumps(content, default=str).encode())


def read(folder: Path) -> Remembered | None:
    """What the device in folder remembers; None where that is nothing, or cannot be used."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(BYTES_MAX))
        file = content["file"]
        return Remembered(
            file=None if file is None else str(file),
            given=dict(content["given"]),
            values=dict(content["values"]),
            changed={str(k): Change(each["value"], each["instead_of"]) for k, each in dict(content["changed"]).items()},
            added=_addresses(content["added"]),
            removed=_addresses(content["removed"]),
            discovered=_addresses(content["discovered"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.debug("%s: %s", path, error)
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        log.warning("%s cannot be used, and is written anew: %s", path, error)
        return None


def _addresses(texts: Any) -> tuple[HostPort, ...]:
    return tuple(parse_host_port(str(text), "peer") for text in list(texts)[:PEERS_MAX])
