"""What kind of file system a file lies on (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


def file_system(device: int, mountinfo: str) -> str:
    """Type of the file system with that number (st_dev), "" when it is not there."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [number] and after:
            return after.split()[0]
    return ""
