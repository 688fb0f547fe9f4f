"""What the source tree holds."""

from __future__ import annotations

import subprocess
from pathlib import Path


def tree(root: Path) -> list[Path]:
    """Files of the tree: those in git and new ones, without what is ignored, links, and submodules."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=60, check=True)
    paths = [root / name for name in done.stdout.decode().split("\0") if name]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    assert len(files) > 20
    return files
