"""infiniswap rdma list: the RDMA ports of this host and what they are reached by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import make_output, output_options
from infiniswap.cli.table import Column, Row, columns_help, show
from infiniswap.kernel_shim import rdma_sysfs
from infiniswap.rdma.devices import list_ports
from infiniswap.rdma.path import ROCE_MTU_BYTES, show_gid

COLUMNS = (
    Column("PORT", "port", "device and number of the port"),
    Column("STATE", "state", "ACTIVE where pages can travel; DOWN, INIT, …"),
    Column("LINK", "link_layer", "Ethernet (RoCE) or InfiniBand"),
    Column("DRIVER", "driver", "soft-RoCE, or a dash for hardware", default=False),
    Column("NETDEV", "netdev", "network interface under it"),
    Column(
        "MTU", "mtu_bytes", f"MTU of that interface in bytes; {ROCE_MTU_BYTES} carries a page in one packet", right=True
    ),
    Column("LID", "lid", "local identifier; of InfiniBand ports only", right=True, default=False),
    Column("INDEX", "gid_index", "index of the GID", right=True),
    Column("GID", "gid", "address that the port is reached by; RoCE v2: an IP address of the interface"),
    Column("TYPE", "gid_type", "RoCE v2, or IB/RoCE v1"),
)


def list_rows(root: Path = Path("/")) -> list[Row]:
    """One row for each GID of each port; a port without any has one row all the same."""
    soft = {link.name: link.netdev for link in rdma_sysfs.read_links(root)}
    rows: list[Row] = []
    for port in list_ports(root):
        name = port.netdev or soft.get(port.device)
        netdev = rdma_sysfs.read_netdev(name, root) if name is not None else None
        common: dict[str, Any] = {
            "port": str(port),
            "state": port.state,
            "link_layer": str(port.link_layer),
            "driver": "soft-RoCE" if port.device in soft else None,
            "netdev": name,
            "mtu_bytes": netdev.mtu_bytes if netdev is not None else None,
            "lid": port.lid or None,
        }
        gids = [{"gid_index": gid.index, "gid": show_gid(gid.address), "gid_type": str(gid.kind)} for gid in port.gids]
        rows += [common | gid for gid in gids or [{"gid_index": None, "gid": None, "gid_type": None}]]
    return rows


@click.command("list", epilog=columns_help(COLUMNS))
@output_options
def command(**output: Any) -> None:
    """List this host's RDMA ports, a line for each address (GID)."""
    empty = "this host has no RDMA port; 'infiniswap rdma setup --netdev NAME' makes one in software"
    show(list_rows(), COLUMNS, make_output(**output), empty=empty)
