"""Socket activation: whoever starts a server hands it listening sockets (LISTEN_FDS, LISTEN_PID)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from infiniswap.nbd.client import NbdClient
from infiniswap.shared.errors import ExitCode
from tests.support.activation import activated
from tests.support.services import DAEMON, INFINISWAP, Service, Services
from tests.support.tools import tool
from tests.support.waiting import wait_for

MIB = 1 << 20
READY_TIMEOUT_S = 30.0


def start_with(services: Services, label: str, command: list[str], *sockets: socket.socket) -> Service:
    """Start command with sockets as a service manager does, and wait until it is ready."""
    descriptors = [sock.fileno() for sock in sockets]
    service = services.spawn(label, activated(command, *descriptors), pass_fds=descriptors)
    service.read_ready(READY_TIMEOUT_S)
    return service


def listening_tcp() -> socket.socket:
    """A listening socket on a free port of the loopback interface."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.listen(16)
    return sock


def device_command(folder: Path, *options: str) -> list[str]:
    """A device of 8 MiB with its backup in folder."""
    serve = ["device", "serve", "vol", "--size", "8MiB", "--slab-size", "1MiB", "--backup", str(folder / "vol.img")]
    return [*INFINISWAP, *serve, *options]


def test_device_on_passed_sockets(services: Services) -> None:
    """A device serves on every socket that was passed, UNIX and TCP, makes none of its own, and leaves the paths."""
    services.expect_log("no peers are configured")
    path = services.folder / "passed.sock"
    with socket.socket(socket.AF_UNIX) as on_unix, listening_tcp() as on_tcp:
        on_unix.bind(str(path))
        on_unix.listen(16)
        device = start_with(services, "device", device_command(services.folder), on_unix, on_tcp)
        assert device.ready == f"nbd+unix:///vol?socket={path}"
        with NbdClient(path, "vol") as one, NbdClient(on_tcp.getsockname(), "vol") as other:
            one.write(12345, b"passed")
            assert other.read(12345, 6) == b"passed"
        assert {entry.name for entry in services.runtime_dir.iterdir()} == {"vol.control", "vol.lock"}
        assert device.stop() == ExitCode.OK
        assert path.is_socket()  # it is the service manager's


def test_client_that_came_first(services: Services) -> None:
    """A client that connects before the device runs waits and is served: nothing is lost in between."""
    services.expect_log("no peers are configured")
    path = services.folder / "passed.sock"
    with socket.socket(socket.AF_UNIX) as on_unix:
        on_unix.bind(str(path))
        on_unix.listen(16)
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(path))
            start_with(services, "device", device_command(services.folder), on_unix)
            early.settimeout(READY_TIMEOUT_S)
            assert early.recv(8, socket.MSG_WAITALL) == b"NBDMAGIC"


def test_daemon_on_a_passed_socket(services: Services) -> None:
    """A daemon takes the passed socket for page I/O and names its address in the leases that it grants."""
    with listening_tcp() as on_tcp:
        command = [*DAEMON, "--memory", "16MiB", "--headroom", "0", "--listen", "127.0.0.1:0"]
        daemon = start_with(services, "daemon", command, on_tcp)
        peer = daemon.ready.removeprefix("http://")
        device = services.device("vol", "--map", "eager", size="8MiB", peers=[peer])
        leases = json.loads((services.folder / "state/vol/leases.json").read_text())["leases"]
        assert [tuple(lease["address"]) for lease in leases] == [on_tcp.getsockname()]
        assert device.stop() == ExitCode.OK


def test_by_systemd_socket_activate(services: Services) -> None:
    """systemd's own tool starts the device at the first connection and the client is served."""
    services.expect_log("no peers are configured")
    path = services.folder / "activated.sock"
    passed_on = ("INFINISWAP_RUNTIME_DIR", "INFINISWAP_STATE_DIR", "PATH")
    settings = [f"--setenv={name}={services.environment[name]}" for name in passed_on]
    launcher = ["systemd-socket-activate", f"--listen={path}", *settings]
    device = services.spawn("device", [*launcher, *device_command(services.folder)])
    uri = f"nbd+unix:///vol?socket={path}"
    wait_for(path.is_socket, what="systemd's socket")
    assert int(tool("nbdinfo", "--size", uri)) == 8 * MIB
    device.read_ready(READY_TIMEOUT_S)
    assert int(tool("nbdinfo", "--size", uri)) == 8 * MIB
    assert device.stop() == ExitCode.OK


def test_started_by_nbdcopy(services: Services, tmp_path: Path) -> None:
    """nbdcopy starts the device itself, fills it, ends it, and finds everything when it starts it the next time."""
    (tmp_path / "in").write_bytes(os.urandom(8 * MIB))
    command = ["[", *device_command(services.folder), "]"]
    environment = dict(services.environment)
    for arguments in ([tmp_path / "in", *command], [*command, tmp_path / "out"]):
        done = subprocess.run(
            ["nbdcopy", "--", *map(str, arguments)], env=environment, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done
        # libnbd does not wait for the server, whose stop writes everything to the backup.
        wait_until_gone(services)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert (services.folder / "vol.img").read_bytes() == (tmp_path / "in").read_bytes()


def wait_until_gone(services: Services) -> None:
    """Until no device of this set is listed."""
    wait_for(lambda: services.command("device", "list", "-n").stdout == "", 20, "the end of the device")


def test_sockets_for_another_process(services: Services) -> None:
    """LISTEN_FDS with somebody else's LISTEN_PID is not ours: the device makes its own socket."""
    services.expect_log("no peers are configured")
    device = services.spawn("device", device_command(services.folder), LISTEN_FDS="1", LISTEN_PID="1")
    device.read_ready(READY_TIMEOUT_S)
    assert device.ready == f"nbd+unix:///vol?socket={services.runtime_dir / 'vol.sock'}"


def test_what_is_no_socket(services: Services) -> None:
    """A passed descriptor that is no listening socket ends the start with one clear line, nothing created."""
    with (services.folder / "file").open("w") as file:
        starter = activated(device_command(services.folder), file.fileno())
        done = subprocess.run(
            starter, env=services.environment, pass_fds=(file.fileno(),), capture_output=True, timeout=30, check=False
        )
    assert done.returncode == ExitCode.USAGE
    assert len(done.stderr.splitlines()) == 1
    assert b"LISTEN_FDS" in done.stderr
    assert not (services.folder / "vol.img").exists()
    assert not (services.folder / "state").exists()
