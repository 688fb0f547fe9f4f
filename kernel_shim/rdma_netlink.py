"""NETLINK_RDMA of the Linux kernel, as far as making and removing soft-RoCE links goes, in the manner of pyroute2.

Commands and attributes are those of include/uapi/rdma/rdma_netlink.h; what the kernel does with them is in
drivers/infiniband/core/nldev.c. NEWLINK and DELLINK need CAP_NET_ADMIN.

    with RDMA() as rdma:
        rdma.new_link("rxe0", "eth0")
        index = {device.name: device.index for device in rdma.devices()}["rxe0"]
        rdma.delete_link(index)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, nlmsg

from infiniswap.kernel_shim.netlink_socket import NetlinkSocket

NETLINK_RDMA = 20
RDMA_NL_NLDEV = 5
LINK_TYPE_RXE = "rxe"


class NldevCommand(IntEnum):
    """RDMA_NLDEV_CMD_*."""

    GET = 1
    NEWLINK = 3
    DELLINK = 4

    @property
    def message_type(self) -> int:
        """RDMA_NL_GET_TYPE of it; answers have the type of the request."""
        return RDMA_NL_NLDEV << 10 | self


class nldev_msg(nlmsg):  # type: ignore[misc]  # noqa: N801  (pyroute2's own naming)
    """A message of client RDMA_NL_NLDEV; attributes that are not used here are left out."""

    prefix = "RDMA_NLDEV_ATTR_"
    nla_map = (
        (1, "RDMA_NLDEV_ATTR_DEV_INDEX", "uint32"),
        (2, "RDMA_NLDEV_ATTR_DEV_NAME", "asciiz"),
        (3, "RDMA_NLDEV_ATTR_PORT_INDEX", "uint32"),
        (51, "RDMA_NLDEV_ATTR_NDEV_NAME", "asciiz"),
        (65, "RDMA_NLDEV_ATTR_LINK_TYPE", "asciiz"),
    )


@dataclass(frozen=True, slots=True)
class RdmaDevice:
    """What GET says of one device."""

    index: int
    name: str


def build_message(
    command: NldevCommand,
    *,
    index: int | None = None,
    name: str | None = None,
    netdev: str | None = None,
    link_type: str | None = None,
) -> nldev_msg:
    """A message with those attributes that are given; pure, so that its bytes can be tested without a kernel."""
    message = nldev_msg()
    message["header"]["type"] = command.message_type
    values: list[tuple[str, Any]] = [
        ("RDMA_NLDEV_ATTR_DEV_INDEX", index),
        ("RDMA_NLDEV_ATTR_DEV_NAME", name),
        ("RDMA_NLDEV_ATTR_LINK_TYPE", link_type),
        ("RDMA_NLDEV_ATTR_NDEV_NAME", netdev),
    ]
    message["attrs"] = [(attribute, value) for attribute, value in values if value is not None]
    return message


def read_devices(messages: Sequence[Any]) -> tuple[RdmaDevice, ...]:
    """The devices in the answers to a dump of GET, by index; answers without index or name are left out."""
    found = []
    for message in messages:
        index = message.get_attr("RDMA_NLDEV_ATTR_DEV_INDEX")
        name = message.get_attr("RDMA_NLDEV_ATTR_DEV_NAME")
        if index is not None and name is not None:
            found.append(RdmaDevice(int(index), str(name)))
    return tuple(sorted(found, key=lambda device: device.index))


class RDMA(NetlinkSocket):
    """The commands. NetlinkError carries the kernel's errno in .code."""

    def __init__(self) -> None:
        """Open the socket; OSError EPROTONOSUPPORT where the kernel knows no RDMA."""
        super().__init__(NETLINK_RDMA)

    def _ask(self, message: nldev_msg, flags: int) -> list[Any]:
        return self.request(message, message["header"]["type"], flags)

    def devices(self) -> tuple[RdmaDevice, ...]:
        """All devices but those that are being removed."""
        return read_devices(self._ask(build_message(NldevCommand.GET), NLM_F_DUMP))

    def new_link(self, name: str, netdev: str, link_type: str = LINK_TYPE_RXE) -> None:
        """Make a soft-RoCE device of a network interface.

        EEXIST: the interface has one already; ENFILE: the name is in use; ENODEV: no such interface; EPERM: a VLAN
        interface, or no CAP_NET_ADMIN; EINVAL: no such link type; ENOENT: the kernel has no crc32 at hand.
        """
        message = build_message(NldevCommand.NEWLINK, name=name, netdev=netdev, link_type=link_type)
        self._ask(message, NLM_F_ACK)

    def delete_link(self, index: int) -> None:
        """Remove a software device; returns when every program that has it open has closed it.

        EINVAL: there is none of that index, or it is no software device.
        """
        self._ask(build_message(NldevCommand.DELLINK, index=index), NLM_F_ACK)
