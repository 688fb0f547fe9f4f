"""How many pages the last orderly stop of a device has told as lost: for who waited for its end and is not its parent.

What was lost in an earlier life, and told at its end, is not counted again; the mark on the backup has all of them.
"""

from __future__ import annotations

from pathlib import Path

from infiniswap.shared.private_files import replace_file

_NAME = "lost"
_BYTES_MAX = 20


def note_loss(folder: Path, pages: int) -> None:
    """Say so in the device's folder, durably; 0 takes away what an earlier stop said. OSError."""
    if pages:
        replace_file(folder / _NAME, f"{pages}\n".encode(), sync=True)
    else:
        (folder / _NAME).unlink(missing_ok=True)


def told_loss(folder: Path) -> int:
    """What the last orderly stop of the device of that folder has said; 0 where it cannot be read."""
    try:
        with (folder / _NAME).open("rb") as stream:
            return max(int(stream.read(_BYTES_MAX)), 0)
    except (OSError, ValueError):
        return 0
