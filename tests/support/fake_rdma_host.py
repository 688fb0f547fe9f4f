"""A tree that looks like /sys, /dev and /proc of a host with RDMA, and calls that change it: no kernel is needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infiniswap.kernel_shim import kernel_call
from infiniswap.kernel_shim.kernel_call import KernelError, NoAnswerError

EMPTY_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
LINK_LOCAL_GID = "fe80:0000:0000:0000:5054:00ff:fe12:3456"
IPV4_GID = "0000:0000:0000:0000:0000:ffff:0a63:0001"  # 10.99.0.1
ROCE_V2 = "RoCE v2"


class FakeRdmaHost:
    """Root of the tree, and what was asked of it.

    refuse: errno with which the kernel refuses the next rdma-add; silent: it never answers rdma-delete.
    new_state, new_gids: what a new link's port shows; nodes: new devices get a node in /dev.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[dict[str, Any]] = []
        self.commands: list[list[str]] = []
        self.refuse: int | None = None
        self.silent = False
        self.nodes = True
        self.new_state = "4: ACTIVE"
        self.new_gids: Mapping[int, str] = {0: LINK_LOCAL_GID, 1: IPV4_GID}
        self.before_add: Callable[[], None] = lambda: None
        for folder in ("sys/class/infiniband", "sys/class/infiniband_verbs", "sys/class/net", "sys/module", "proc"):
            (root / folder).mkdir(parents=True)
        (root / "dev/infiniband").mkdir(parents=True)

    def add_netdev(
        self, name: str, *, flags: int = 0x1003, carrier: str = "1", mtu: int = 1500, vlan: bool = False
    ) -> None:
        """A network interface; flags 0x1002: down."""
        folder = self.root / "sys/class/net" / name
        folder.mkdir(exist_ok=True)
        kind = "DEVTYPE=vlan\n" if vlan else ""
        contents = {
            "flags": hex(flags),
            "mtu": str(mtu),
            "carrier": carrier,
            "uevent": f"{kind}INTERFACE={name}\nIFINDEX=2",
        }
        for file, content in contents.items():
            (folder / file).write_text(content + "\n")

    def add_device(self, name: str, *, parent: str | None = None) -> Path:
        """An RDMA device that programs can open; parent: a soft-RoCE one on that interface. Returns its folder."""
        folder = self.root / "sys/class/infiniband" / name
        (folder / "ports").mkdir(parents=True)
        if parent is not None:
            (folder / "parent").write_text(parent + "\n")
        number = len(list((self.root / "sys/class/infiniband_verbs").glob("uverbs*")))
        verbs = self.root / f"sys/class/infiniband_verbs/uverbs{number}"
        verbs.mkdir()
        (verbs / "ibdev").write_text(name + "\n")
        if self.nodes:
            (self.root / f"dev/infiniband/uverbs{number}").touch()
        return folder

    def add_port(
        self,
        device: str,
        number: int = 1,
        *,
        state: str = "4: ACTIVE",
        link_layer: str = "Ethernet",
        lid: str = "0x0",
        gids: Mapping[int, str] | None = None,
        kinds: Mapping[int, str] | None = None,
        netdev: str | None = None,
    ) -> None:
        """A port; gids by index, with holes as the kernel shows them up to the highest index."""
        gids, kinds = gids or {}, kinds or {}
        folder = self.root / "sys/class/infiniband" / device / "ports" / str(number)
        for part in ("gids", "gid_attrs/types", "gid_attrs/ndevs"):
            (folder / part).mkdir(parents=True)
        for file, content in {"state": state, "link_layer": link_layer, "lid": lid}.items():
            (folder / file).write_text(content + "\n")
        for index in range(max(gids, default=-1) + 2):
            (folder / f"gids/{index}").write_text(gids.get(index, EMPTY_GID) + "\n")
            if index in gids:
                (folder / f"gid_attrs/types/{index}").write_text(kinds.get(index, ROCE_V2) + "\n")
                if netdev is not None:
                    (folder / f"gid_attrs/ndevs/{index}").write_text(netdev + "\n")

    def add_link(self, name: str, netdev: str) -> None:
        """A soft-RoCE link as the kernel makes it."""
        self.add_device(name, parent=netdev)
        self.add_port(name, state=self.new_state, gids=self.new_gids, netdev=netdev)

    def close(self, name: str) -> None:
        """The kernel removes the device, and waits for those who have it open: only its node has gone."""
        for entry in (self.root / "sys/class/infiniband_verbs").iterdir():
            if (entry / "ibdev").read_text().strip() == name:
                (entry / "ibdev").unlink()
                entry.rmdir()
                (self.root / "dev/infiniband" / entry.name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """The device is gone."""
        self.close(name)
        folder = self.root / "sys/class/infiniband" / name
        folder.rename(self.root / f"gone-{name}-{len(self.calls)}")

    def add_process(self, pid: int, command: str, *targets: str) -> None:
        """A process that has files open."""
        (self.root / f"proc/{pid}/fd").mkdir(parents=True)
        (self.root / f"proc/{pid}/comm").write_text(command + "\n")
        for number, target in enumerate(targets):
            (self.root / f"proc/{pid}/fd/{number}").symlink_to(target)

    def names(self) -> list[str]:
        """RDMA devices that are there, those that are being removed too."""
        return sorted(entry.name for entry in (self.root / "sys/class/infiniband").iterdir())

    def call(
        self, request: dict[str, Any], timeout_s: float, *, progress: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Stands in for kernel_call.call."""
        del timeout_s
        self.calls.append(request)
        name = request["name"]
        if request["operation"] == "rdma-add":
            self.before_add()
            if self.refuse is not None:
                raise KernelError(self.refuse, os.strerror(self.refuse))
            self.add_link(name, request["netdev"])
            return {}
        assert request["operation"] == "rdma-delete"
        if name not in self.names():
            raise KernelError(errno.ENODEV, os.strerror(errno.ENODEV))
        self.close(name)
        if progress is not None:
            progress()
        if self.silent:
            raise NoAnswerError("no answer in time", timed_out=True)
        (self.root / "sys/class/infiniband" / name).rename(self.root / f"gone-{name}-{len(self.calls)}")
        return {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in place of the real one."""
        patch.setattr(kernel_call, "call", self.call)
        patch.setattr(os, "geteuid", lambda: 0)
