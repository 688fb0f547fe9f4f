"""The stripe over the kernel devices of a device with shards: one block device for a file system."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infiniswap.kernel_shim import commands, kernel_call, sysfs
from infiniswap.kernel_shim.kernel_call import CALL_TIMEOUT_S, KernelError, NoAnswerError
from infiniswap.kernel_shim.sysfs import SECTOR_BYTES, NbdDevice
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import CHUNK_BYTES

PREFIX = "infiniswap-"


@dataclass(frozen=True, slots=True)
class Stripe:
    """A device-mapper device of ours."""

    name: str
    node: str  # dm-N

    @property
    def path(self) -> str:
        """Device node."""
        return f"/dev/{self.node}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def find(whole: str, root: Path = Path("/")) -> Stripe | None:
    """The stripe over the shards of device whole."""
    name = PREFIX + whole
    for entry in sorted((root / "sys/block").glob("dm-*")):
        if _text(entry / "dm/name") == name:
            return Stripe(name, entry.name)
    return None


def parameters(devices: Sequence[NbdDevice], root: Path = Path("/")) -> str:
    """Of target striped: how many, the chunk in sectors, then each device and where it begins on it."""
    numbers = [_text(root / f"sys/block/nbd{device.index}/dev") for device in devices]
    return " ".join([str(len(devices)), str(CHUNK_BYTES // SECTOR_BYTES), *(f"{number} 0" for number in numbers)])


def create(whole: str, devices: Sequence[NbdDevice], root: Path = Path("/")) -> Stripe:
    """Make it over devices, in this order, which never changes. UserError."""
    if not (root / "sys/module/dm_mod").exists():
        commands.run(["modprobe", "dm-mod"], CALL_TIMEOUT_S)  # the call says what is wrong
    sectors = sum(device.size_bytes for device in devices) // SECTOR_BYTES
    name = PREFIX + whole
    request = {"name": name, "sectors": sectors, "target": "striped", "parameters": parameters(devices, root)}
    minor = _call({"operation": "stripe-create", **request})["minor"]
    return Stripe(name, f"dm-{minor}")


def check_unused(stripe: Stripe, root: Path = Path("/")) -> None:
    """UserError IN_USE while a file system, swap or another device stands on it."""
    number = _text(root / "sys/block" / stripe.node / "dev")
    mounts = sysfs.parse_mounts(_text(root / "proc/self/mountinfo")).get(number, [])
    nothing = "nothing was disconnected"
    if mounts:
        raise UserError(f"{stripe.path} is mounted on {mounts[0]}: umount it first; {nothing}", ExitCode.IN_USE)
    if any(Path(area.path).name == stripe.node for area in sysfs.read_swaps(root)):
        raise UserError(f"{stripe.path} is in use as swap: swapoff first; {nothing}", ExitCode.IN_USE)
    holders = sorted(path.name for path in (root / "sys/block" / stripe.node / "holders").glob("*"))
    if holders:
        raise UserError(f"{stripe.path} is used by {holders[0]}; {nothing}", ExitCode.IN_USE)


def remove(stripe: Stripe) -> None:
    """Take it away. UserError IN_USE when anybody has it open."""
    _call({"operation": "stripe-remove", "name": stripe.name}, stripe)


def _call(request: dict[str, object], stripe: Stripe | None = None) -> dict[str, int]:
    try:
        return kernel_call.call(request, CALL_TIMEOUT_S)
    except KernelError as error:
        if stripe is not None and error.number == errno.EBUSY:
            raise UserError(f"{stripe.path} is in use; nothing was disconnected", ExitCode.IN_USE) from None
        if error.number in (errno.ENOENT, errno.ENODEV) and stripe is None:
            raise UserError(
                "this kernel has no device mapper, which makes one block device of shards: run `modprobe dm-mod` and "
                "see what is missing; --swap does without",
                ExitCode.NOT_FOUND,
            ) from None
        raise UserError(f"device mapper refuses {request['operation']}: {error}", ExitCode.FAILED) from None
    except NoAnswerError as error:
        raise UserError(f"device mapper: {error}; see `dmesg`", ExitCode.FAILED) from None
