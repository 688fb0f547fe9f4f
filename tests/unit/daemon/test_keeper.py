"""Where memory waits for the next daemon: what a holder gives back, to whom, and for how long; systemd's fd store."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infiniswap.daemon import holder
from infiniswap.daemon.keeper import (
    KEPT_NAMES,
    HolderKeeper,
    Kept,
    NoKeeper,
    SystemdKeeper,
    make_keeper,
)
from infiniswap.shared.errors import UserError
from infiniswap.shared.notify import notify
from infiniswap.shared.passed import Passed
from tests.support.holders import end_holder
from tests.support.waiting import wait_for


def make_kept(text: bytes = b"pages") -> Kept:
    """Two memfds with something in them."""
    fds = [os.memfd_create(name, os.MFD_CLOEXEC) for name in KEPT_NAMES]
    for fd in fds:
        os.write(fd, text)
    return Kept(*fds)


def said(kept: Kept) -> list[bytes]:
    """What is in them."""
    return [os.pread(fd, 100, 0) for fd in kept]


def holder_pid(path: Path) -> int:
    """The process behind the socket; whoever asks the socket itself is told who made it."""
    (found,) = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(path) in (process.info["cmdline"] or []) and holder.__file__ in process.info["cmdline"]
    ]
    return int(found)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a holder's socket; whatever holder is left there ends."""
    where = tmp_path / "h"
    yield where
    end_holder(where)


def test_a_holder_gives_back_what_it_got(path: Path) -> None:
    """The descriptors come back after the daemon has left, as often as it takes, and nothing before it has any."""
    keeper = HolderKeeper(path, linger_s=60.0)
    assert keeper.take() is None
    kept = make_kept()
    keeper.keep(kept)
    assert path.stat().st_mode & 0o777 == 0o600
    kept.close()
    keeper.leave()
    for _ in range(2):
        again = HolderKeeper(path, linger_s=60.0)
        found = again.take()
        assert found is not None
        assert said(found) == [b"pages", b"pages"]
        assert not any(os.get_inheritable(fd) for fd in found)
        found.close()
        again.leave()


def test_what_is_kept_anew_replaces_the_old(path: Path) -> None:
    """A daemon that could not use what it got hands over its own, with the same holder."""
    for text in (b"old", b"new"):
        keeper = HolderKeeper(path, linger_s=60.0)
        before = keeper.take()
        kept = make_kept(text)
        keeper.keep(kept)
        kept.close()
        keeper.leave()
    assert before is not None
    assert said(before) == [b"old", b"old"]
    before.close()
    keeper = HolderKeeper(path, linger_s=60.0)
    found = keeper.take()
    assert found is not None
    assert said(found) == [b"new", b"new"]
    found.close()
    keeper.leave()


DAEMON = """
import os, sys
from pathlib import Path
from infiniswap.daemon.keeper import HolderKeeper, Kept
keeper = HolderKeeper(Path(sys.argv[1]), linger_s=float(sys.argv[2]))
kept = keeper.take()
if kept is None:
    kept = Kept(os.memfd_create("a"), os.memfd_create("b"))
    keeper.keep(kept)
print("have", flush=True)
sys.stdin.read()
"""


def start_daemon(path: Path, linger_s: float) -> subprocess.Popen[bytes]:
    """A process that has its memory with the holder."""
    command = [sys.executable, "-c", DAEMON, str(path), str(linger_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"have\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill -9."""
    process.kill()
    process.communicate()


def test_a_second_daemon_waits_for_the_first_ones_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first lives, nobody else gets its memory, not even for the asking; once it is killed, the next does."""
    first = start_daemon(path, 60.0)
    monkeypatch.setattr("infiniswap.daemon.keeper.BUSY_TIMEOUT_S", 0.2)
    with pytest.raises(UserError, match="another daemon has the memory"):
        HolderKeeper(path, linger_s=60.0).take()
    monkeypatch.undo()
    found: list[Kept | None] = []
    keeper = HolderKeeper(path, linger_s=60.0)
    second = threading.Thread(target=lambda: found.append(keeper.take()))
    second.start()
    end(first)
    second.join()
    assert found[0] is not None
    found[0].close()
    keeper.leave()


def test_a_holder_ends_when_nobody_comes(path: Path) -> None:
    """After its time without a daemon, and not before: the memory is the host's again, and the path is free."""
    daemon = start_daemon(path, 0.3)
    pid = holder_pid(path)
    assert os.getsid(pid) != os.getsid(0)
    end(daemon)
    wait_for(lambda: not path.exists(), what="the holder's end")
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the holder's end")


def test_a_holder_that_is_killed_is_replaced(path: Path) -> None:
    """Its socket is stale then; the daemon starts another one, with memory of its own."""
    end(start_daemon(path, 60.0))
    pid = holder_pid(path)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the holder's death")
    keeper = HolderKeeper(path, linger_s=60.0)
    assert keeper.take() is None
    kept = make_kept()
    keeper.keep(kept)
    kept.close()
    assert holder_pid(path) != pid
    keeper.leave()


def test_nonsense_to_a_holder(path: Path) -> None:
    """Who says anything else is let go, with all the descriptors that it sent, and the daemon keeps what it has."""
    daemon = start_daemon(path, 60.0)
    fds = Path(f"/proc/{holder_pid(path)}/fd")
    before = len(list(fds.iterdir()))
    spare = make_kept()
    for line, sent in ((b"\xff\n", ()), (b"forget\n", ()), (b"keep 1\n", spare), (b"keep\n", spare), (b"", ())):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            sock.settimeout(20)
            if line:
                socket.send_fds(sock, [line], sent)
                assert sock.recv(100) in (b"busy\n", b"")
    spare.close()
    wait_for(lambda: len(list(fds.iterdir())) == before, what="the holder letting go")
    end(daemon)


def test_a_path_that_is_something_else(tmp_path: Path) -> None:
    """A file of that name, or no folder: one clear line."""
    (tmp_path / "file").write_text("mine")
    keeper = HolderKeeper(tmp_path / "file", linger_s=1.0)
    assert keeper.take() is None
    kept = make_kept()
    for where, words in ((tmp_path / "file", "is not a socket"), (tmp_path / "none" / "h", "there is no folder")):
        with pytest.raises(UserError, match=words):
            HolderKeeper(where, linger_s=1.0).keep(kept)
    kept.close()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_server_that_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else listens at the path is told from a holder, and the daemon does not wait for it without end."""
    monkeypatch.setattr("infiniswap.daemon.keeper.BUSY_TIMEOUT_S", 0.2)
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(0.1)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError), listening.accept()[0] as client:
                    client.settimeout(20)
                    client.recv(100)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(UserError, match="does not answer as a holder does"):
                HolderKeeper(tmp_path / "s", linger_s=1.0).take()
        finally:
            over.set()
            thread.join()


def test_another_users_holder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon takes nothing from a process of another user, and a holder gives nothing to one."""
    end(start_daemon(path, 60.0))
    with monkeypatch.context() as patch:
        patch.setattr("infiniswap.daemon.keeper.os.getuid", lambda: 12345)
        with pytest.raises(UserError, match="another user listens there"):
            HolderKeeper(path, linger_s=1.0).take()
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listening, ours, theirs, monkeypatch.context() as patch:
        listening.bind(str(path.parent / "own"))
        listening.listen()
        held = holder.Holder(listening)
        patch.setattr("infiniswap.daemon.holder.os.getuid", lambda: 12345)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path.parent / "own"))
            held.accept()
            assert held.clients == {}
            assert client.recv(10) == b""


class Manager:
    """A service manager's socket, and what came through it."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(20)

    def receive(self) -> tuple[list[str], list[int]]:
        """One message."""
        text, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
        return text.decode().split("\n"), fds


def test_systemds_fd_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept goes there under its names after whatever was there; what comes back is taken by name."""
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    kept = make_kept()
    SystemdKeeper([], notify).keep(kept)
    for name in KEPT_NAMES:
        assert manager.receive() == (["FDSTOREREMOVE=1", f"FDNAME={name}"], [])
    passed = []
    for name in KEPT_NAMES:
        words, (fd,) = manager.receive()
        assert words[:2] == ["FDSTORE=1", f"FDNAME={name}"]
        passed.append(Passed(name, fd))
    kept.close()
    found = make_keeper(None, passed=passed[::-1], managed=True, linger_s=1.0).take()
    assert found is not None
    assert [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in found] == [
        f"/memfd:{name} (deleted)" for name in KEPT_NAMES
    ]
    keeper = SystemdKeeper(passed[:1], notify)
    assert keeper.take() is None, "one without the other is worth nothing"
    for name in KEPT_NAMES:
        assert manager.receive() == (["FDSTOREREMOVE=1", f"FDNAME={name}"], [])
    os.close(found.leases)
    manager.sock.close()


def test_what_lasts(path: Path) -> None:
    """Nothing without a keeper; with a holder everything, once it is there; with systemd what a restart is about."""
    assert not NoKeeper().lasts()
    assert SystemdKeeper([], notify, lambda: True).lasts()
    assert not SystemdKeeper([], notify, lambda: False).lasts()
    keeper = HolderKeeper(path, linger_s=60.0)
    assert not keeper.lasts()
    kept = make_kept()
    keeper.keep(kept)
    kept.close()
    assert keeper.lasts()
    keeper.forget()
    assert not keeper.lasts()


def test_what_nobody_wants_is_closed() -> None:
    """Memory that was passed to a daemon that keeps none is let go of."""
    kept = make_kept()
    passed = [Passed(name, fd) for name, fd in zip(KEPT_NAMES, kept, strict=True)]
    assert isinstance(make_keeper(None, passed=passed, managed=False, linger_s=1.0), NoKeeper)
    for fd in kept:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
