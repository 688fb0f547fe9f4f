"""Sizes as people write them: binary units in, binary units out."""

import re
from fractions import Fraction

from infiniswap.shared.errors import UserError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_PATTERN = re.compile(r"(?P<number>\d{1,20}(?:\.\d{1,12})?)\s*(?:(?P<unit>[kKmMgGtT])(?:i[bB]?)?|[bB])?", re.ASCII)
_DECIMAL_SUFFIX = re.compile(r"[kKmMgGtT][bB]")
SIZE_BYTES_MAX = 1 << 60


def parse_size(text: str | int) -> int:
    """Bytes meant by text such as 512MiB, 1Gi, 1.5G, 64k or 4096 (always powers of 1024).

    Raises UserError for anything else, for fractions of a byte and for more than SIZE_BYTES_MAX.
    """
    shown = str(text).strip()
    if _DECIMAL_SUFFIX.fullmatch(shown.lstrip("0123456789. ")):
        unit = shown.lstrip("0123456789. ")[0].upper()
        raise UserError(f"size '{shown}': sizes are powers of 1024; write {unit}iB instead of {unit}B")
    match = _PATTERN.fullmatch(shown)
    if match is None:
        raise UserError(f"size '{shown}' is not a size; write for example 4096, 64KiB, 512MiB or 1.5GiB")
    size = Fraction(match["number"]) * _UNITS[(match["unit"] or "").upper()]
    if size.denominator != 1:
        raise UserError(f"size '{shown}' is not a whole number of bytes")
    if size > SIZE_BYTES_MAX:
        raise UserError(f"size '{shown}' is too large; the most is {format_size(SIZE_BYTES_MAX)}")
    return int(size)


def format_size(size_bytes: int) -> str:
    """Short binary form: exact where a unit divides size_bytes, else with one digit behind the point (3.3MiB)."""
    for unit in ("T", "G", "M", "K"):
        factor = _UNITS[unit]
        if abs(size_bytes) >= factor:
            if size_bytes % factor == 0:
                return f"{size_bytes // factor}{unit}iB"
            return f"{size_bytes / factor:.1f}{unit}iB"
    return f"{size_bytes}B"


def exact_size(size_bytes: int) -> str:
    """Binary form that parse_size() reads as the same number, for what is written down: 3413KiB, not 3.3MiB."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}iB"
    return f"{size_bytes}B"
