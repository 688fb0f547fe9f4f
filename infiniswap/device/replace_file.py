"""A small file that is replaced as a whole; alone, so that who needs it before memory is protected loads no numpy."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Put content in place of path in one step, readable by the owner alone. sync: it is on the disk before that."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
