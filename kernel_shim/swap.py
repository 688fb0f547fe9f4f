"""Swap on an attached device: what is on it already, mkswap, swapon, swapoff."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infiniswap.kernel_shim import commands
from infiniswap.kernel_shim.sysfs import NbdDevice, SwapArea, swap_on
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size

LABEL = "infiniswap"
PROBE_TIMEOUT_S = 30.0
MKSWAP_TIMEOUT_S = 60.0
SWAPON_TIMEOUT_S = 120.0
SWAPOFF_TIMEOUT_S = 1800.0
PRIORITY_MAX = 32767
_BLKID_NOTHING = 2
_BLKID_AMBIVALENT = 8


def parse_probe(text: str) -> dict[str, str]:
    """Tags in the output of `blkid -p -o export`."""
    tags: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            tags[key] = value
    return tags


def foreign_signature(code: int, output: str) -> str | None:
    """What stands on a device that is not ours to overwrite, in words; from blkid's exit code and output.

    Nothing, or a swap area (which holds nothing while it is off), may be overwritten. A hibernated system's image has
    type swsuspend and so counts as foreign.
    """
    if code == _BLKID_NOTHING:
        return None
    if code == _BLKID_AMBIVALENT:
        return "several signatures"
    if code != 0:
        return f"something that blkid could not read (exit code {code})"
    tags = parse_probe(output)
    if "TYPE" in tags:
        return None if tags["TYPE"] == "swap" else tags["TYPE"]
    if "PTTYPE" in tags:
        return f"a {tags['PTTYPE']} partition table"
    return None if not (tags.keys() - {"DEVNAME"}) else "an unknown signature"


def probe(node: str, run: commands.Runner = commands.run) -> str | None:
    """What foreign_signature() makes of the block device node; UserError when that cannot be found out."""
    done = run(["blkid", "-p", "-o", "export", node], PROBE_TIMEOUT_S)
    if done.timed_out:
        raise UserError(f"{node} does not answer reads; is the device service running?", ExitCode.FAILED)
    if done.code == 127:
        raise UserError("blkid is missing: apt-get install util-linux", ExitCode.NOT_FOUND)
    return foreign_signature(done.code, done.output)


def check_empty(device: NbdDevice, run: commands.Runner = commands.run) -> None:
    """UserError REFUSED when the device carries data that mkswap would destroy."""
    found = probe(device.path, run)
    if found is not None:
        raise UserError(
            f"{device.path} carries {found}; it was not made swap. If that may go: attach without --swap and run "
            f"`wipefs -a {device.path}`",
            ExitCode.REFUSED,
        )


def start(device: NbdDevice, *, priority: int | None, discard: bool, run: commands.Runner = commands.run) -> None:
    """Mkswap and swapon; the caller has looked for foreign data with check_empty().

    discard: swapon tells the device of all pages at first, and of those that are freed later on.
    """
    done = run(["mkswap", "--label", LABEL, device.path], MKSWAP_TIMEOUT_S)
    if done.code != 0:
        raise UserError(f"mkswap {device.path} failed: {_why(done)}", ExitCode.FAILED)
    command = ["swapon"]
    if priority is not None:
        command += ["--priority", str(priority)]
    if discard:
        command += ["--discard"]
    done = run([*command, device.path], SWAPON_TIMEOUT_S)
    if done.code != 0:
        raise UserError(f"swapon {device.path} failed: {_why(done)}", ExitCode.FAILED)


def _why(done: commands.Done) -> str:
    return "no end within its time" if done.timed_out else done.reason


def stop(
    device: NbdDevice,
    *,
    timeout_s: float = SWAPOFF_TIMEOUT_S,
    progress: Callable[[SwapArea], None] | None = None,
    run: commands.Runner = commands.run,
    root: Path = Path("/"),
) -> None:
    """Swapoff within timeout_s; progress hears what is still out. UserError when swap is still on afterwards."""

    def look() -> None:
        area = swap_on(device, root)
        if area is not None and progress is not None:
            progress(area)

    look()
    done = run(["swapoff", device.path], timeout_s, progress=look, interrupt_first=True)
    area = swap_on(device, root)
    if area is None:
        return
    out = format_size(area.used_bytes)
    if done.timed_out:
        reason = f"not done after {timeout_s:g} s"
    elif "Cannot allocate memory" in done.reason:
        reason = "not enough free memory to take the pages back; end programs or add another swap area"
    else:
        reason = done.reason
    raise UserError(
        f"swapoff {device.path} failed, {out} still out: {reason}; nothing was disconnected", ExitCode.FAILED
    )
