"""A note beside the device's sockets: how far an attach has come, so that one killed half-way can be undone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import RUNTIME_FOLDER, check_folder, open_own, replace_file

NOTE_SUFFIX = ".attach.json"
LOCK_SUFFIX = ".attach.lock"
_NOTE_BYTES_MAX = 4096

Stage = Literal["connecting", "attached"]


@dataclass(frozen=True, slots=True)
class Note:
    """connecting: an attach has begun and may have left a device; attached: it was completed as nbd{index}."""

    stage: Stage
    identifier: str
    index: int | None = None


def read(runtime_dir: Path, name: str) -> Note | None:
    """The note, or None when there is none or it cannot be understood (a write cut short)."""
    try:
        with (runtime_dir / (name + NOTE_SUFFIX)).open("rb") as file:
            values = json.loads(file.read(_NOTE_BYTES_MAX))
        note = Note(values["stage"], values["identifier"], values["index"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = note.stage in get_args(Stage) and isinstance(note.identifier, str)
    return note if whole and (note.index is None or type(note.index) is int) else None


def write(runtime_dir: Path, name: str, note: Note) -> None:
    """Replace the note in one step."""
    path = runtime_dir / (name + NOTE_SUFFIX)
    replace_file(path, (json.dumps(asdict(note)) + "\n").encode())


def remove(runtime_dir: Path, name: str) -> None:
    """Forget the note."""
    (runtime_dir / (name + NOTE_SUFFIX)).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(runtime_dir: Path, name: str) -> Iterator[None]:
    """One attach or detach of a name at a time; the lock dies with its process. UserError IN_USE when it is taken."""
    check_folder(runtime_dir, *RUNTIME_FOLDER)
    try:
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.fdopen(open_own(runtime_dir / (name + LOCK_SUFFIX), os.O_RDWR | os.O_CREAT), "r+b")
    except OSError as error:
        raise UserError(f"cannot write to {runtime_dir}: {error.strerror}", ExitCode.RESOURCES) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another attach or detach of '{name}' is under way", ExitCode.IN_USE) from None
        yield
