"""Messages to nbd have the bytes that include/uapi/linux/nbd-netlink.h asks for, and answers are read from such."""

from __future__ import annotations

import struct
from pathlib import Path

from infiniswap.kernel_shim.nbd_netlink import (
    NbdClientFlag,
    NbdCommand,
    NbdStatus,
    build_message,
    nbd_msg,
    read_index,
    read_status,
)

NESTED = 0x8000


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute (netlink(7)): length with header, type, payload, padding to 4 bytes."""
    raw = struct.pack("=HH", 4 + len(payload), kind) + payload
    return raw + bytes(-len(raw) % 4)


def encoded(message: nbd_msg) -> tuple[int, int, bytes]:
    """Command, version and attributes of a message as it goes on the wire."""
    message.encode()
    command, version = struct.unpack_from("=BB", message.data, 16)
    return command, version, bytes(message.data[20:])


def decoded(attributes: bytes, command: NbdCommand) -> nbd_msg:
    """A message as the kernel would send it."""
    body = struct.pack("=BBH", command, 1, 0) + attributes
    message = nbd_msg(struct.pack("=IHHII", 16 + len(body), 0, 0, 0, 0) + body)
    message.decode()
    return message


def test_connect_is_encoded() -> None:
    """Every attribute of CONNECT has the number, width and nesting of the kernel's header."""
    message = build_message(
        NbdCommand.CONNECT,
        index=3,
        size_bytes=1 << 40,
        block_size_bytes=4096,
        timeout_s=10,
        dead_conn_timeout_s=600,
        server_flags=0x1ED,
        client_flags=NbdClientFlag.DISCONNECT_ON_CLOSE,
        sockets=[7, 9],
        backend_identifier="infiniswap:a",
    )
    command, version, attributes = encoded(message)
    items = b"".join(attribute(1 | NESTED, attribute(1, struct.pack("=I", fd))) for fd in (7, 9))
    assert (command, version) == (1, 1)
    assert attributes == b"".join(
        [
            attribute(1, struct.pack("=I", 3)),
            attribute(2, struct.pack("=Q", 1 << 40)),
            attribute(3, struct.pack("=Q", 4096)),
            attribute(4, struct.pack("=Q", 10)),
            attribute(5, struct.pack("=Q", 0x1ED)),
            attribute(6, struct.pack("=Q", 2)),
            attribute(8, struct.pack("=Q", 600)),
            attribute(10, b"infiniswap:a\0"),
            attribute(7 | NESTED, items),
        ]
    )


def test_absent_values_are_not_sent(tmp_path: Path) -> None:
    """No index lets the kernel choose: a zero would mean nbd0. Objects with fileno() are taken as sockets."""
    with (tmp_path / "file").open("w") as file:
        _, _, attributes = encoded(build_message(NbdCommand.CONNECT, sockets=[file]))
        item = attribute(1 | NESTED, attribute(1, struct.pack("=I", file.fileno())))
    assert attributes == attribute(7 | NESTED, item)
    assert encoded(build_message(NbdCommand.STATUS)) == (5, 1, b"")
    assert encoded(build_message(NbdCommand.DISCONNECT, index=0))[2] == attribute(1, bytes(4))


def test_answer_to_connect() -> None:
    """The index is found among the answers, the ACK without one notwithstanding; 0 is an index."""
    answer = decoded(attribute(1, struct.pack("=I", 0)), NbdCommand.CONNECT)
    assert read_index([decoded(b"", NbdCommand.CONNECT), answer]) == 0
    assert read_index([decoded(b"", NbdCommand.CONNECT)]) is None


def test_answer_to_status() -> None:
    """Nested device items come out sorted by index, whether or not the kernel sets the nesting bit."""

    def item(index: int, connected: int) -> bytes:
        values = attribute(1, struct.pack("=I", index)) + attribute(2, struct.pack("=B", connected))
        return attribute(1, values)

    answer = decoded(attribute(9, item(2, 0) + item(0, 1)), NbdCommand.STATUS)
    assert read_status([answer]) == (NbdStatus(0, True), NbdStatus(2, False))
    assert read_status([]) == ()
