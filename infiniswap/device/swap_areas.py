"""Which logs of a folder are swap areas: python -m infiniswap.device.swap_areas FOLDER prints their names, one a line.

A swap area holds nothing while it is off, so a purge of the package removes it. Of an image blkid tells; into a log it
does not look, and when a purge asks, nothing is installed any more that does. So the removal before it asks here.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from infiniswap.engine.log_binding import PAGE_BYTES, Log, LogFlag, holds_log

SIGNATURE = b"SWAPSPACE2"  # at the end of the first page; a hibernated system's image has another one there


def swap_areas(folder: Path) -> Iterator[str]:
    """Their names, in order. What cannot be read is none: it may hold data."""
    for path in sorted(folder.iterdir()):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if "\n" not in path.name and stat.S_ISREG(os.fstat(fd).st_mode) and holds_log(fd) and _is_swap(fd):
                yield path.name
        except OSError:
            continue
        finally:
            os.close(fd)


def _is_swap(fd: int) -> bool:
    log = Log(fd, LogFlag.READ_ONLY)
    try:
        return log.read(0, PAGE_BYTES).endswith(SIGNATURE)
    finally:
        log.close()


if __name__ == "__main__":
    for name in swap_areas(Path(sys.argv[1])):
        print(name)
