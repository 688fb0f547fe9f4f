"""Starting a program with listening sockets, as a service manager does (LISTEN_FDS, LISTEN_PID)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# The sockets become descriptors 3 and up, and LISTEN_PID the program's own, which only a step in between can do.
_STARTER = """
import fcntl, os, sys
count = int(sys.argv[1])
for index, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:2 + count]]):
    os.dup2(fd, 3 + index)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


def activated(command: Sequence[str], *descriptors: int) -> list[str]:
    """A command that runs command with descriptors, which must be passed to it."""
    return [sys.executable, "-c", _STARTER, str(len(descriptors)), *map(str, descriptors), *command]
