"""Every write of a start and of a stop fails once: one line or none, and the next start still knows what is true."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.startup import Prepared, look, prepare
from infiniswap.device.verdict import Start
from infiniswap.engine.binding import PageFlag
from infiniswap.shared.errors import UserError

SIZE = 4 << 20
CALLS = ("write", "pwrite", "setxattr", "removexattr", "fsync", "fdatasync", "posix_fallocate", "ftruncate")
NAMES = ("rename", "unlink", "mkdir")
POINTS_MAX = 100


class Faults:
    """Counts calls that write, and fails the one with this number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """None fails until fail_at is set."""
        self.count, self.fail_at, self.code = 0, -1, errno.ENOSPC
        for name in (*CALLS, *NAMES):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def arm(self, number: int, code: int) -> None:
        """From now on, fail the call with this number, once."""
        self.count, self.fail_at, self.code = 0, number, code

    @property
    def hit(self) -> bool:
        """The call came."""
        return self.count > self.fail_at >= 0

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self.fail_at:
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """None yet."""
    return Faults(monkeypatch)


class Life:
    """A start without an engine, as serve.start_device() goes about it, and its end."""

    def __init__(self, folder: Path) -> None:
        """Everything lies in folder."""
        given = {"size": SIZE, "slab_size": "1MiB", "backup": str(folder / "b.img"), "sparse": True}
        given |= {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")}
        self.config: DeviceConfig = load_config("vol", given)
        (folder / "run").mkdir(exist_ok=True)

    def start(self) -> tuple[Prepared, ExitStack]:
        """UserError or OSError when it fails, with all undone."""
        undo, cleanup = ExitStack(), ExitStack()
        try:
            prepared = prepare(self.config, look(self.config, cleanup), cleanup, undo)
            if prepared.start is not Start.RECOVER:
                with ExitStack() as unserved:
                    unserved.callback(prepared.take_back)
                    prepared.mark_in_use()
                    unserved.pop_all()
            else:
                prepared.mark_in_use()
        except BaseException:
            cleanup.close()
            undo.close()
            raise
        return prepared, cleanup

    def run(self, *, stop: bool) -> Start:
        """One life, stopped in order or killed."""
        prepared, cleanup = self.start()
        prepared.state.pages["meta"][7] = int(PageFlag.LOST)
        if stop:
            prepared.mark_clean(lost=1)
        cleanup.close()
        return prepared.start


def page_7_is_lost(life: Life) -> bool:
    """Of the device as it starts now: it must not be served from the backup."""
    prepared, cleanup = life.start()
    lost = bool(np.any(prepared.state.pages["meta"][7] & np.uint32(int(PageFlag.LOST))))
    cleanup.close()
    return lost


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("stopped", [True, False])
def test_start(short_path: Path, faults: Faults, stopped: bool, code: int) -> None:
    """After a stop and after a kill: the start works or is refused, and what was lost is never served."""
    for number in range(POINTS_MAX):
        folder = short_path / str(number)
        folder.mkdir()
        life = Life(folder)
        life.run(stop=stopped)
        faults.arm(number, code)
        try:
            _, cleanup = life.start()
            cleanup.close()
        except (UserError, OSError):
            pass
        hit = faults.hit
        faults.arm(-1, code)
        assert page_7_is_lost(life)
        if not hit:
            break
    else:
        pytest.fail("there is no end of it")
    assert number > 5 if stopped else number >= 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_stop(short_path: Path, faults: Faults, code: int) -> None:
    """Whether the state could say so or not, the next start is right."""
    for number in range(POINTS_MAX):
        folder = short_path / str(number)
        folder.mkdir()
        life = Life(folder)
        prepared, cleanup = life.start()
        prepared.state.pages["meta"][7] = int(PageFlag.LOST)
        faults.arm(number, code)
        told = True
        try:
            prepared.mark_clean(lost=1)
        except OSError:
            told = False
        hit = faults.hit
        faults.arm(-1, code)
        cleanup.close()
        prepared, cleanup = life.start()
        # A header that is there although fdatasync failed says nothing wrong: all is on the backup.
        assert prepared.start is Start.REBUILD if told else prepared.start in (Start.REBUILD, Start.RECOVER)
        cleanup.close()
        assert page_7_is_lost(life)
        if not hit:
            break
    assert number >= 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_first_start(short_path: Path, faults: Faults, code: int) -> None:
    """One that fails leaves nothing that a second one would stumble over."""
    for number in range(POINTS_MAX):
        folder = short_path / str(number)
        folder.mkdir()
        life = Life(folder)
        faults.arm(number, code)
        try:
            _, cleanup = life.start()
            cleanup.close()
        except (UserError, OSError):
            pass
        hit = faults.hit
        faults.arm(-1, code)
        life.run(stop=True)
        if not hit:
            break
    assert number > 8
