"""A small file that is replaced as a whole; alone, so that who needs it before memory is protected loads no numpy."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Put content in place of path in one step, readable by the owner alone."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    new.rename(path)
