"""qemu-img and qemu-io: QEMU's own NBD client, which negotiates and asks in its own way."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.interop.target import SIZE_BYTES, Target
from tests.support.tools import tool

PAGE = 4096
MIB = 1 << 20


def qemu_io(target: Target, *commands: str) -> str:
    """Run commands one after the other on one connection; a pattern that is not found fails."""
    output = tool("qemu-io", "-f", "raw", "-d", "unmap", *(word for c in commands for word in ("-c", c)), target.uri)
    assert "failed" not in output
    return output


def test_info(target: Target) -> None:
    """qemu-img sees a raw image of the right size."""
    info = json.loads(tool("qemu-img", "info", "--output=json", target.uri))
    assert (info["format"], info["virtual-size"]) == ("raw", SIZE_BYTES)


def test_convert_there_and_back(target: Target, tmp_path: Path) -> None:
    """A qcow2 image is converted onto the export and back into a qcow2, and QEMU finds all three the same."""
    raw, there, back = tmp_path / "raw", tmp_path / "there.qcow2", tmp_path / "back.qcow2"
    draw = random.Random(9)
    with raw.open("wb") as file:
        for offset in range(0, SIZE_BYTES, 2 * MIB):
            file.seek(offset + draw.randrange(MIB))
            file.write(draw.randbytes(draw.randrange(1, MIB)))
        file.truncate(SIZE_BYTES)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, there)
    tool("qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", there, target.uri)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", there, target.uri)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", target.uri, back)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", back, raw)
    mapped = json.loads(tool("qemu-img", "map", "--output=json", "-f", "raw", target.uri))
    assert sum(extent["length"] for extent in mapped) == SIZE_BYTES


def test_a_difference_is_seen(target: Target, tmp_path: Path) -> None:
    """A single changed byte makes qemu-img compare fail: the comparisons of these tests can fail."""
    (tmp_path / "zeroes").write_bytes(bytes(SIZE_BYTES))
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "zeroes", target.uri)
    qemu_io(target, f"write -P 1 {SIZE_BYTES - 512} 1")
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "zeroes", target.uri, code=1)


def test_patterns_of_any_alignment(target: Target) -> None:
    """Patterns written at odd places are found there, and their neighbours are as they were."""
    qemu_io(
        target,
        "write -P 0xaa 0 64k",
        "write -P 0xbb 4095 2",
        "write -P 0xcc 12289 4094",
        "write -P 0xdd 1048570 13",
        "flush",
        "read -P 0xaa 0 4095",
        "read -P 0xbb 4095 2",
        "read -P 0xaa 4097 8192",
        "read -P 0xcc 12289 4094",
        "read -P 0xaa 16383 49153",
        "read -P 0 65536 983034",
        "read -P 0xdd 1048570 13",
        "read -P 0 1048583 100000",
    )


def test_zero_and_discard(target: Target) -> None:
    """Zeroed and discarded ranges read as zeroes, to the byte for the former, and can be written again."""
    qemu_io(
        target,
        "write -P 0x11 0 3M",
        "write -z 5000 100000",
        "write -z -u 1M 1M",
        "write -z -n -u 2M 4097",
        "discard 2560k 512k",
        "write -f -z 3145728 1M",
        "flush",
        "read -P 0x11 0 5000",
        "read -P 0 5000 100000",
        "read -P 0x11 105000 943576",
        "read -P 0 1M 1M",
        "read -P 0 2M 4097",
        "read -P 0x11 2101249 520191",
        "read -P 0 2560k 512k",
        "read -P 0 3M 1M",
        "write -P 0x22 1M 1M",
        "read -P 0x22 1M 1M",
    )


def test_many_requests_at_once(target: Target) -> None:
    """Asynchronous requests of QEMU, forced to stable storage, come back whole."""
    writes = [f"aio_write -q -P {i + 1} {i * 300 * 1024 + 123} 300k" for i in range(40)]
    reads = [f"aio_read -q -P {i + 1} {i * 300 * 1024 + 123} 300k" for i in range(40)]
    forced = [f"write -q -f -P {i + 100} {20 * MIB + i * 5000} 5000" for i in range(20)]
    qemu_io(target, *writes, "aio_flush", *reads, "aio_flush", *forced)
    qemu_io(target, *reads, "aio_flush", *[f"read -q -P {i + 100} {20 * MIB + i * 5000} 5000" for i in range(20)])
