"""nbdinfo and nbdcopy, as people use them on any NBD server."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.interop.target import SIZE_BYTES, Target
from tests.support.backups import read_backup
from tests.support.tools import tool

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image as large as a target: data, zeroes and holes of all lengths."""
    path = tmp_path / "image"
    draw = random.Random(3)
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        offset = 0
        while offset < SIZE_BYTES:
            length = min(draw.choice((512, PAGE, 7 * PAGE, MIB, 3 * MIB)), SIZE_BYTES - offset)
            if draw.random() < 0.4:
                file.seek(offset)
                file.write(draw.randbytes(length))
            offset += length
    return path


def test_nbdinfo_json(target: Target) -> None:
    """The description for programs names size, abilities, block sizes and base:allocation."""
    described = json.loads(tool("nbdinfo", "--json", target.uri))
    assert described["protocol"] == "newstyle-fixed"
    assert described["TLS"] is False
    assert described["structured"] is True
    (export,) = described["exports"]
    assert export["export-size"] == SIZE_BYTES
    assert export["contexts"] == ["base:allocation"]
    assert export["is_read_only"] is False
    abilities = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    assert {name: export[f"can_{name}"] for name in abilities} == dict.fromkeys(abilities, True)
    assert [export[f"block_size_{kind}"] for kind in ("minimum", "preferred", "maximum")] == [1, PAGE, 32 * MIB]


def test_nbdinfo_questions(target: Target) -> None:
    """Single questions: size, abilities by exit code, and the one for people."""
    assert int(tool("nbdinfo", "--size", target.uri)) == SIZE_BYTES
    for ability in ("connect", "structured", "multi-conn", "fua", "flush", "trim", "zero", "cache", "df", "write"):
        tool("nbdinfo", "--can", ability, target.uri)
    tool("nbdinfo", "--is", "read-only", target.uri, code=2)
    assert "export-size: 33554432 (32M)" in tool("nbdinfo", target.uri)


def test_nbdinfo_list(target: Target) -> None:
    """The device lists itself with its size; a daemon lists nothing to somebody without a token."""
    exports: list[dict[str, Any]] = json.loads(tool("nbdinfo", "--list", "--json", target.server))["exports"]
    if target.device is None:
        assert exports == []
    else:
        assert [(export["export-name"], export["export-size"]) for export in exports] == [(target.name, SIZE_BYTES)]


def test_nbdinfo_map(target: Target, image: Path) -> None:
    """--map covers the export without a gap and calls nothing a hole that holds data."""
    tool("nbdcopy", image, target.uri)
    found = json.loads(tool("nbdinfo", "--map", "--json", target.uri))
    content = image.read_bytes()
    at = 0
    for extent in found:
        assert extent["offset"] == at
        at += extent["length"]
        if extent["description"] != "data":
            assert not any(content[extent["offset"] : at])
    assert at == SIZE_BYTES
    if target.device is not None:
        data = sum(extent["length"] for extent in found if extent["description"] == "data")
        written = sum(1 for page in range(0, SIZE_BYTES, PAGE) if any(content[page : page + PAGE]))
        assert data == written * PAGE


@pytest.mark.parametrize("options", [(), ("--connections=4", "--threads=4", "--requests=64"), ("--synchronous",)])
def test_nbdcopy_in_and_out(target: Target, image: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """An image goes in and comes out bit by bit, with one connection or several; the device's holes stay holes."""
    tool("nbdcopy", "--flush", *options, image, target.uri)
    tool("nbdcopy", *options, target.uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    if target.device is not None:
        assert (tmp_path / "out").stat().st_blocks * 512 < SIZE_BYTES * 3 // 4
        assert read_backup(target.device.backup, SIZE_BYTES) == image.read_bytes()


def test_nbdcopy_over_old_data(target: Target, image: Path, tmp_path: Path) -> None:
    """Where the image has zeroes, what was there before is gone: zeroing through a client is not forgotten."""
    (tmp_path / "old").write_bytes(os.urandom(MIB) * (SIZE_BYTES // MIB))
    tool("nbdcopy", tmp_path / "old", target.uri)
    tool("nbdcopy", "--flush", image, target.uri)
    tool("nbdcopy", "--allocated", target.uri, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_nbdcopy_between_servers(target: Target, image: Path) -> None:
    """nbdcopy reads one of our servers and writes the other at once."""
    other = target.site.device.uri if target.kind == "lease" else target.site.lease.uri
    tool("nbdcopy", image, target.uri)
    tool("nbdcopy", target.uri, other)
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, other)


def test_a_stranger_gets_no_lease(target: Target) -> None:
    """Whoever asks for another export than he was given is told that there is none, with a plain error."""
    wrong = target.uri.replace(target.name, target.name[:-1] + "#")
    tool("nbdinfo", wrong, code=1)
    tool("nbdcopy", wrong, "null:", code=1)
