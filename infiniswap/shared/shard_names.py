"""How the shards of a device are called: VOL~0, VOL~1 and so on, and what is theirs likewise."""

from __future__ import annotations

from pathlib import Path

SHARDS_MAX = 16
MARK = "~"  # no device that a user names has it
CHUNK_BYTES = 256 << 10  # of the stripe over them: part of what is on their backups, so it never changes


def shard_name(whole: str, number: int) -> str:
    """Of one shard of device whole."""
    return f"{whole}{MARK}{number}"


def shard_path(path: Path, number: int) -> Path:
    """Its file, where that of the whole is path."""
    return path.with_name(shard_name(path.name, number))


def is_shard(name: str) -> bool:
    """Whether it is the name of a shard."""
    return MARK in name


def whole_of(name: str) -> str:
    """The device that name is a shard of; name itself where it is none."""
    return name.partition(MARK)[0]


def number_of(name: str) -> int:
    """Which shard it is, 0 for a whole device."""
    digits = name.partition(MARK)[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
