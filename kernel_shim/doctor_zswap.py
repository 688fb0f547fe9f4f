"""What the doctor makes of the tier before a device that is swap: zswap, and areas that are used before it; pure.

None of it endangers swap; it costs speed, so all are warnings, and only of a device that is swap.
"""

from __future__ import annotations

from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, HostFacts, Level
from infiniswap.kernel_shim.sysfs import SwapArea

_CLOUD = "-cloud-"


def _check(facts: DeviceFacts, level: Level, found: str, why: str, command: str | None = None) -> Check:
    return Check("zswap", level, found, why, None if level is Level.OK else command, facts.name)


def check_zswap(facts: DeviceFacts, host: HostFacts) -> Check:
    """Whether compressed pages stay local and cold ones come to the device."""
    why = "zswap keeps pages compressed in this host's memory and passes the cold ones on: most page-ins stay local"
    again = f"infiniswap device detach {facts.whole} && infiniswap device attach {facts.whole} --swap --zswap"
    if facts.swap is None:
        return _check(facts, Level.OK, "not swap", why)
    parameters = host.zswap
    if parameters is None:
        lacks = "this kernel has none"
        if _CLOUD in host.kernel_release:
            lacks += " (Debian's cloud kernels are built without it)"
        return _check(facts, Level.WARNING, lacks, why, "apt-get install linux-image-amd64, and boot it")
    if parameters.get("enabled") != "Y":
        return _check(facts, Level.WARNING, "off", why, again)
    found = ", ".join(
        [f"on, {parameters.get('compressor')}", f"{parameters.get('max_pool_percent')} % of memory at most"]
    )
    if parameters.get("shrinker_enabled") == "N":
        cold = f"{found}; its shrinker is off, so cold pages stay until the pool is full"
        command = "echo Y > /sys/module/zswap/parameters/shrinker_enabled"
        return _check(facts, Level.WARNING, cold, why, command)
    return _check(facts, Level.OK, found, why)


def above(facts: DeviceFacts, host: HostFacts) -> tuple[SwapArea, ...]:
    """Areas that the kernel fills before the device, the first one first."""
    if facts.swap is None:
        return ()
    others = [area for area in host.swaps if area.path != facts.swap.path and area.priority > facts.swap.priority]
    return tuple(sorted(others, key=lambda area: -area.priority))


def check_order(facts: DeviceFacts, host: HostFacts) -> Check:
    """No zram and no disk stands before the device by priority."""
    name = "swap order"
    first = above(facts, host)
    on = (host.zswap or {}).get("enabled") == "Y"
    if facts.swap is None or not first:
        return Check(name, Level.OK, "nothing comes before it", "", None, facts.name)
    listed = ", ".join(f"{area.path} (priority {area.priority})" for area in first)
    found = f"{listed} before {facts.swap.path} ({facts.swap.priority})"
    if any(area.path.startswith("/dev/zram") for area in first):
        why = "zram never gives a page on: once it is full of cold ones the hot ones come here; zswap does better"
        zram = next(area.path for area in first if area.path.startswith("/dev/zram"))
        command = f"swapoff {zram}"
        if on:
            why += "; with zswap on as well each page is compressed twice"
        return Check(name, Level.WARNING, found, why, command, facts.name)
    why = "pages go to the area of the highest priority until that is full"
    if on:
        why = (
            "zswap is on without this device: its cold pages go to the area of the highest priority until that is full"
        )
    top = max(area.priority for area in first)
    command = (
        f"infiniswap device detach {facts.whole} && infiniswap device attach {facts.whole} --swap --priority {top + 1}"
    )
    return Check(name, Level.WARNING, found, why, command, facts.name)


def check_idle_zswap(host: HostFacts, devices: tuple[DeviceFacts, ...]) -> Check | None:
    """Zswap that is on while no device that runs is swap; None where there is nothing to say."""
    if not devices or any(device.swap for device in devices) or (host.zswap or {}).get("enabled") != "Y":
        return None
    where = ", ".join(area.path for area in host.swaps) or "nowhere, for there is no swap area"
    why = "zswap has nothing to give pages on to but swap areas that are on"
    command = f"infiniswap device attach {devices[0].whole} --swap"
    return Check("zswap", Level.WARNING, f"on without a device: its cold pages go {where}", why, command)
