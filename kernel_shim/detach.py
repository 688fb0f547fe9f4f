"""`infiniswap device detach`: swapoff first, and only when that has worked is the kernel device disconnected."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infiniswap.kernel_shim import journal, kernel_nbd, swap, sysfs, zswap
from infiniswap.kernel_shim.attach import clean_up
from infiniswap.kernel_shim.journal import Note
from infiniswap.kernel_shim.sysfs import NbdDevice, SwapArea
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

GONE_TIMEOUT_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Detached:
    """What was done: the device that went, None when only a left-over was cleaned up."""

    index: int
    swapped_off: bool


def find(name: str, note: Note | None, root: Path = Path("/")) -> NbdDevice:
    """The kernel device that was attached as name; UserError NOT_FOUND when there is none.

    The note tells two devices of one name apart, that are served from different folders.
    """
    for device in sysfs.read_nbd_devices(root):
        identifier = device.identifier
        ours = device.backend == note.identifier if note else identifier is not None and identifier.name == name
        if device.connected and ours:
            return device
    raise UserError(f"device '{name}' is not attached", ExitCode.NOT_FOUND)


def is_attached(name: str, runtime_dir: Path, root: Path = Path("/")) -> bool:
    """Whether there is anything to detach, an attach that was cut short included."""
    note = journal.read(runtime_dir, name)
    if note is not None and note.stage == "connecting":
        return True
    try:
        find(name, note, root)
    except UserError:
        return False
    return True


def check_unused(device: NbdDevice, root: Path = Path("/")) -> None:
    """UserError IN_USE when a file system or another block device stands on it."""
    mounts = sysfs.mounts_of(device, root)
    if mounts:
        raise UserError(
            f"{device.path} is mounted on {mounts[0]}: umount it first; nothing was disconnected", ExitCode.IN_USE
        )
    if device.holders:
        raise UserError(f"{device.path} is used by {device.holders[0]}; nothing was disconnected", ExitCode.IN_USE)


def check_served(device: NbdDevice, area: SwapArea, name: str, *, served: bool) -> None:
    """UserError REFUSED when pages are out and nobody is there to give them back: swapoff would hang."""
    if area.used_bytes and not served:
        raise UserError(
            f"{format_size(area.used_bytes)} are swapped out to {device.path}, and device '{name}' does not run, or "
            f"does not answer: start it with `infiniswap device serve {name}` first; nothing was disconnected",
            ExitCode.REFUSED,
        )


def detach(
    name: str,
    runtime_dir: Path,
    *,
    served: bool,
    swapoff_timeout_s: float = swap.SWAPOFF_TIMEOUT_S,
    progress: Callable[[SwapArea], None] | None = None,
    say: Callable[[str], None] = lambda _line: None,
    root: Path = Path("/"),
) -> Detached:
    """Take the device away from the kernel. UserError when it is in use or swapoff fails; then nothing has changed.

    served: the device service answers now. say: hears what was put back of zswap.
    """
    kernel_nbd.require_root("detaching")  # without module nbd nothing is attached, and no kernel is to be installed
    with journal.locked(runtime_dir, name):
        left_over = clean_up(name, runtime_dir, root, say)
        if left_over is not None:
            return Detached(left_over, swapped_off=False)
        device = find(name, journal.read(runtime_dir, name), root)
        area = sysfs.swap_on(device, root)
        if area is not None:
            check_served(device, area, name, served=served)
            swap.stop(device, timeout_s=swapoff_timeout_s, progress=progress, root=root)
        check_unused(device, root)
        kernel_nbd.disconnect(device.index, exclusive=True)
        wait_until_gone(device.index, root=root)
        told = zswap.leave(runtime_dir, device.backend, root)
        if told is not None:
            say(told)
        journal.remove(runtime_dir, name)
        return Detached(device.index, swapped_off=area is not None)


def wait_until_gone(index: int, timeout_s: float = GONE_TIMEOUT_S, root: Path = Path("/")) -> None:
    """Return when the kernel has let the connections go; UserError at the deadline."""
    limit = time.monotonic() + timeout_s
    while True:
        device = sysfs.read_nbd_device(root / f"sys/block/nbd{index}")
        if device is None or not device.connected:
            return
        if time.monotonic() >= limit:
            raise UserError(
                f"/dev/nbd{index} is still connected {timeout_s:g} s after the request to disconnect", ExitCode.FAILED
            )
        time.sleep(_POLL_S)
