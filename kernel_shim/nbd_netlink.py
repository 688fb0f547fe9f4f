"""Generic netlink family "nbd" of the Linux kernel, in the manner of pyroute2's generic modules.

Commands and attributes are those of include/uapi/linux/nbd-netlink.h; what the kernel does with them is in
drivers/block/nbd.c. Every command but STATUS needs CAP_SYS_ADMIN in the initial user namespace.

    with NBD() as nbd:
        index = nbd.connect([sock], size_bytes=1 << 30, backend_identifier="mine")
        nbd.device_status(index)
        nbd.disconnect(index)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Protocol

from pyroute2.netlink import (
    CTRL_CMD_GETFAMILY,
    GENL_ID_CTRL,
    NETLINK_GENERIC,
    NLA_F_NESTED,
    NLM_F_ACK,
    ctrlmsg,
    genlmsg,
    nla,
)

from infiniswap.kernel_shim.netlink_socket import NetlinkSocket

NBD_GENL_NAME = "nbd"
NBD_GENL_VERSION = 1
NBD_GENL_MCAST_GROUP = "nbd_mc_group"


class NbdCommand(IntEnum):
    """NBD_CMD_*; LINK_DEAD is only ever sent by the kernel, to the multicast group."""

    UNSPEC = 0
    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    LINK_DEAD = 4
    STATUS = 5


class NbdClientFlag(IntFlag):
    """NBD_CFLAG_* of NBD_ATTR_CLIENT_FLAGS."""

    NONE = 0
    DESTROY_ON_DISCONNECT = 1
    DISCONNECT_ON_CLOSE = 2


class nbd_msg(genlmsg):  # type: ignore[misc]  # noqa: N801  (pyroute2's own naming)
    """A message of the family."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "device_list"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]  # noqa: N801
        """List of connected sockets."""

        prefix = "NBD_SOCK_"
        nla_flags = NLA_F_NESTED
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            """One socket, by its number in the sending process."""

            prefix = "NBD_SOCK_"
            nla_flags = NLA_F_NESTED
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))

    class device_list(nla):  # type: ignore[misc]  # noqa: N801
        """List of devices in the answer to STATUS."""

        prefix = "NBD_DEVICE_"
        nla_flags = NLA_F_NESTED
        nla_map = (("NBD_DEVICE_ITEM_UNSPEC", "none"), ("NBD_DEVICE_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            """One device."""

            prefix = "NBD_DEVICE_"
            nla_flags = NLA_F_NESTED
            nla_map = (("NBD_DEVICE_UNSPEC", "none"), ("NBD_DEVICE_INDEX", "uint32"), ("NBD_DEVICE_CONNECTED", "uint8"))


class HasFileno(Protocol):
    """A socket, or anything else with a file descriptor."""

    def fileno(self) -> int:
        """The descriptor's number."""
        ...


@dataclass(frozen=True, slots=True)
class NbdStatus:
    """What STATUS says of one device."""

    index: int
    connected: bool


def _descriptor(sock: HasFileno | int) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


def build_message(
    command: NbdCommand,
    *,
    index: int | None = None,
    size_bytes: int | None = None,
    block_size_bytes: int | None = None,
    timeout_s: int | None = None,
    dead_conn_timeout_s: int | None = None,
    server_flags: int | None = None,
    client_flags: NbdClientFlag | None = None,
    sockets: Sequence[HasFileno | int] = (),
    backend_identifier: str | None = None,
) -> nbd_msg:
    """A message with those attributes that are given; pure, so that its bytes can be tested without a kernel."""
    message = nbd_msg()
    message["cmd"] = int(command)
    message["version"] = NBD_GENL_VERSION
    values: list[tuple[str, Any]] = [
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_SIZE_BYTES", size_bytes),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", block_size_bytes),
        ("NBD_ATTR_TIMEOUT", timeout_s),
        ("NBD_ATTR_SERVER_FLAGS", server_flags),
        ("NBD_ATTR_CLIENT_FLAGS", None if client_flags is None else int(client_flags)),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", dead_conn_timeout_s),
        ("NBD_ATTR_BACKEND_IDENTIFIER", backend_identifier),
    ]
    attributes: list[Any] = [(name, value) for name, value in values if value is not None]
    if sockets:
        items = [("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", _descriptor(sock))]}) for sock in sockets]
        attributes.append(("NBD_ATTR_SOCKETS", {"attrs": items}))
    message["attrs"] = attributes
    return message


def read_index(messages: Sequence[Any]) -> int | None:
    """The device's number in the answer to CONNECT, which the kernel sends besides the ACK."""
    for message in messages:
        index = message.get_attr("NBD_ATTR_INDEX")
        if index is not None:
            return int(index)
    return None


def read_status(messages: Sequence[Any]) -> tuple[NbdStatus, ...]:
    """The devices in the answer to STATUS, by index."""
    found: list[NbdStatus] = []
    for message in messages:
        devices = message.get_attr("NBD_ATTR_DEVICE_LIST")
        for item in devices.get_attrs("NBD_DEVICE_ITEM") if devices is not None else ():
            connected = bool(item.get_attr("NBD_DEVICE_CONNECTED"))
            found.append(NbdStatus(int(item.get_attr("NBD_DEVICE_INDEX")), connected))
    return tuple(sorted(found, key=lambda status: status.index))


class NBD(NetlinkSocket):
    """The family's commands. NetlinkError carries the kernel's errno in .code."""

    def __init__(self) -> None:
        """Open the socket and look the family up; NetlinkError ENOENT when module nbd is not loaded."""
        super().__init__(NETLINK_GENERIC)
        question = ctrlmsg()
        question["cmd"], question["version"] = CTRL_CMD_GETFAMILY, 1
        question["attrs"] = [("CTRL_ATTR_FAMILY_NAME", NBD_GENL_NAME)]
        try:
            (family,) = self.request(question, GENL_ID_CTRL, NLM_F_ACK)
        except BaseException:
            self.close()
            raise
        self._family = int(family.get_attr("CTRL_ATTR_FAMILY_ID"))
        groups = family.get_attr("CTRL_ATTR_MCAST_GROUPS") or ()
        self.mcast_groups = {
            str(group.get_attr("CTRL_ATTR_MCAST_GRP_NAME")): int(group.get_attr("CTRL_ATTR_MCAST_GRP_ID"))
            for group in groups
        }

    def _ask(self, message: nbd_msg) -> list[Any]:
        return self.request(message, self._family, NLM_F_ACK)

    def connect(
        self,
        sockets: Sequence[HasFileno | int],
        *,
        size_bytes: int,
        index: int | None = None,
        block_size_bytes: int = 4096,
        timeout_s: int = 0,
        dead_conn_timeout_s: int = 0,
        server_flags: int = 0,
        client_flags: NbdClientFlag = NbdClientFlag.NONE,
        backend_identifier: str | None = None,
    ) -> int:
        """Make a device of negotiated sockets; returns its number.

        index None lets the kernel choose one (it adds a device when none is free). EBUSY: the index is in use; EINVAL:
        no socket, a size that is no multiple of the block size, or a socket that is no stream socket.
        """
        message = build_message(
            NbdCommand.CONNECT,
            index=index,
            size_bytes=size_bytes,
            block_size_bytes=block_size_bytes,
            timeout_s=timeout_s,
            dead_conn_timeout_s=dead_conn_timeout_s,
            server_flags=server_flags,
            client_flags=client_flags,
            sockets=sockets,
            backend_identifier=backend_identifier,
        )
        found = read_index(self._ask(message))
        if found is None:
            raise RuntimeError("the kernel acknowledged NBD_CMD_CONNECT without an index")
        return found

    def reconfigure(
        self,
        index: int,
        *,
        sockets: Sequence[HasFileno | int] = (),
        timeout_s: int | None = None,
        dead_conn_timeout_s: int | None = None,
        client_flags: NbdClientFlag | None = None,
        backend_identifier: str | None = None,
    ) -> None:
        """Replace dead sockets of a connected device, or change its time-outs.

        The kernel answers success also when no socket was dead and it has let go of the new ones. backend_identifier
        must be repeated when CONNECT gave one (EINVAL otherwise). The size is not changed here: it must not change
        while requests are out.
        """
        message = build_message(
            NbdCommand.RECONFIGURE,
            index=index,
            timeout_s=timeout_s,
            dead_conn_timeout_s=dead_conn_timeout_s,
            client_flags=client_flags,
            sockets=sockets,
            backend_identifier=backend_identifier,
        )
        self._ask(message)

    def disconnect(self, index: int) -> None:
        """Tear the device down; succeeds also when it is not connected. EINVAL: there is no such device."""
        self._ask(build_message(NbdCommand.DISCONNECT, index=index))

    def device_status(self, index: int | None = None) -> tuple[NbdStatus, ...]:
        """State of one device or of all."""
        return read_status(self._ask(build_message(NbdCommand.STATUS, index=index)))
