"""Health codes that nobody wants to hear of for a while: kept in a file beside the devices' state."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infiniswap.policy.health import CODES, Finding
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import default_state_dir
from infiniswap.shared.private_files import replace_file

FILE_BYTES_MAX = 256 << 10
MUTES_MAX = 256  # no more are kept


@dataclass(frozen=True, slots=True)
class Mute:
    """only: a device or a peer, None for all. until_s: seconds since 1970, None for ever."""

    code: str
    only: str | None = None
    until_s: float | None = None

    def covers(self, finding: Finding) -> bool:
        """Whether it silences the finding."""
        return self.code == finding.code and (self.only is None or finding.about(self.only))


def mutes_file() -> Path:
    """Where they are; no device's name begins with a dot."""
    return default_state_dir() / ".mutes.json"


def check_code(code: str) -> str:
    """A code that exists, in upper case; else UserError with the nearest one."""
    known = code.upper()
    if known in CODES:
        return known
    near = difflib.get_close_matches(known, CODES, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CODES)}"
    raise UserError(f"no health code '{code}'; {hint}")


def read_mutes(file: Path, now_s: float) -> list[Mute]:
    """Those that are in force. A file that cannot be read silences nothing; UserError where it is not allowed to."""
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.read(FILE_BYTES_MAX))
    except PermissionError:
        raise UserError(f"no permission to read {file}: run this as its user or root", ExitCode.RESOURCES) from None
    except (OSError, ValueError, RecursionError):
        return []
    mutes = [_parse(entry) for entry in found] if isinstance(found, list) else []
    return [mute for mute in mutes if mute is not None and (mute.until_s is None or mute.until_s > now_s)][:MUTES_MAX]


def _parse(entry: object) -> Mute | None:
    if not isinstance(entry, dict):
        return None
    code, only, until_s = entry.get("code"), entry.get("only"), entry.get("until_s")
    if not isinstance(code, str) or code not in CODES:
        return None
    good = isinstance(only, str | None) and isinstance(until_s, int | float | None)
    return Mute(code, only, until_s) if good else None


def write_mutes(file: Path, mutes: Sequence[Mute]) -> None:
    """In one step, so that a reader finds the old ones or the new ones. UserError."""
    if len(mutes) > MUTES_MAX:
        raise UserError(f"more than {MUTES_MAX} mutes; unmute some first", ExitCode.RESOURCES)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, json.dumps([asdict(mute) for mute in mutes]).encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}", ExitCode.RESOURCES) from None


def split(findings: Iterable[Finding], mutes: Sequence[Mute]) -> tuple[list[Finding], list[tuple[Finding, Mute]]]:
    """Those to hear of, the worst first, and those that a mute silences."""
    loud, silent = [], []
    for finding in sorted(findings, key=lambda f: (-f.severity, f.code, f.device or "", f.peer or "")):
        mute = next((mute for mute in mutes if mute.covers(finding)), None)
        if mute is None:
            loud.append(finding)
        else:
            silent.append((finding, mute))
    return loud, silent
