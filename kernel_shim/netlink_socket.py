"""A netlink socket that asks and waits for the answer; messages are pyroute2's, which differs in its own sockets.

(They are another thing in each of its releases: threads in 0.7, which Debian 12 has, an event loop in 0.9.)
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError

# For an answer that the kernel has already given when it returns from the sending; what hangs, hangs in the sending.
ANSWER_TIMEOUT_S = 30.0
_ANSWER_BYTES_MAX = 1 << 16
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ERROR = struct.Struct("=i")
_NLMSG_ERROR = 2
_NLMSG_DONE = 3


def answers_in(data: bytes, sequence: int) -> tuple[list[bytes], bool]:
    """Messages of that sequence number in one datagram, and whether they are the last. NetlinkError: what it says."""
    found: list[bytes] = []
    while len(data) >= _HEADER.size:
        length, kind, _, number, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            break
        message, data = data[:length], data[(length + 3) & ~3 :]
        if number != sequence:
            continue  # of a request before, which was given up
        if kind in (_NLMSG_ERROR, _NLMSG_DONE):
            code = _ERROR.unpack_from(message, _HEADER.size)[0] if len(message) >= _HEADER.size + _ERROR.size else 0
            if code < 0:
                raise NetlinkError(-code)
            return found, True
        found.append(message)
    return found, False


class NetlinkSocket:
    """One socket of one netlink protocol, for one thread."""

    def __init__(self, protocol: int) -> None:
        """Open it; OSError where the kernel does not know the protocol."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(ANSWER_TIMEOUT_S)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def request(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Send a message, with an ACK or a dump asked for in flags; returns the answers, of its own class.

        NetlinkError carries the kernel's errno in .code. TimeoutError: no answer within ANSWER_TIMEOUT_S.
        """
        self._sequence += 1
        header = message["header"]
        header["type"], header["flags"], header["sequence_number"] = kind, NLM_F_REQUEST | flags, self._sequence
        message.encode()
        self._socket.sendto(message.data, (0, 0))
        answers: list[Any] = []
        last = False
        while not last:
            found, last = answers_in(self._socket.recv(_ANSWER_BYTES_MAX), self._sequence)
            for data in found:
                answer = type(message)(data)
                answer.decode()
                answers.append(answer)
        return answers
