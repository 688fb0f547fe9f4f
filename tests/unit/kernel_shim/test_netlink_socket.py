"""Answers of the kernel are cut out of datagrams: one's own alone, up to the ACK, the end of a dump, or an errno."""

from __future__ import annotations

import errno
import struct

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from infiniswap.kernel_shim.netlink_socket import NetlinkSocket, answers_in
from infiniswap.kernel_shim.rdma_netlink import NldevCommand, build_message

NETLINK_ROUTE = 0
ERROR, DONE = 2, 3


def message(kind: int, sequence: int, body: bytes = b"") -> bytes:
    """One message with its header and padding."""
    raw = struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body
    return raw + bytes(-len(raw) % 4)


def test_up_to_the_acknowledgement() -> None:
    """Answers before the ACK count, what belongs to another request does not, wherever the datagram ends."""
    first, other, second = message(20, 7, b"abcde"), message(20, 6, b"x"), message(21, 7)
    assert answers_in(first + other + second, 7) == ([first[:21], second], False)
    assert answers_in(second + message(ERROR, 7, bytes(20)), 7) == ([second], True)
    assert answers_in(second + message(DONE, 7, bytes(4)), 7) == ([second], True)


def test_an_error_is_raised() -> None:
    """The kernel's errno, of this request only, be it an answer of its own or the end of a dump."""
    for kind in (ERROR, DONE):
        refused = message(kind, 7, struct.pack("=i", -errno.EBUSY) + bytes(16))
        with pytest.raises(NetlinkError) as caught:
            answers_in(refused, 7)
        assert caught.value.code == errno.EBUSY
        assert answers_in(refused, 8) == ([], False)


def test_what_is_cut_short() -> None:
    """A length that cannot be ends the datagram; nothing is read beyond it."""
    for data in (b"", b"abc", struct.pack("=IHHII", 3, 20, 0, 7, 0), bytes(64)):
        assert answers_in(data, 7) == ([], False)


def test_a_real_refusal() -> None:
    """The kernel answers a request that it does not know with an errno, and the next one is answered as well."""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        for _ in range(2):
            with pytest.raises(NetlinkError) as caught:
                netlink.request(build_message(NldevCommand.GET), 9999, 4)
            assert caught.value.code == errno.EOPNOTSUPP
