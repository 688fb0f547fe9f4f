"""Floods of raw connections from an address of their own, so that their target can tell them from honest clients."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tests.support.waiting import wait_for

STRANGER = "127.0.0.2"  # reaches whatever listens on 127.0.0.1
CONNECT_TIMEOUT_S = 10.0
PAUSE_S = 0.0005  # between connections: a flood of a thousand or two a second


@contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """Room for so many sockets in this process and those that it starts, where the default limit has less."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, wanted)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Flood:
    """Opens connections as quickly as it can, and keeps the last `kept` of them open."""

    def __init__(self, address: tuple[str, int], *, kept: int, speech: bytes = b"", source: str = STRANGER) -> None:
        """speech: what each connection says, and no more."""
        self.opened = 0
        self._address = address
        self._speech = speech
        self._source = source
        self._held: deque[socket.socket] = deque()
        self._kept = kept
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in self._held:
            sock.close()

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S):
            with contextlib.suppress(OSError):
                sock = socket.create_connection(self._address, CONNECT_TIMEOUT_S, (self._source, 0))
                self._held.append(sock)
                self.opened += 1
                if self._speech:
                    sock.sendall(self._speech)
            while len(self._held) > self._kept:
                self._held.popleft().close()

    def rages(self, opened: int, timeout_s: float = 60.0) -> None:
        """Return when so many connections were opened."""
        wait_for(lambda: self.opened >= opened, timeout_s, f"{opened} connections")
