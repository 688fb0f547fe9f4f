"""zswap as the tier before the device: switched on for it, told what was changed, and put back when nobody needs it.

There is one zswap for the whole host (kernel documentation, admin-guide/mm/zswap.rst), so what was changed, and for
which kernel devices, stands in one note beside the devices' sockets. It is written before each change: who is killed
leaves a note that says at least all that was changed, and the next attach or detach puts back what nobody needs now.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infiniswap.kernel_shim import sysfs
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import open_own, replace_file

COMPRESSORS = ("zstd", "lz4", "lzo-rle")  # the best first; the kernel refuses what it has no module for
POOL = "zsmalloc"  # the one that packs densely; kernels of 6.18 and later have no other, and no parameter for it
NOTE_NAME = "zswap.json"
LOCK_NAME = "zswap.lock"
LOCK_TIMEOUT_S = 60.0  # the holder may be loading a compressor's module
_FOLDER = "sys/module/zswap/parameters"
_NOTE_BYTES_MAX = 64 << 10
_POLL_S = 0.05
_TOLD_ALWAYS = ("compressor", "max_pool_percent")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of zswap. compressor None: the best, unless zswap was on already, as somebody chose."""

    compressor: str | None = None
    max_pool_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter's value before anybody asked for zswap, and what it was set to."""

    before: str
    after: str


@dataclass(slots=True)
class Note:
    """users: backend identifiers of the kernel devices that want zswap. changes: by parameter, in the order made."""

    users: list[str] = field(default_factory=list)
    changes: dict[str, Change] = field(default_factory=dict)


def parameters(root: Path = Path("/")) -> dict[str, str] | None:
    """The parameters as they are now; None where the kernel has no zswap."""
    folder = root / _FOLDER
    try:
        return {path.name: path.read_text().strip() for path in sorted(folder.iterdir())}
    except OSError:
        return None


def store(name: str, value: str, root: Path = Path("/")) -> None:
    """Set one parameter; OSError when the kernel refuses the value."""
    (root / _FOLDER / name).write_text(value)


def check(wanted: Wanted) -> None:
    """UserError for values that no kernel takes."""
    percent = wanted.max_pool_percent
    if percent is not None and not 1 <= percent <= 100:
        raise UserError("--zswap-max-pool-percent must be between 1 and 100")


def require(root: Path = Path("/")) -> None:
    """UserError REFUSED where the kernel has no zswap."""
    if parameters(root) is None:
        raise UserError(
            f"this kernel ({os.uname().release}) has no zswap: boot one that has (apt-get install linux-image-amd64; "
            "the cloud kernels lack it), or attach without --zswap",
            ExitCode.REFUSED,
        )


def join(identifier: str, wanted: Wanted, runtime_dir: Path, root: Path = Path("/")) -> str:
    """Switch zswap on for the kernel device of that identifier; returns in one line what was changed, and from what.

    The device must be connected already, or it counts as gone. UserError when zswap cannot be had as it is wanted; then
    it is as it was.
    """
    require(root)
    with _locked(runtime_dir):
        note = _without_gone(read_note(runtime_dir), root)
        if not note.users:
            _put_back(note, runtime_dir, root)
        note.users = [*dict.fromkeys([*note.users, identifier])]
        before = parameters(root) or {}
        try:
            _set_all(note, wanted, before, runtime_dir, root)
        except (OSError, UserError) as error:
            note.users.remove(identifier)
            if not note.users:
                _put_back(note, runtime_dir, root)
            if isinstance(error, UserError):
                raise
            raise UserError(f"zswap cannot be set up: {error.strerror}", ExitCode.FAILED) from None
        _write_note(runtime_dir, note)
        return _told(before, parameters(root) or {})


def leave(runtime_dir: Path, gone: str | None = None, root: Path = Path("/")) -> str | None:
    """Put back what was changed, once no device that wanted zswap is left; returns in one line what was done, if any.

    gone: the identifier of a device that was just taken away; others are looked for in sysfs. What somebody else has
    changed since is left alone.
    """
    if not (runtime_dir / NOTE_NAME).exists():
        return None
    with _locked(runtime_dir):
        note = read_note(runtime_dir)
        had = len(note.users)
        note.users = [user for user in note.users if user != gone]
        note = _without_gone(note, root)
        if note.users:
            if len(note.users) != had:
                _write_note(runtime_dir, note)
            return None
        return _put_back(note, runtime_dir, root)


def _set_all(note: Note, wanted: Wanted, before: dict[str, str], runtime_dir: Path, root: Path) -> None:
    was_on = before.get("enabled") == "Y"

    def set_one(name: str, value: str) -> None:
        if name not in before or (parameters(root) or {}).get(name) == value:
            return
        first = note.changes[name].before if name in note.changes else before[name]
        note.changes[name] = Change(first, value)
        _write_note(runtime_dir, note)
        store(name, value, root)

    # First: until zswap has been on once the kernel takes any name for a compressor, and later falls back silently.
    set_one("enabled", "Y")
    if not was_on:
        with contextlib.suppress(OSError):  # the one it has will do
            set_one("zpool", POOL)
    if wanted.compressor is not None:
        _set_compressor((wanted.compressor,), note, set_one)
    elif not was_on:
        _set_compressor(COMPRESSORS, note, set_one)
    if wanted.max_pool_percent is not None:
        set_one("max_pool_percent", str(wanted.max_pool_percent))
    set_one("shrinker_enabled", "Y")  # cold pages go on to the device before the pool is full; kernel 6.8


def _set_compressor(names: tuple[str, ...], note: Note, set_one: Callable[[str, str], None]) -> None:
    earlier = note.changes.get("compressor")
    for name in names:
        try:
            set_one("compressor", name)
        except OSError:
            if earlier is None:
                note.changes.pop("compressor", None)
            else:
                note.changes["compressor"] = earlier
            continue
        return
    if len(names) == 1:
        raise UserError(f"this kernel's zswap has no compressor '{names[0]}'", ExitCode.REFUSED)


def _put_back(note: Note, runtime_dir: Path, root: Path) -> str | None:
    """Put back all that is still as it was set. The note goes last: who is killed before leaves it to be done again."""
    done: list[str] = []
    failed = False
    now = parameters(root) or {}
    for name, change in reversed(note.changes.items()):
        value = now.get(name, change.before)
        if value == change.before:
            continue
        if value != change.after:
            done.append(f"{name} stays {value}, which somebody has set since")
            continue
        try:
            store(name, change.before, root)
            done.append(f"{name} {change.before} again (was {value})")
        except OSError as error:
            failed = True
            done.append(f"{name} could not be set to {change.before} ({error.strerror})")
    if not failed:
        (runtime_dir / NOTE_NAME).unlink(missing_ok=True)
        note.changes.clear()
    return f"zswap: {', '.join(done)}" if done else None


def _told(before: dict[str, str], after: dict[str, str]) -> str:
    changed = [f"{name} {value} (was {before.get(name)})" for name, value in after.items() if before.get(name) != value]
    if not changed:
        return "zswap: already as wanted, nothing was changed"
    kept = [f"{name} {after[name]}" for name in _TOLD_ALWAYS if name in after and before.get(name) == after[name]]
    return f"zswap: {', '.join(changed)}" + (f"; as it was: {', '.join(kept)}" if kept else "")


def _without_gone(note: Note, root: Path) -> Note:
    there = {device.backend for device in sysfs.read_nbd_devices(root) if device.connected}
    note.users = [user for user in note.users if user in there]
    return note


def read_note(runtime_dir: Path) -> Note:
    """The note; an empty one when there is none, or none that can be understood."""
    try:
        with (runtime_dir / NOTE_NAME).open("rb") as file:
            values = json.loads(file.read(_NOTE_BYTES_MAX))
        changes = {str(name): Change(str(c["before"]), str(c["after"])) for name, c in values["changes"].items()}
        return Note([str(user) for user in values["users"]], changes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Note()


def _write_note(runtime_dir: Path, note: Note) -> None:
    changes = {name: {"before": change.before, "after": change.after} for name, change in note.changes.items()}
    content = json.dumps({"users": note.users, "changes": changes}) + "\n"
    replace_file(runtime_dir / NOTE_NAME, content.encode())


@contextlib.contextmanager
def _locked(runtime_dir: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """One at a time; the lock dies with its process. UserError IN_USE at the deadline."""
    limit = time.monotonic() + timeout_s
    with os.fdopen(open_own(runtime_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT), "r+b") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= limit:
                    raise UserError("another attach or detach is busy with zswap", ExitCode.IN_USE) from None
                time.sleep(_POLL_S)
        yield
