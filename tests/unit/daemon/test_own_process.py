"""The daemon's own memory is locked without the slabs, and its score is lowered, each only as far as is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.daemon.own_process import SCORE, ask_to_be_spared

CODE = """
import resource, sys
from infiniswap.daemon.arena import Arena
from infiniswap.daemon.own_process import lock_own_memory, unlock_memory
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
    import ctypes
    # Without CAP_IPC_LOCK (bit 14) the limit counts: capset(2), version 3, everything but that.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 14); sets[1] &= ~(1 << 14)
    assert libc.capset(header, sets) == 0
arena = Arena(1 << 30)
arena.populate(0, 64 << 20)
print(lock_own_memory([(arena.address, arena.total_bytes)]))
arena.populate(64 << 20, 64 << 20)
more = bytearray(16 << 20)
for line in open("/proc/self/smaps"):
    print(line.rstrip())
print(arena.occupied_bytes())
unlock_memory()
print(next(line for line in open("/proc/self/status") if line.startswith("VmLck")))
"""


def run(kind: str) -> str:
    """A process that locks its memory, with 128 MiB of slabs filled and 16 MiB taken afterwards."""
    return subprocess.run(
        [sys.executable, "-c", CODE, kind], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def locked_kib(smaps: str, name: str) -> int:
    """KiB locked in mappings of that name; "" for all."""
    total, counting = 0, False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counting = name in line
        elif counting and line.startswith("Locked:"):
            total += int(line.split()[1])
    return total


def may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK."""
    found = re.search(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    return found is not None and bool(int(found[1], 16) >> 14 & 1)


@pytest.mark.skipif(not may_lock(), reason="this user may not lock memory")
def test_slabs_are_not_locked_and_all_else_is() -> None:
    """What was there and what comes later, code included; the slabs can go at any time."""
    out = run("free")
    assert out.startswith("True\n")
    assert locked_kib(out, "memfd:infiniswap-slabs") == 0
    assert locked_kib(out, "") > 16 << 10
    assert locked_kib(out, "libc.so") > 0
    assert str(128 << 20) in out.splitlines()
    assert re.search(r"VmLck:\s+0 kB", out)


@pytest.mark.skipif(not may_lock(), reason="this user may not lock memory, with or without the limit")
def test_a_limit_is_no_failure() -> None:
    """Without the right to it nothing is locked and all goes on, the slabs' memory included."""
    out = run("limited")
    assert out.startswith("False\n")
    assert locked_kib(out, "") == 0


@pytest.mark.parametrize(("score", "expected"), [("0", SCORE), ("500", SCORE), ("-900", -900), ("-1000", -1000)])
def test_the_score_is_only_lowered(tmp_path: Path, score: str, expected: int) -> None:
    """What systemd or the user made lower stays."""
    file = tmp_path / "oom_score_adj"
    file.write_text(score)
    assert ask_to_be_spared(file)
    assert int(file.read_text()) == expected


def test_a_score_that_cannot_be_set(tmp_path: Path) -> None:
    """Without the right to it the daemon serves all the same."""
    assert not ask_to_be_spared(tmp_path / "none" / "oom_score_adj")
