"""Ctrl-C has one rule: a command ends with 130 and says what goes on without it; services stop in order."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from infiniswap.cli import device_detach
from infiniswap.cli import main as cli_main
from infiniswap.kernel_shim import detach
from infiniswap.shared.program import INTERRUPTED
from tests.support.fake_control import SLABS, FakeControl, status
from tests.support.fake_kernel import FakeKernel
from tests.support.waiting import TIMEOUT_S, wait_for

SCRUB = {
    "state": "running", "size_bytes": 1 << 30, "position_bytes": 0, "checked_pages": 0, "remote_repairs": 0,
    "backup_repairs": 0, "record_repairs": 0, "unreadable_pages": 0, "lost_pages": 0,
}  # fmt: skip


@pytest.fixture
def control(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """Device vol answers."""
    monkeypatch.setenv("INFINISWAP_RUNTIME_DIR", str(short_path))
    with FakeControl(short_path, "vol") as control:
        yield control


@pytest.mark.parametrize(
    ("arguments", "asked", "told"),
    [
        (["slabs", "vol", "--watch", "--interval", "0.1"], ("GET", "/v1/slabs"), ""),
        (["device", "scrub", "vol"], ("GET", "/v1/scrub"), "the scrub goes on; 'infiniswap device scrub vol --status'"),
        (["device", "stop", "vol", "--under-use"], ("POST", "/v1/stop"), "device 'vol' goes on stopping"),
    ],
)
def test_commands_that_wait(control: FakeControl, arguments: list[str], asked: tuple[str, str], told: str) -> None:
    """Interrupted while it waits or shows: exit code 130, no traceback, and at most a line on what goes on."""
    with subprocess.Popen(["sleep", "60"]) as served:
        control.answers["GET", "/v1/status"] = {**status("vol", served.pid), "connections": 0}
        control.answers["POST", "/v1/stop"] = lambda: web.json_response({})
        control.answers["GET", "/v1/slabs"] = SLABS
        control.answers["GET", "/v1/scrub"] = SCRUB
        control.answers["POST", "/v1/scrub"] = SCRUB
        with subprocess.Popen(
            [sys.executable, "-m", "infiniswap.cli.main", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            wait_for(lambda: asked in control.requests, what="the command's question")
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=TIMEOUT_S)
        served.kill()
    assert process.returncode == INTERRUPTED, error
    assert "Traceback" not in error
    assert told in error
    assert error.count("\n") <= 1


@pytest.mark.parametrize(
    ("swap", "told"),
    [
        (True, "swap on /dev/nbd0 is still on, 1MiB still out, and nothing was disconnected"),
        (False, "swap on /dev/nbd0 is off, and it is still attached"),
        (None, "device 'vol' is not attached any more"),
    ],
)
def test_detach(
    swap: bool | None,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Detach says whether the kernel still swaps to the device, which is what the next step depends on."""
    kernel = FakeKernel(tmp_path)
    if swap is not None:
        kernel.add(0, size_bytes=1 << 30, backend="infiniswap:vol:1:/run/vol.sock")
    if swap:
        kernel.swap(0, used_bytes=1 << 20)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detach, "detach", interrupt)
    monkeypatch.setattr(device_detach, "is_served", lambda *_: True)
    seen = device_detach.interrupted
    monkeypatch.setattr(device_detach, "interrupted", lambda name: seen(name, kernel.root))
    assert cli_main.run(["device", "detach", "vol", "--runtime-dir", str(tmp_path)]) == INTERRUPTED
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_rule_is_documented(root: Path) -> None:
    """README says both halves of it."""
    text = " ".join((root / "README.md").read_text().split())
    assert "Ctrl-C ends every command with 130" in text
    assert "take Ctrl-C for SIGTERM" in text
