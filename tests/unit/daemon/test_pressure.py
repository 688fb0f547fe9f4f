"""The kernel's own word that tasks wait for memory is heard where there is one, and its absence is no failure."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from infiniswap.daemon import pressure
from infiniswap.daemon.monitor import PRESSURE_PATH
from infiniswap.daemon.pressure import PressureTriggers
from tests.support.waiting import eventually


class Pressure:
    """Sockets in place of pressure files: urgent data is POLLPRI, too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.far: dict[Path, socket.socket] = {}
        monkeypatch.setattr(pressure, "_arm", self.arm)

    def arm(self, file: Path) -> int | None:
        if "without" in file.name:
            return None
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.far[file] = socket.create_connection(listening.getsockname())
            near, _ = listening.accept()
        return near.detach()

    def close(self) -> None:
        for sock in self.far.values():
            sock.close()


async def test_events_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of each file that could be armed, and nothing after close()."""
    world = Pressure(monkeypatch)
    told: list[int] = []
    files = [Path("host"), Path("without"), Path("group")]
    triggers = PressureTriggers(files, lambda: told.append(1))
    triggers.start()
    assert triggers.armed == 2
    for count, file in enumerate((files[0], files[2]), start=1):
        world.far[file].send(b"!", socket.MSG_OOB)
        await eventually(lambda count=count: triggers.fired >= count and len(told) >= count, "it is told")  # type: ignore[misc]
    triggers.close()
    seen = len(told)
    with contextlib.suppress(OSError):
        world.far[files[0]].send(b"!", socket.MSG_OOB)
    assert len(told) == seen
    triggers.close()
    world.close()


async def test_a_group_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells POLLERR for the rest of time: that file is not watched any more, the others are."""
    world = Pressure(monkeypatch)
    told: list[int] = []
    files = [Path("host"), Path("group")]
    triggers = PressureTriggers(files, lambda: told.append(1))
    triggers.start()
    # A reset makes the socket's poll say POLLERR.
    world.far[files[1]].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    world.far.pop(files[1]).close()
    await eventually(lambda: triggers.armed == 1, "it is let go")
    world.far[files[0]].send(b"!", socket.MSG_OOB)
    await eventually(lambda: triggers.fired >= 1, "the other is told")
    triggers.close()
    world.close()


async def test_no_psi(tmp_path: Path) -> None:
    """A kernel without PSI, and a file that takes no trigger: nothing is watched, nothing fails."""
    (tmp_path / "full").symlink_to("/dev/full")
    triggers = PressureTriggers([tmp_path / "none", tmp_path / "full"], lambda: None)
    triggers.start()
    assert triggers.armed == 0
    triggers.close()


@pytest.mark.skipif(not os.access(PRESSURE_PATH, os.W_OK), reason="this kernel has no PSI, or not for us")
async def test_this_hosts_file_takes_a_trigger() -> None:
    """The text is what the kernel understands, with its shortest window or, without the right to that, 2 s."""
    triggers = PressureTriggers([PRESSURE_PATH], lambda: None)
    triggers.start()
    assert triggers.armed == 1
    triggers.close()


def test_the_shortest_window_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused the one, the other is tried; each text ends with a byte that the kernel may overwrite."""
    written: list[bytes] = []

    def write(_fd: int, text: bytes) -> int:
        written.append(text)
        if len(written) == 1:
            raise OSError(22, "Invalid argument")
        return len(text)

    file = tmp_path / "pressure"
    file.touch()
    monkeypatch.setattr(os, "write", write)
    fd = pressure._arm(file)
    assert fd is not None
    os.close(fd)
    assert written == [b"some 50000 500000\n", b"some 200000 2000000\n"]
