"""Running client programs to their end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.pace import paced

TOOL_TIMEOUT_S = paced(60.0)


def tool(*arguments: str | Path, code: int = 0, folder: Path | None = None, timeout_s: float = TOOL_TIMEOUT_S) -> str:
    """Run a client program in folder; its stdout. AssertionError when it ends with another exit code than code."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == code, f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def fio_arguments(uri: str, size_bytes: int, *options: str) -> Sequence[str]:
    """A fio command that verifies what it wrote on uri and ends at the first wrong byte or failed request."""
    common = [
        "--thread",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ]
    return ["fio", "--name=verify", *common, f"--size={size_bytes}", *options]
