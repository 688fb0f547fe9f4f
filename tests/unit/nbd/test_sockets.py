"""Listening sockets are opened without races, foreign things are left alone, and mistakes are told in one line."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infiniswap.nbd.sockets import open_tcp_socket, open_unix_socket, sockets_from_environment
from infiniswap.shared.errors import ExitCode, UserError

ROOT = Path(__file__).resolve().parents[3]


def alive(path: Path) -> bool:
    """True when somebody listens at path."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def test_unix_socket(tmp_path: Path) -> None:
    """The socket listens with the mode wanted, whatever the umask, and its path goes with it."""
    for mode, umask in ((0o600, 0o022), (0o660, 0o077), (0o666, 0o777)):
        before = os.umask(umask)
        try:
            sock = open_unix_socket(tmp_path / "s", mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
        assert alive(tmp_path / "s")
        assert sock.getblocking() is False
        sock.close()
        assert not (tmp_path / "s").exists()
        sock.close()


def test_unix_socket_default_mode(tmp_path: Path) -> None:
    """Nobody but the owner may connect unless it is said."""
    with open_unix_socket(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_never_wider_than_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path has no wider mode even between its creation and the last step, whatever the umask."""
    chmod = Path.chmod
    seen: list[int] = []

    def watch(path: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", watch)
    before = os.umask(0)
    try:
        open_unix_socket(tmp_path / "s").close()
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_unix_socket_in_use(tmp_path: Path) -> None:
    """A path on which a server listens is refused, and the server is not harmed."""
    path = tmp_path / "s"
    with open_unix_socket(path):
        with pytest.raises(UserError, match="listening there already") as caught:
            open_unix_socket(path)
        assert caught.value.code is ExitCode.IN_USE
        assert alive(path)
    with socket.socket(socket.AF_UNIX) as full:  # a server whose backlog is full is alive too
        full.bind(str(path))
        full.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for client in (first, second):
                client.setblocking(False)
                client.connect_ex(str(path))
            with pytest.raises(UserError, match="listening there already"):
                open_unix_socket(path)


def test_stale_unix_socket(tmp_path: Path) -> None:
    """What a killed server left behind is replaced."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_unix_socket(path):
        assert alive(path)


@pytest.mark.parametrize("what", ["file", "folder", "link", "fifo"])
def test_foreign_thing_at_the_path(tmp_path: Path, what: str) -> None:
    """Anything but a socket is refused and stays as it is."""
    path = tmp_path / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(UserError, match="is not a socket") as caught:
        open_unix_socket(path)
    assert caught.value.code is ExitCode.REFUSED
    assert path.lstat() == before
    assert what != "file" or path.read_text() == "precious"


def test_impossible_paths(tmp_path: Path) -> None:
    """A folder that is missing and a path that is too long are told apart, and nothing is left."""
    with pytest.raises(UserError, match="there is no folder"):
        open_unix_socket(tmp_path / "none" / "s")
    with pytest.raises(UserError, match="too long"):
        open_unix_socket(tmp_path / ("s" * 120))
    assert list(tmp_path.iterdir()) == []


def test_closing_spares_a_successor(tmp_path: Path) -> None:
    """A path that another server has taken meanwhile is not removed by the former owner."""
    path = tmp_path / "s"
    old = open_unix_socket(path)
    path.unlink()
    with open_unix_socket(path):
        old.close()
        assert alive(path)


def test_one_winner(tmp_path: Path) -> None:
    """Of many servers that start on one stale path at once exactly one gets it."""
    path = tmp_path / "s"
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        won: list[socket.socket] = []
        lost: list[UserError] = []
        start = threading.Barrier(8)

        def begin(start: threading.Barrier, won: list[socket.socket], lost: list[UserError]) -> None:
            start.wait()
            try:
                won.append(open_unix_socket(path))
            except UserError as error:
                lost.append(error)

        threads = [threading.Thread(target=begin, args=(start, won, lost)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 7)
        assert alive(path)
        won[0].close()


def test_tcp_socket() -> None:
    """Port 0 finds a free port; a port in use and a foreign address are told in one line."""
    with open_tcp_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert port
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: cannot listen there: .*in use") as caught:
            open_tcp_socket("127.0.0.1", port)
        assert caught.value.code is ExitCode.IN_USE
    with open_tcp_socket("127.0.0.1", port) as sock:
        assert sock.getsockname() == ("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen there"):
        open_tcp_socket("192.0.2.1", 0)
    for host, number in (("no host", 0), ("127.0.0.1", 70000), ("x" * 300, 1)):
        with pytest.raises(UserError):
            open_tcp_socket(host, number)


PASSED = """
import os, socket, sys
from infiniswap.shared.errors import UserError
from infiniswap.nbd.sockets import sockets_from_environment
os.environ["LISTEN_PID"] = sys.argv[1].replace("self", str(os.getpid()))
os.environ["LISTEN_FDS"] = sys.argv[2]
kind = socket.SOCK_DGRAM if "datagram" in sys.argv else socket.SOCK_STREAM
sock = socket.socket(socket.AF_INET, kind)
sock.bind(("127.0.0.1", 0))
if "listen" in sys.argv:
    sock.listen()
os.dup2(sock.fileno(), 3)
try:
    print([s.getsockname() == sock.getsockname() and s.get_inheritable() for s in sockets_from_environment()])
    print("LISTEN_FDS" in os.environ)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("self", "1", "listen"), "[False]\nFalse\n"),
        (("1", "1", "listen"), "[]\nTrue\n"),
        (("self", "0"), "[]\nFalse\n"),
        (("self", "1"), "LISTEN_FDS: descriptor 3 is not a listening stream socket\n"),
        (("self", "1", "datagram"), "LISTEN_FDS: descriptor 3 is not a listening stream socket\n"),
        (("self", "60", "listen"), "LISTEN_FDS: descriptor 4 is not a socket: "),
        (("self", "-1"), "LISTEN_FDS=-1: must be a number up to 64\n"),
        (("self", "65"), "LISTEN_FDS=65: must be a number up to 64\n"),
        (("self", "many"), "LISTEN_FDS=many: must be a number up to 64\n"),
    ],
)
def test_sockets_from_environment(arguments: tuple[str, ...], said: str) -> None:
    """Sockets meant for this process are taken, not inherited further; what is no listening socket is refused."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PASSED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(said), done.stderr


def test_no_sockets_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables there are none."""
    monkeypatch.delenv("LISTEN_PID", raising=False)
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert sockets_from_environment() == []
