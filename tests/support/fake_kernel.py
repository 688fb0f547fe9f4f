"""A tree that looks like /proc and /sys with nbd devices, and calls that change it: a kernel for tests without root."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infiniswap.kernel_shim import attach, kernel_nbd
from infiniswap.kernel_shim.sysfs import NbdDevice, read_nbd_device
from infiniswap.shared.errors import ExitCode, UserError

NBD_MAJOR = 43


class FakeKernel:
    """Root of the tree, and what was asked of it. fail_with: what connect raises after it has made the device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.connects: list[dict[str, Any]] = []
        self.disconnects: list[int] = []
        self.fail_with: BaseException | None = None
        (root / "sys/block").mkdir(parents=True, exist_ok=True)
        (root / "proc/self").mkdir(parents=True, exist_ok=True)
        (root / "dev").mkdir(exist_ok=True)
        (root / "proc/swaps").write_text("Filename Type Size Used Priority\n")
        (root / "proc/self/mountinfo").write_text("")

    def add(self, index: int, *, size_bytes: int, backend: str | None) -> NbdDevice:
        """A connected device."""
        entry = self.root / f"sys/block/nbd{index}"
        (entry / "holders").mkdir(parents=True)
        (entry / "size").write_text(f"{size_bytes // 512}\n")
        (entry / "dev").write_text(f"{NBD_MAJOR}:{index}\n")
        (entry / "pid").write_text("77\n")
        if backend is not None:
            (entry / "backend").write_text(backend + "\n")
        (self.root / f"dev/nbd{index}").touch()
        device = read_nbd_device(entry)
        assert device is not None
        return device

    def swap(self, index: int, used_bytes: int) -> None:
        """Use the device as swap."""
        with (self.root / "proc/swaps").open("a") as file:
            file.write(f"/dev/nbd{index} partition 262140 {used_bytes >> 10} 5\n")

    def swapoff(self) -> None:
        """End all swap."""
        (self.root / "proc/swaps").write_text("Filename Type Size Used Priority\n")

    def mount(self, index: int, point: str) -> None:
        """Mount the device."""
        with (self.root / "proc/self/mountinfo").open("a") as file:
            file.write(f"30 1 {NBD_MAJOR}:{index} / {point} rw - ext4 /dev/nbd{index} rw\n")

    def connect(self, sockets: Sequence[socket.socket], **options: Any) -> int:
        """Stands in for kernel_nbd.connect."""
        index = options["index"] if options["index"] is not None else len(self.connects)
        if (self.root / f"sys/block/nbd{index}/pid").exists():
            raise UserError(f"/dev/nbd{index} is in use", ExitCode.IN_USE)
        self.connects.append({"sockets": len(sockets), **options})
        self.add(index, size_bytes=options["size_bytes"], backend=options["identifier"])
        if self.fail_with is not None:
            raise self.fail_with
        return int(index)

    def disconnect(self, index: int, *, exclusive: bool, timeout_s: float = 1.0) -> None:
        """Stands in for kernel_nbd.disconnect."""
        del timeout_s
        assert exclusive
        self.disconnects.append(index)
        (self.root / f"sys/block/nbd{index}/pid").unlink()
        (self.root / f"sys/block/nbd{index}/backend").unlink()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in place of the real one."""
        patch.setattr(kernel_nbd, "require_kernel", lambda **_: None)
        patch.setattr(kernel_nbd, "connect", self.connect)
        patch.setattr(kernel_nbd, "disconnect", self.disconnect)
        patch.setattr(attach, "_is_block_device", Path.exists)
