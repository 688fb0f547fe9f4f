"""Keeps the daemon's memory while there is no daemon: a tiny process of its own, for hosts without systemd's fd store.

Run as a file, with nothing but the standard library: holder.py LISTENING_FD PATH. The daemon starts it, hands it two
descriptors by its UNIX socket, and gets them back from it after a restart. Requests are one line, answers another:

    take            have, with the descriptors | none | busy: a daemon that has not ended yet has them
    keep SECONDS    ok; with the descriptors, to be kept for so long after the daemon's end
    leave           ok; the daemon ends in order
    forget          ok; the holder ends, and the memory with it

Whose user id is not the holder's is shown out. The daemon has ended when its process has, all of its threads and
whatever they had in hand included, and not when its connection breaks.
"""

import os
import select
import socket
import struct
import sys
import time
from pathlib import Path

FIRST_WAIT_S = 30.0  # for the daemon that started this process to hand over what is to be kept
LINGER_S_MAX = 86400.0
CLIENTS_MAX = 8
LINE_BYTES_MAX = 64
ANSWER_TIMEOUT_S = 5.0  # for a client that does not take its answer


class Holder:
    """What is kept, for whom, and until when."""

    def __init__(self, listening: socket.socket) -> None:
        """Nothing is kept yet."""
        self.listening = listening
        self.clients: dict[int, socket.socket] = {}
        self.kept: list[int] = []
        self.linger_s = FIRST_WAIT_S
        self.daemon = -1  # pidfd of the daemon that has what is kept
        self.daemon_pid = 0
        self.over = False
        self.deadline_s = time.monotonic() + FIRST_WAIT_S

    def run(self) -> None:
        """Until told to end, or until no daemon has come for too long."""
        while not self.over:
            wait_s = None if self.daemon >= 0 else self.deadline_s - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                return
            poll = select.poll()
            for fd in (self.listening.fileno(), *self.clients, self.daemon):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            # One at a time: what is done for the first may close what the second is about.
            for fd, _ in poll.poll(None if wait_s is None else wait_s * 1000 + 1)[:1]:
                if fd == self.daemon:
                    self.alone()
                elif fd in self.clients:
                    self.hear(self.clients[fd])
                elif fd == self.listening.fileno():
                    self.accept()

    def accept(self) -> None:
        """A client, if it is of the same user."""
        client, _ = self.listening.accept()
        if len(self.clients) >= CLIENTS_MAX or self.peer(client)[1] != os.getuid():
            client.close()
            return
        client.settimeout(ANSWER_TIMEOUT_S)
        self.clients[client.fileno()] = client

    def peer(self, client: socket.socket) -> tuple[int, int]:
        """Process and user at the other end, as of when it connected."""
        pid, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid

    def hear(self, client: socket.socket) -> None:
        """Do what one line asks for; a client that asks for anything else is let go."""
        fds: list[int] = []
        try:
            line, fds, _, _ = socket.recv_fds(client, LINE_BYTES_MAX, 4)
            answer, gives = self.answer(client, line.split(), fds)
            if answer:
                socket.send_fds(client, [answer + b"\n"], gives)
                return
        except (OSError, ValueError):
            pass
        for fd in fds:
            os.close(fd)
        del self.clients[client.fileno()]
        client.close()

    def answer(self, client: socket.socket, words: list[bytes], fds: list[int]) -> tuple[bytes, list[int]]:
        """The answer and what goes with it; b"" when there is none."""
        pid = self.peer(client)[0]
        mine = self.daemon >= 0 and self.daemon_pid == pid
        if self.daemon >= 0 and not mine:
            return (b"busy" if not fds else b"", [])
        if words == [b"take"] and not fds:
            if not self.kept:
                return b"none", []
            self.attach(pid)
            return b"have", self.kept
        if len(words) == 2 and words[0] == b"keep" and len(fds) == 2:
            self.linger_s = min(max(float(words[1]), 0.0), LINGER_S_MAX)
            self.attach(pid)
            old, self.kept = self.kept, list(fds)
            for fd in old:
                os.close(fd)
            return b"ok", []
        if words == [b"leave"] and mine:
            self.alone()
            return b"ok", []
        if words == [b"forget"] and not fds:
            self.over = True
            return b"ok", []
        return b"", []

    def attach(self, pid: int) -> None:
        """A daemon has what is kept; OSError when it has ended already."""
        if self.daemon < 0:
            self.daemon = os.pidfd_open(pid)
            self.daemon_pid = pid

    def alone(self) -> None:
        """The daemon has ended."""
        os.close(self.daemon)
        self.daemon, self.daemon_pid = -1, 0
        self.deadline_s = time.monotonic() + self.linger_s


def main() -> None:
    """Go on as a process of nobody's, and hold."""
    fd, path = int(sys.argv[1]), Path(sys.argv[2])
    inode = path.stat().st_ino
    if os.fork():
        os._exit(0)
    listening = socket.socket(fileno=fd)
    try:
        Holder(listening).run()
    finally:
        try:
            if path.stat().st_ino == inode:
                path.unlink()
        except OSError:
            pass


if __name__ == "__main__":
    main()
