"""The doctor tells when zswap is missing, off or of no use to the device, and when another area is filled before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from infiniswap.kernel_shim import doctor, doctor_facts
from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, HostFacts, Level
from infiniswap.kernel_shim.sysfs import SwapArea

ON = {"enabled": "Y", "compressor": "zstd", "max_pool_percent": "20", "shrinker_enabled": "Y"}
HOST = HostFacts(root=True, kernel_release="6.12.0", nbd_loaded=True, zswap=ON)
SWAP = SwapArea("/dev/nbd0", "partition", 1 << 30, 0, 10)
DEVICE = DeviceFacts(name="a", pid=1, size_bytes=1 << 30, mapped_bytes=0, backup="/a.img", node="/dev/nbd0", swap=SWAP)


def finding(name: str, host: HostFacts, device: DeviceFacts = DEVICE) -> Check:
    """What the check of that name says of the device."""
    checks = doctor.examine(host, (device,))
    (check,) = [check for check in checks if check.name == name and check.device == device.name]
    return check


def area(path: str, priority: int) -> SwapArea:
    """A swap area."""
    return SwapArea(path, "partition", 1 << 30, 0, priority)


def test_all_well() -> None:
    """On with its shrinker, and nothing before the device."""
    host = dataclasses.replace(HOST, swaps=(SWAP, area("/dev/sda2", -2)))
    assert finding("zswap", host).level is Level.OK
    assert "zstd, 20 % of memory" in finding("zswap", host).found
    assert finding("swap order", host).level is Level.OK


@pytest.mark.parametrize(
    ("release", "zswap", "words", "command"),
    [
        ("6.12.0-cloud-amd64", None, "cloud kernels are built without it", "linux-image-amd64"),
        ("6.12.0", None, "this kernel has none", "linux-image-amd64"),
        ("6.12.0", {"enabled": "N"}, "off", "attach a --swap --zswap"),
        ("6.12.0", ON | {"shrinker_enabled": "N"}, "cold pages stay", "parameters/shrinker_enabled"),
    ],
)
def test_not_there(release: str, zswap: dict[str, str] | None, words: str, command: str) -> None:
    """Said under swap, with the way out; not of a device that is not swap."""
    host = dataclasses.replace(HOST, kernel_release=release, zswap=zswap)
    check = finding("zswap", host)
    assert check.level is Level.WARNING
    assert words in check.found
    assert command in (check.command or "")
    assert finding("zswap", host, dataclasses.replace(DEVICE, swap=None)).level is Level.OK


def test_no_shrinker_to_switch_on() -> None:
    """Before kernel 6.8 zswap has none, which nobody can mend here."""
    old = {key: value for key, value in ON.items() if key != "shrinker_enabled"}
    assert finding("zswap", dataclasses.replace(HOST, zswap=old)).level is Level.OK


def test_zram_above() -> None:
    """Zram of a higher priority is named with the way out; of a lower one it is none of the device's business."""
    check = finding("swap order", dataclasses.replace(HOST, swaps=(area("/dev/zram0", 100), SWAP)))
    assert check.level is Level.WARNING
    assert "/dev/zram0 (priority 100) before /dev/nbd0 (10)" in check.found
    assert "compressed twice" in check.why
    assert check.command == "swapoff /dev/zram0"
    below = dataclasses.replace(HOST, swaps=(area("/dev/zram0", 9), SWAP))
    assert finding("swap order", below).level is Level.OK


def test_disk_above() -> None:
    """A disk before the device: zswap's cold pages go there; the advice is a priority above it."""
    check = finding("swap order", dataclasses.replace(HOST, swaps=(area("/dev/sda2", 20), SWAP)))
    assert "zswap is on without this device" in check.why
    assert (check.command or "").endswith("attach a --swap --priority 21")
    off = dataclasses.replace(HOST, swaps=(area("/dev/sda2", 20), SWAP), zswap={"enabled": "N"})
    assert "zswap" not in finding("swap order", off).why


def test_on_while_no_device_is_swap() -> None:
    """Zswap is on, a device runs, but it is not swap: the host's other areas get the cold pages."""
    host = dataclasses.replace(HOST, swaps=(area("/dev/sda2", -2),))
    idle = dataclasses.replace(DEVICE, swap=None)
    checks = [check for check in doctor.examine(host, (idle,)) if check.name == "zswap" and check.device is None]
    assert [check.level for check in checks] == [Level.WARNING]
    assert "/dev/sda2" in checks[0].found
    assert not [check for check in doctor.examine(host, (DEVICE,)) if check.name == "zswap" and check.device is None]
    assert not [check for check in doctor.examine(host, ()) if check.name == "zswap"]


def test_facts(tmp_path: Path) -> None:
    """Parameters and areas as the kernel shows them; a kernel without zswap has no folder for it."""
    assert doctor_facts.host_facts(tmp_path).zswap is None
    folder = tmp_path / "sys/module/zswap/parameters"
    folder.mkdir(parents=True)
    for name, value in ON.items():
        (folder / name).write_text(value + "\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/swaps").write_text("Filename Type Size Used Priority\n/dev/zram0 partition 1024 0 100\n")
    facts = doctor_facts.host_facts(tmp_path)
    assert facts.zswap == ON
    assert [found.path for found in facts.swaps] == ["/dev/zram0"]
