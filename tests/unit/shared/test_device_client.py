"""A device that cannot be asked: who is looked for where, who keeps silent, and what can be done about it."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.shared import device_client
from infiniswap.shared.device_client import SILENCE_S, TIMEOUT_S, DeviceClient, elsewhere, fetch
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import SYSTEM_RUNTIME_DIR, control_socket
from tests.support.waiting import wait_for

LISTENER = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(4);print(flush=True); input()"
)


def test_a_stopped_process_is_told_at_once(short_path: Path) -> None:
    """A device whose process was stopped: within seconds one line that says so and how it goes on, whoever asks."""
    path = control_socket(short_path, "odd")
    with subprocess.Popen([sys.executable, "-c", LISTENER, str(path)], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it listens
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: device_client._process_state(process.pid) == "T", what="the stop")
        try:
            begun_s = time.monotonic()
            wanted = f"does not answer within 3 s: its process {process.pid} is stopped; 'kill -CONT {process.pid}'"
            with (
                pytest.raises(UserError, match=wanted) as caught,
                DeviceClient("odd", short_path, silence_s=TIMEOUT_S) as c,
            ):
                c.get("/v1/status")
            assert time.monotonic() - begun_s < TIMEOUT_S
            assert caught.value.code == ExitCode.FAILED
            assert "may still come to be" not in str(caught.value)
            with pytest.raises(UserError, match=wanted) as caught, DeviceClient("odd", short_path) as c:
                c.post("/v1/config", {"hot_page_ios": 7})
            assert str(caught.value).endswith("; what was asked for may still come to be"), (
                "it reads it once it goes on"
            )
        finally:
            process.kill()


def test_silence_is_3_seconds() -> None:
    """Who only looks is not kept waiting: what the issue asks for, and what fetch() uses."""
    assert SILENCE_S == 3.0
    assert fetch.__defaults__ is not None
    assert SILENCE_S in fetch.__defaults__


def test_silence_of_a_process_that_runs(short_path: Path) -> None:
    """One that is not stopped is told by its process; a patient caller waits longer than a hasty one."""
    path = control_socket(short_path, "odd")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(4)
        wanted = rf"within 0\.1 s; its process is {os.getpid()}"
        with pytest.raises(UserError, match=wanted), DeviceClient("odd", short_path, silence_s=0.1) as control:
            control.get("/v1/status")


def test_forgotten_sudo(short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is found, a user other than root hears where one looked and that root's devices are elsewhere."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli_main.run(["device", "list", "--runtime-dir", str(short_path)]) == ExitCode.OK
    out, told = capsys.readouterr()
    assert out == ""
    assert f"no devices in {short_path}; those of root are in {SYSTEM_RUNTIME_DIR}: use sudo to see them" in told
    assert cli_main.run(["slabs", "vol", "--runtime-dir", str(short_path)]) == ExitCode.NOT_FOUND
    told = capsys.readouterr().err
    assert f"no device 'vol' in {short_path}; those of root are in {SYSTEM_RUNTIME_DIR}" in told
    assert told.count("\n") == 1


def test_forgotten_sudo_for_real(short_path: Path) -> None:
    """The same by a process of another user, whose default folder is not root's."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    nobody = pwd.getpwnam("nobody")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INFINISWAP", "XDG"))}
    script = (
        f"import os; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid});"
        "from infiniswap.shared.device_client import *; from infiniswap.shared.paths import *;"
        "print('no devices in', default_runtime_dir(), elsewhere(default_runtime_dir()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, env=kept
    )
    assert f"/tmp/infiniswap-{nobody.pw_uid} ; those of root are in /run/infiniswap: use sudo" in done.stdout


def test_root_looks_in_the_wrong_place(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, with another runtime directory: devices in the system's are named; without any, how to start one."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(device_client, "device_names", lambda folder: ["swap0"] if folder == SYSTEM_RUNTIME_DIR else [])
    assert elsewhere(short_path) == "; there are swap0 in /run/infiniswap"
    monkeypatch.setattr(device_client, "device_names", lambda _folder: [])
    assert elsewhere(short_path) == "; start one with 'infiniswap device serve NAME'"


def test_a_name_like_it(short_path: Path) -> None:
    """A slip in a device's name is met with the one that runs."""
    control_socket(short_path, "swap0").touch()
    with pytest.raises(UserError, match=r"no device 'swap' in .*; did you mean 'swap0'\? there are swap0"):
        fetch("swap", "/v1/status", short_path)
