"""Compiles the floor programs (floor/*.c)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

SOURCES = Path(__file__).with_name("floor")
PROGRAMS = ("memory_server", "relay")
STRICT = ("-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow")
COMPILER_TIMEOUT_S = 120.0


def build_floor(folder: Path, flags: Sequence[str] = ("-O2", "-g")) -> None:
    """Bring both programs in folder up to date. UserError with what the compiler said when it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    changed_s = max(path.stat().st_mtime for path in [*SOURCES.glob("*.[ch]"), Path(__file__)])
    shared = [path for path in sorted(SOURCES.glob("*.c")) if path.stem not in PROGRAMS]
    for program in PROGRAMS:
        target = folder / program
        if not target.exists() or target.stat().st_mtime <= changed_s:
            build_program(target, [SOURCES / f"{program}.c", *shared], flags)


def build_program(target: Path, sources: Sequence[Path], flags: Sequence[str] = ("-O2", "-g")) -> None:
    """Compile target. UserError with what the compiler said when it fails."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}")  # renamed when whole: two builds may run at once
    command = ["cc", *STRICT, *flags, "-o", str(fresh), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S, check=False)
    except OSError as error:
        raise UserError(f"cc cannot be started: {error.strerror} (package gcc)", ExitCode.NOT_FOUND) from None
    if done.returncode != 0:
        raise UserError(f"compiling {target.name} failed:\n{done.stderr}", ExitCode.FAILED)
    fresh.replace(target)
