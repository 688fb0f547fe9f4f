"""Foreign data is never overwritten, and a swapoff that fails is reported as such."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infiniswap.kernel_shim import swap
from infiniswap.kernel_shim.commands import Done, run
from infiniswap.kernel_shim.sysfs import NbdDevice
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import FakeKernel

SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"


def image(tmp_path: Path, *command: str) -> Path:
    """A file of 8 MiB with what command writes to it."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    if command:
        tool = shutil.which(command[0], path=SBIN)
        assert tool is not None
        subprocess.run([tool, *command[1:], str(path)], check=True, capture_output=True, timeout=30)
    return path


def signature(path: Path) -> str | None:
    """What the real blkid and our judgement make of path."""
    done = run(["blkid", "-p", "-o", "export", str(path)], 20)
    return swap.foreign_signature(done.code, done.output)


def test_real_signatures(tmp_path: Path) -> None:
    """With the real blkid: an empty image and a swap area may go, a file system may not."""
    assert signature(image(tmp_path)) is None
    assert signature(image(tmp_path, "mkswap")) is None
    assert signature(image(tmp_path, "mkfs.ext4", "-q", "-F")) == "ext4"


@pytest.mark.parametrize(
    ("code", "output", "found"),
    [
        (2, "", None),
        (0, "DEVNAME=/dev/nbd0\nLABEL=infiniswap\nTYPE=swap\nUSAGE=other\n", None),
        (0, "TYPE=swsuspend\n", "swsuspend"),
        (0, "PTTYPE=gpt\n", "a gpt partition table"),
        (0, "DEVNAME=/dev/nbd0\nUSAGE=raid\n", "an unknown signature"),
        (8, "", "several signatures"),
        (4, "", "something that blkid could not read (exit code 4)"),
    ],
)
def test_foreign_signature(code: int, output: str, found: str | None) -> None:
    """Every answer that blkid can give; a hibernated system's image is foreign, although it is on swap."""
    assert swap.foreign_signature(code, output) == found


DEVICE = NbdDevice(0, 8 << 20, True, None)


class Commands:
    """Answers commands by their first word, and records them."""

    def __init__(self, **answers: Done) -> None:
        self.answers = answers
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], _timeout_s: float, **_: Any) -> Done:
        self.calls.append(command)
        return self.answers[command[0]]


def test_check_refuses() -> None:
    """Foreign data ends in REFUSED and a way out; a device that does not answer is said to be that."""
    with pytest.raises(UserError, match=r"carries xfs.*wipefs") as caught:
        swap.check_empty(DEVICE, Commands(blkid=Done(0, "TYPE=xfs\n", "")))
    assert caught.value.code == ExitCode.REFUSED
    with pytest.raises(UserError, match="does not answer reads"):
        swap.check_empty(DEVICE, Commands(blkid=Done(-1, "", "", timed_out=True)))


def test_start() -> None:
    """Priority and discard reach swapon; a failing mkswap ends it."""
    fine = Done(0, "", "")
    commands = Commands(mkswap=fine, swapon=fine)
    swap.start(DEVICE, priority=7, discard=True, run=commands)
    assert commands.calls[1] == ["swapon", "--priority", "7", "--discard", "/dev/nbd0"]
    commands = Commands(mkswap=Done(1, "", "mkswap: no\n"), swapon=fine)
    with pytest.raises(UserError, match="mkswap: no"):
        swap.start(DEVICE, priority=None, discard=False, run=commands)
    assert len(commands.calls) == 1


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (Done(255, "", "swapoff: /dev/nbd0: swapoff failed: Cannot allocate memory\n"), "not enough free memory"),
        (Done(-1, "", "", timed_out=True), "not done after 3 s"),
        (Done(255, "", "swapoff: not superuser.\n"), "not superuser"),
    ],
)
def test_swapoff_fails(tmp_path: Path, done: Done, said: str) -> None:
    """What /proc/swaps says counts: while the area is there, swapoff has failed, and the reason is told."""
    kernel = FakeKernel(tmp_path)
    kernel.swap(0, used_bytes=4 << 20)
    heard: list[int] = []
    with pytest.raises(UserError, match=said) as caught:
        swap.stop(
            DEVICE,
            timeout_s=3,
            progress=lambda a: heard.append(a.used_bytes),
            run=Commands(swapoff=done),
            root=tmp_path,
        )
    assert "4MiB still out" in str(caught.value)
    assert "nothing was disconnected" in str(caught.value)
    assert heard == [4 << 20]
