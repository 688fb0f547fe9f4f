"""Messages to NETLINK_RDMA have the bytes that rdma/rdma_netlink.h asks for, and answers are read from such."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
from typing import Any, Self

import pytest

from infiniswap.kernel_shim import commands, worker
from infiniswap.kernel_shim.rdma_netlink import (
    RDMA,
    NldevCommand,
    RdmaDevice,
    build_message,
    nldev_msg,
    read_devices,
)

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
ACK, DUMP = 4, 0x300
DEV_INDEX, DEV_NAME, PORT_INDEX, NDEV_NAME, LINK_TYPE = 1, 2, 3, 51, 65


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute (netlink(7)): length with header, type, payload, padding to 4 bytes."""
    raw = struct.pack("=HH", 4 + len(payload), kind) + payload
    return raw + bytes(-len(raw) % 4)


def encoded(message: nldev_msg) -> tuple[int, bytes]:
    """Type and attributes of a message as it goes on the wire; there is no family header between."""
    message.encode()
    length, kind, *_ = HEADER.unpack_from(message.data)
    assert length == len(message.data)
    return kind, bytes(message.data[HEADER.size :])


def decoded(attributes: bytes) -> nldev_msg:
    """An answer to GET as the kernel would send it."""
    message = nldev_msg(HEADER.pack(HEADER.size + len(attributes), 5 << 10 | 1, 2, 0, 0) + attributes)
    message.decode()
    return message


def test_new_link_is_encoded() -> None:
    """NEWLINK carries name, type and interface as strings with their closing zero."""
    kind, attributes = encoded(build_message(NldevCommand.NEWLINK, name="rxe0", netdev="eth0", link_type="rxe"))
    assert kind == 0x1403
    assert attributes == attribute(DEV_NAME, b"rxe0\0") + attribute(LINK_TYPE, b"rxe\0") + attribute(
        NDEV_NAME, b"eth0\0"
    )


def test_other_commands_are_encoded() -> None:
    """DELLINK names its device by index, 0 being one; a dump carries nothing."""
    assert encoded(build_message(NldevCommand.DELLINK, index=0)) == (0x1404, attribute(DEV_INDEX, bytes(4)))
    assert encoded(build_message(NldevCommand.GET)) == (0x1401, b"")


def test_answer_to_get() -> None:
    """Index and name are read among attributes that are not known here; what lacks one of them is left out."""
    known = attribute(DEV_INDEX, struct.pack("=I", 3)) + attribute(DEV_NAME, b"rxe0\0")
    more = attribute(PORT_INDEX, struct.pack("=I", 1)) + attribute(4, bytes(8)) + attribute(90, b"\1")
    first = attribute(DEV_NAME, b"mlx5_0\0") + attribute(DEV_INDEX, bytes(4))
    answers = [decoded(known + more), decoded(first), decoded(attribute(DEV_NAME, b"odd\0")), decoded(b"")]
    assert read_devices(answers) == (RdmaDevice(0, "mlx5_0"), RdmaDevice(3, "rxe0"))


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes ask for an ACK, so that a refusal is heard of; the list is a dump."""
    sent: list[tuple[int, int]] = []

    def request(_self: Any, _message: Any, kind: int, flags: int) -> list[Any]:
        sent.append((kind, flags))
        return []

    monkeypatch.setattr(RDMA, "request", request)
    rdma = RDMA.__new__(RDMA)
    rdma.new_link("rxe0", "eth0")
    rdma.delete_link(1)
    assert rdma.devices() == ()
    assert sent == [(0x1403, ACK), (0x1404, ACK), (0x1401, DUMP)]


class FakeSocket:
    """Stands in for RDMA in the worker."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def devices(self) -> tuple[RdmaDevice, ...]:
        return (RdmaDevice(0, "mlx5_0"), RdmaDevice(7, "rxe0"))

    def new_link(self, *arguments: str) -> None:
        self.calls.append(arguments)

    def delete_link(self, index: int) -> None:
        self.calls.append((index,))


def test_worker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The worker deletes by name, which it looks up; a name that is not there is ENODEV and deletes nothing."""
    fake = FakeSocket()
    for name in ("rdma-add", "rdma-delete"):
        monkeypatch.setitem(worker.OPERATIONS, name, (lambda: fake, worker.OPERATIONS[name][1]))

    def answer(**request: Any) -> Any:
        assert worker.main([json.dumps(request)]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer(operation="rdma-add", name="rxe1", netdev="eth0") == {}
    assert answer(operation="rdma-delete", name="rxe0") == {}
    assert answer(operation="rdma-delete", name="rxe9")["errno"] == errno.ENODEV
    assert fake.calls == [("rxe1", "eth0"), (7,)]


def test_worker_without_rdma() -> None:
    """A kernel without RDMA, or without that device, is answered with an errno and no traceback."""
    request = json.dumps({"operation": "rdma-delete", "name": "no-such-link"})
    done = commands.run([sys.executable, "-P", "-m", "infiniswap.kernel_shim.worker", request], 60)
    answer = json.loads(done.output)
    assert answer["errno"] in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENODEV)
    assert answer["message"] == os.strerror(answer["errno"])
    assert done.code == 0
