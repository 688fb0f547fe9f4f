"""Attaching and detaching a device with shards: each shard as any device, then what makes one of them.

As swap they are areas of equal priority, over which the kernel spreads pages by itself. Else there is a stripe over
them. An attach that was cut short is completed by the next one, or undone by detach.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infiniswap.kernel_shim import attach, detach, journal, kernel_nbd, stripes, swap, sysfs
from infiniswap.kernel_shim.attach import AttachRequest
from infiniswap.kernel_shim.sysfs import NbdDevice, SwapArea
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.shard_names import is_shard, number_of, whole_of

PRIORITY_DEFAULT = 0  # without one the kernel gives each area another, and fills one after the other
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """One shard to attach. open_connections: as attach() takes it."""

    request: AttachRequest
    open_connections: Callable[[], int] | None = None


def _quiet(_line: str) -> None:
    return None


def with_options(request: AttachRequest, number: int) -> AttachRequest:
    """The request of shard number, out of what was asked for the whole."""
    priority = PRIORITY_DEFAULT if request.swap and request.priority is None else request.priority
    index = None if request.index is None else request.index + number
    return replace(request, index=index, priority=priority)


def attach_all(whole: str, parts: Sequence[Part], *, say: Say = _quiet, root: Path = Path("/")) -> list[str]:
    """Attach them in order; the nodes to use: those of all shards as swap, else that of the stripe. UserError.

    Whatever goes wrong, what this attach has made is taken away again.
    """
    runtime_dir, as_swap = parts[0].request.runtime_dir, parts[0].request.swap
    kernel_nbd.require_root("attaching")
    made: list[str] = []
    devices: list[NbdDevice] = []
    with journal.locked(runtime_dir, whole):
        if nodes := attached_nodes(whole, parts, root):
            raise UserError(f"device '{whole}' is attached already, as {' '.join(nodes)}", ExitCode.IN_USE)
        there = [_existing(part.request, root) for part in parts]
        stripe = stripes.find(whole, root)
        try:
            for part, device in zip(parts, there, strict=True):
                if device is None:
                    done = attach.attach(part.request, say=say, open_connections=part.open_connections, root=root)
                    made.append(part.request.name)
                    device = done.device  # noqa: PLW2901
                devices.append(device)
            if as_swap:
                return [device.path for device in devices]
            return [(stripe or stripes.create(whole, devices, root)).path]
        except BaseException as error:
            _undo(made, runtime_dir, error, say, root)
            raise


def attached_nodes(whole: str, parts: Sequence[Part], root: Path = Path("/")) -> list[str]:
    """The nodes to use of what is attached as it is asked for, all of it; none otherwise. UserError: for another use.

    A device without shards is its own only part.
    """
    there = [_existing(part.request, root) for part in parts]
    stripe = stripes.find(whole, root)
    if not all(there) or not (parts[0].request.swap or stripe is not None or len(parts) == 1):
        return []
    return [stripe.path] if stripe else [device.path for device in there if device]


def _existing(request: AttachRequest, root: Path) -> NbdDevice | None:
    """The device of a shard that an attach which was cut short has left whole; UserError: it is another use's."""
    note = journal.read(request.runtime_dir, request.name)
    device = sysfs.attached(request.name, root, request.socket_path)
    if device is None or (note is not None and note.stage == "connecting" and not sysfs.swap_on(device, root)):
        return None  # attach() cleans up
    if (sysfs.swap_on(device, root) is not None) != request.swap:
        whole = whole_of(request.name)
        raise UserError(
            f"'{request.name}' is attached already, as {device.path}, and for another use: 'infiniswap device detach "
            f"{whole}' first",
            ExitCode.IN_USE,
        )
    return device


def _undo(made: Sequence[str], runtime_dir: Path, cause: BaseException, say: Say, root: Path) -> None:
    for name in reversed(made):
        try:
            detach.detach(name, runtime_dir, served=True, say=say, root=root)
        except UserError as second:
            say(f"taking '{name}' away after '{cause}' failed too: {second}")


def attached_names(whole: str, runtime_dir: Path, root: Path = Path("/")) -> list[str]:
    """Shards of device whole that the kernel has, or that an attach has noted, in order."""
    found = {
        device.identifier.name for device in sysfs.read_nbd_devices(root) if device.connected and device.identifier
    }
    found |= {path.name.removesuffix(journal.NOTE_SUFFIX) for path in runtime_dir.glob(f"*{journal.NOTE_SUFFIX}")}
    return sorted((name for name in found if is_shard(name) and whole_of(name) == whole), key=number_of)


def detach_all(
    whole: str,
    runtime_dir: Path,
    *,
    served: Callable[[str], bool],
    swapoff_timeout_s: float = swap.SWAPOFF_TIMEOUT_S,
    progress: Callable[[SwapArea], None] | None = None,
    say: Say = _quiet,
    root: Path = Path("/"),
) -> list[int]:
    """Take them all away: swapoff of each first, and only when all are off is anything disconnected. UserError.

    served: whether the service of a shard answers. Returns the numbers of the kernel devices.
    """
    kernel_nbd.require_root("detaching")
    with journal.locked(runtime_dir, whole):
        names = attached_names(whole, runtime_dir, root)
        devices = [(name, sysfs.attached(name, root)) for name in names]
        stripe = stripes.find(whole, root)
        if stripe is not None:
            stripes.check_unused(stripe, root)
        areas = [(name, device, area) for name, device in devices if device and (area := sysfs.swap_on(device, root))]
        for name, device, area in areas:
            detach.check_served(device, area, name, served=not area.used_bytes or served(name))
        for _, device, _ in areas:
            swap.stop(device, timeout_s=swapoff_timeout_s, progress=progress, root=root)
        for _, known in devices:
            if known is not None:
                _check_free(known, stripe, root)
        if stripe is not None:
            stripes.remove(stripe)
        found = [detach.detach(name, runtime_dir, served=True, say=say, root=root).index for name in reversed(names)]
        return found[::-1]


def _check_free(device: NbdDevice, stripe: stripes.Stripe | None, root: Path) -> None:
    others = tuple(holder for holder in device.holders if stripe is None or holder != stripe.node)
    detach.check_unused(replace(device, holders=others), root)
