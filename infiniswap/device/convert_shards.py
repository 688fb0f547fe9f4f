"""What the name of a device alone means once its shards are converted, one by one: the last one says so."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from infiniswap.device import remembered
from infiniswap.device.shards import Record, read_record
from infiniswap.device.state import StateDirectory
from infiniswap.shared.errors import UserError
from infiniswap.shared.shard_names import shard_name

log = logging.getLogger(__name__)


def common_backup(whole: Path, layout: str) -> str | None:
    """What all backups of the device in that folder are called after, where each shard's is of that layout."""
    try:
        record = read_record(whole)
    except UserError:
        return None
    found = set()
    for number in range(0 if record is None else record.shards):
        part = shard_name("", number)
        called = _called(whole.with_name(f"{whole.name}{part}"), layout)
        if called is None or not called.endswith(part):
            return None
        found.add(called.removesuffix(part))
    return found.pop() if len(found) == 1 else None


def _called(shard: Path, layout: str) -> str | None:
    """Its backup, as its user calls that where it is known; None: it is of another layout."""
    record, known = StateDirectory(shard).read_record(), remembered.read(shard)
    if record is None or record.layout != layout:
        return None
    given = None if known is None else known.given.get("backup")
    return given if isinstance(given, str) and os.path.realpath(given) == record.backup else record.backup


def remember_whole(whole: Path, layout: str) -> None:
    """The last of its shards has been converted: its name alone starts it with that."""
    backup = common_backup(whole, layout)
    if backup is None:
        return
    known, record = remembered.read(whole), read_record(whole)
    try:
        if known is not None and "backup" in known.given:
            replace(known, given={**known.given, "backup": backup, "backup_layout": layout}).write(whole)
        if record is not None and record.backup != backup:
            Record(record.shards, backup).write(whole)
    except OSError as error:
        log.warning("the new backups of '%s' cannot be remembered for the next start: %s", whole.name, error.strerror)
