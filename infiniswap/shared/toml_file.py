"""Configuration files: whatever is in one, it is a table or one line that says what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

FILE_BYTES_MAX = 1 << 20
INTEGER_BITS_MAX = 63  # TOML's range; Python reads more, and then stumbles over its size


def read_file(file: Path) -> str:
    """The text of file; UserError."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise UserError(f"configuration file {file} does not exist", ExitCode.NOT_FOUND) from None
    except (OSError, ValueError) as error:  # ValueError: no path has a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read configuration file {file}: {reason}", ExitCode.RESOURCES) from None
    if len(raw) > FILE_BYTES_MAX:
        raise UserError(f"configuration file {file} is larger than {format_size(FILE_BYTES_MAX)}")
    try:
        return raw.decode()
    except ValueError as error:
        raise UserError(f"configuration file {file} is not TOML: {error}") from None


def parse_toml(text: str, file: Path) -> dict[str, Any]:
    """The table in text, which stands in file; UserError."""
    try:
        table = tomllib.loads(text)
        _check_integers(table)
    except (ValueError, RecursionError) as error:  # not TOML, a number beyond reason, nested too deep
        raise UserError(f"configuration file {file} is not TOML: {str(error).splitlines()[0]}") from None
    return table


def read_toml(file: Path) -> dict[str, Any]:
    """The table in file; UserError."""
    return parse_toml(read_file(file), file)


def _check_integers(value: object) -> None:
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS_MAX:
        raise ValueError(f"a whole number of more than {INTEGER_BITS_MAX} bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_integers(inner)
