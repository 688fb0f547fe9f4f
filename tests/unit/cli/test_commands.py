"""Each verb asks the control API for the right thing and prints it; what is wrong is told in one clear line."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from infiniswap.cli import main as cli_main
from infiniswap.cli.device_serve import command as serve_command
from infiniswap.device.options import OPTIONS
from infiniswap.kernel_shim import users
from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import control_socket
from tests.support.fake_control import PEERS, SLABS, STATS, FakeControl, status


@pytest.fixture
def control(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """Device vol answers."""
    monkeypatch.setenv("INFINISWAP_RUNTIME_DIR", str(short_path))
    with FakeControl(short_path, "vol") as control:
        yield control


def run(*arguments: str) -> int:
    """The command's exit code."""
    return cli_main.run(list(arguments))


def test_slabs_json(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """slabs --json is a list of objects with at least the documented keys."""
    assert run("slabs", "vol", "--json") == ExitCode.OK
    rows = json.loads(capsys.readouterr().out)
    assert rows == SLABS
    documented = {"index", "state", "peer", "activity", "remote_pages", "backup_pages", "pending_pages"}
    assert all(documented <= set(row) for row in rows)


def test_slabs_table(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Slabs prints one line each."""
    assert run("slabs", "vol") == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        "INDEX  STATE     PEER            ACTIVITY  REMOTE  BACKUP  PENDING",
        "    0  mapped    127.0.0.1:7401     123.5     256       0        3",
        "    1  unmapped  -                    0.0       0      17        0",
    ]


def test_peers(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Peers prints sizes with units, -b in bytes, --json everything."""
    assert run("peers", "vol", "-n", "-o", "peer,free,error") == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        "127.0.0.1:7401  64MiB  -",
        "127.0.0.1:7402      -  connection refused",
    ]
    assert run("peers", "vol", "-nb", "-o", "free") == ExitCode.OK
    assert capsys.readouterr().out.split() == [str(64 << 20), "-"]
    assert run("peers", "vol", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == PEERS


def test_stats(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Stats tells sources with shares, pending, failures other than zero, and latencies of sources that were used."""
    assert run("stats", "vol") == ExitCode.OK
    out = capsys.readouterr().out
    assert re.search(r"^Pages read: +remote 900 \(90\.0 %\), backup 100 \(10\.0 %\)$", out, re.MULTILINE)
    assert re.search(r"^Pending: +12KiB of at most 64MiB$", out, re.MULTILINE)
    assert re.search(r"^Failures: +peers_lost 1$", out, re.MULTILINE)
    assert re.search(r"^remote +900 +50\.0 +80\.0 +120\.0 +300\.0 +512\.5$", out, re.MULTILINE)
    assert not re.search(r"^zero", out, re.MULTILINE)
    assert run("stats", "vol", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == STATS
    assert run("stats", "vol", "-n", "-o", "source,p99-us") == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == ["remote  120.0", "backup  200.0"]


def test_device_list(control: FakeControl, short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Device list shows what runs, and a socket that a killed device left behind as dead."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(control_socket(short_path, "old")))
    assert run("device", "list", "-o", "name,state,size,mapped,pid") == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        "NAME  STATE    SIZE  MAPPED   PID",
        "old   dead        -       -     -",
        "vol   serving  1GiB       1  4242",
    ]


def test_device_list_without_devices(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No devices, or no runtime directory yet: stdout is empty, stderr says where one looked; JSON is an empty list."""
    folder = short_path / "none"
    assert run("device", "list", "--runtime-dir", str(folder)) == ExitCode.OK
    out, told = capsys.readouterr()
    assert out == ""
    assert told.startswith(f"no devices in {folder}; ")
    assert run("device", "list", "--json", "--runtime-dir", str(folder)) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == []


def test_other_empty_lists(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """No peers, and no latencies yet: what is empty is said, and what to do; JSON is an empty list."""
    control.answers["GET", "/v1/peers"] = []
    assert run("peers", "vol") == ExitCode.OK
    told = "device 'vol' has no peers: all its pages are on the backup; start it with --peer HOST:PORT\n"
    assert capsys.readouterr() == ("", told)
    assert run("peers", "vol", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == []
    unused = {source: {**times, "count": 0} for source, times in STATS["latency_us"].items()}
    control.answers["GET", "/v1/stats"] = {**STATS, "latency_us": unused}
    assert run("stats", "vol", "-o", "source") == ExitCode.OK
    assert capsys.readouterr() == ("", "no latencies: nothing was read since the start\n")


def test_names_stay_on_their_line(control: FakeControl, short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name with a line end, in an argument, an answer or a folder, never makes a second line."""
    for arguments in (["slabs", "a\nb"], ["a\nb"], ["peers", "vol", "-o", "a\nb"], ["donor", "status", "a\nb:1"]):
        assert run(*arguments) != ExitCode.OK
        assert capsys.readouterr().err.count("\n") == 1, arguments
    control.answers["GET", "/v1/peers"] = [{**PEERS[0], "peer": "x\ny", "version": "\x1b[2J"}]
    assert run("peers", "vol", "-n") == ExitCode.OK
    assert capsys.readouterr().out.count("\n") == 1
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(control_socket(short_path, "o\nd")))
    assert run("device", "list", "-n", "-o", "name,state") == ExitCode.OK
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == ["o\\nd", "vol"]


def test_device_stop_waits_for_the_end(control: FakeControl) -> None:
    """Device stop asks for the stop and returns only when the process has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        control.answers["GET", "/v1/status"] = {**status("vol", process.pid), "connections": 0}
        assert run("device", "stop", "vol", "--timeout", "0.2") == ExitCode.FAILED  # it still runs
        assert ("POST", "/v1/stop") in control.requests

        def end() -> web.Response:
            process.kill()
            return web.json_response({})

        control.answers["POST", "/v1/stop"] = end
        assert run("device", "stop", "vol", "--timeout", "30") == ExitCode.OK


def test_device_stop_under_use(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device stop asks for nothing while clients are connected, unless it is told to."""
    monkeypatch.setattr(users, "SETTLE_TIMEOUT_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        control.answers["GET", "/v1/status"] = {**status("vol", process.pid), "connections": 2}
        assert run("device", "stop", "vol") == ExitCode.REFUSED
        assert ("POST", "/v1/stop") not in control.requests
        assert run("device", "stop", "vol", "--timeout", "0.2", "--under-use") == ExitCode.FAILED  # it still runs
        assert ("POST", "/v1/stop") in control.requests
        process.kill()


def test_unknown_device(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that does not run: one line that says which ones do."""
    for arguments in (["slabs", "nix"], ["peers", "nix"], ["stats", "nix"], ["device", "stop", "nix"]):
        assert run(*arguments) == ExitCode.NOT_FOUND
        error = capsys.readouterr().err
        assert re.fullmatch(r"infiniswap: no device 'nix' in .*; there are vol\n", error)


def test_killed_device(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that was left behind is told apart from a device that never was."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(control_socket(short_path, "old")))
    assert run("slabs", "old", "--runtime-dir", str(short_path)) == ExitCode.NOT_FOUND
    assert re.fullmatch(r"infiniswap: device 'old' does not run any more .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["", "../etc/passwd", "a" * 200, "a\nb"])
def test_bad_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that cannot be a device's is refused as such."""
    assert run("slabs", name) == ExitCode.USAGE
    assert "must be 1 to 64 of" in capsys.readouterr().err


def test_error_of_the_device_is_passed_on(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """What the device says is wrong reaches the user, as one line."""
    control.answers["GET", "/v1/slabs"] = lambda: web.json_response({"error": "it is stopping"}, status=503)
    assert run("slabs", "vol") == ExitCode.FAILED
    assert capsys.readouterr().err == "infiniswap: device 'vol': it is stopping\n"


@pytest.mark.parametrize("status_code", [200, 500])
def test_garbage_from_the_socket(control: FakeControl, status_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Something else that answers on the socket is no traceback."""
    control.answers["GET", "/v1/slabs"] = lambda: web.Response(text="<html>", status=status_code)
    assert run("slabs", "vol") == ExitCode.FAILED
    error = capsys.readouterr().err
    assert error.startswith("infiniswap: device 'vol'")
    assert error.count("\n") == 1


def test_not_http(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket that closes at once is reported as one line."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(control_socket(short_path, "odd")))
        server.listen(0)
        pid = os.fork()
        if pid == 0:
            server.accept()[0].close()
            os._exit(0)
        try:
            assert run("slabs", "odd", "--runtime-dir", str(short_path)) == ExitCode.FAILED
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    error = capsys.readouterr().err
    assert error.startswith("infiniswap: device 'odd' ")
    assert error.count("\n") == 1


def test_silent_device(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that answers nothing, or drop by drop, is given up at the deadline, and listed as silent."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(control_socket(short_path, "odd")))
        server.listen(4)
        with (
            pytest.raises(UserError, match=r"'odd' does not answer within 0\.1 s"),
            DeviceClient("odd", short_path, 0.1) as control,
        ):
            control.get("/v1/status")
        drops = threading.Thread(target=drip, args=(server,))
        drops.start()
        with (
            pytest.raises(UserError, match=r"'odd' does not answer within 0\.5 s"),
            DeviceClient("odd", short_path, 0.5) as control,
        ):
            control.get("/v1/status")
        drops.join(10)
        assert not drops.is_alive()


def drip(server: socket.socket) -> None:
    """Answer the second client that connects with a byte every now and then, until it hangs up."""
    server.accept()[0].close()
    client, _ = server.accept()
    with client, suppress(OSError):
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            client.sendall(b" ")
            time.sleep(0.05)


def test_watch_prints_again(control: FakeControl, short_path: Path) -> None:
    """Slabs --watch shows a picture again and again until the reader has seen enough, and ends quietly then."""
    command = [sys.executable, "-m", "infiniswap.cli.main", "slabs", "vol", "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        heads = 0
        while heads < 3:
            heads += "2 slabs: 1 mapped, 1 unmapped; pages: 256 remote, 17 on backup only, 3 pending" in (
                process.stdout.readline()
            )
        process.stdout.close()
        assert process.wait(20) == ExitCode.OK
        assert process.stderr.read() == ""


def test_watch_and_json(control: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """--watch with --json is refused."""
    assert run("slabs", "vol", "--watch", "--json") == ExitCode.USAGE
    assert "do not go together" in capsys.readouterr().err


def test_broken_pipe_is_quiet(control: FakeControl) -> None:
    """A reader that goes away early, such as head, makes neither a traceback nor an error."""
    control.answers["GET", "/v1/slabs"] = SLABS * 20000
    with subprocess.Popen(
        [sys.executable, "-m", "infiniswap.cli.main", "slabs", "vol", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == ExitCode.OK
        assert process.stderr.read() == b""


def test_full_disk_is_told() -> None:
    """Output that cannot be written is an error with a code, not a success."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "infiniswap.cli.main", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == ExitCode.RESOURCES
    assert done.stderr.decode() == f"infiniswap: writing the output: {os.strerror(errno.ENOSPC)}\n"


def test_serve_has_every_option() -> None:
    """Every option that a configuration file may hold can also be given on the command line, and none besides."""
    given = {parameter.name for parameter in serve_command.params}
    assert given - {"name", "config_file"} == set(OPTIONS.names)


def test_serve_refuses_what_config_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad size ends with one line and the code for usage, and makes nothing."""
    assert run("device", "serve", "vol", "--size", "5000", "--backup", str(tmp_path / "x")) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("infiniswap: --size 5000 is not a multiple")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown verbs and options, and no verb at all, are usage errors; help is none."""
    assert run("nosuch") == ExitCode.USAGE
    assert run("slabs", "vol", "--nosuch") == ExitCode.USAGE
    assert run() == ExitCode.USAGE
    assert run("device") == ExitCode.USAGE
    assert run("--help") == ExitCode.OK
    assert "Traceback" not in capsys.readouterr().err
