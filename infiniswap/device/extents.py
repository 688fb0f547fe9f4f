"""Where a file has data and where it has holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def file_extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, end) of data as SEEK_DATA and SEEK_HOLE see it; all of it where they are not supported."""
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                yield position, size_bytes
                return
            raise
        if start >= size_bytes:
            return
        yield start, position
