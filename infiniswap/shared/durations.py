"""Durations as people write them: 90s, 10m, 1h30m or plain seconds in, the same out."""

import re

from infiniswap.shared.errors import UserError

_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PARTS = re.compile(r"(?=\d)(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s)?", re.ASCII)
_SHORT_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000}
_SHORT = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(us|ms|s)?", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,6})?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds meant by text such as 90s, 10m, 1h30m, 2d or 45 (seconds). UserError for anything else."""
    shown = text.strip()
    if _SECONDS.fullmatch(shown):
        return float(shown)
    match = _PARTS.fullmatch(shown)
    if match is None:
        raise UserError(f"'{shown}' is no duration; write for example 90s, 10m or 1h30m")
    return float(sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNITS_S.values(), strict=True)))


def parse_microseconds(text: str) -> int:
    """Microseconds meant by text such as 200us, 5ms, 1.5s or 0. UserError for anything else."""
    match = _SHORT.fullmatch(text.strip())
    if match is None or (match[2] is None and float(match[1])):
        raise UserError(f"'{text.strip()}' is no such time; write for example 200us, 5ms or 1.5s")
    return round(float(match[1]) * _SHORT_UNITS_US[match[2] or "s"])


def format_duration(seconds: float) -> str:
    """Short form: below ten seconds with one digit behind the point (3.2s), else in whole units (10m, 1h30m)."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    left = round(seconds)
    parts = []
    for unit, unit_s in _UNITS_S.items():
        count, left = divmod(left, unit_s)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])  # 2d3h: nobody wants its seconds
