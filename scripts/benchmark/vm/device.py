"""This project's device over one daemon, by RDMA or TCP, and its own counts of what went between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.device.limits import PAGE_BYTES
from infiniswap.nbd.client import NbdClient, NegotiationError
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.contenders import Setting
from scripts.benchmark.device_contender import SETTLE_TIMEOUT_S, Device
from scripts.benchmark.swap.area import run

# A Python program takes seconds to start in an emulated machine, and longer when its host has other work.
START_TIMEOUT_S = 300.0
LEASE_TTL_S = 900
# The most there is: whatever is written during a run goes to the backup behind it, when settle() asks for that.
WRITEBACK_DELAY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Counts:
    """What a device has done so far. Latencies: of reads that a peer answered, from the request's sending on."""

    latency_total_us: float
    latencies: int
    remote_read_pages: int
    read_pages: int
    remote_written_pages: int

    def mean_latency_us(self, before: Counts) -> float | None:
        """Of the reads since before; None when there were none."""
        count = self.latencies - before.latencies
        return (self.latency_total_us - before.latency_total_us) / count if count > 0 else None

    def remote_share(self, before: Counts) -> float | None:
        """Of the pages read since before, those that came from a peer; None when none was read."""
        pages = self.read_pages - before.read_pages
        return (self.remote_read_pages - before.remote_read_pages) / pages if pages > 0 else None

    def remote_bytes(self, before: Counts, *, written: bool) -> int:
        """Moved to or from peers since before."""
        if written:
            return (self.remote_written_pages - before.remote_written_pages) * PAGE_BYTES
        return (self.remote_read_pages - before.remote_read_pages) * PAGE_BYTES


def parse_counts(peers: Sequence[Mapping[str, Any]], stats: Mapping[str, Any]) -> Counts:
    """From the control API's /v1/peers and /v1/stats."""
    total_us = sum(row["latency_total_us"] for row in peers)
    answered = sum(row["latency_count"] for row in peers)
    reads = stats["reads"]
    return Counts(total_us, answered, reads["remote"], sum(reads.values()), stats["writes"]["remote"])


class VmDevice(Device):
    """One daemon, one device service; write-behind waits until nothing is measured."""

    def __init__(self, setting: Setting, transport: str, address: str, rdma_poll_us: int) -> None:
        """transport: rdma or tcp; address: of the daemon, and of the RDMA port; rdma_poll_us: the device's option."""
        super().__init__(setting)
        self._rdma_poll_us = rdma_poll_us
        self.transport = transport
        self.name = f"infiniswap-{transport}"
        self.title = f"infiniswap over {transport.upper()}"
        self._address = address

    def start(self) -> None:
        """Daemon, device, data; returns when every page is in remote memory and on the backup."""
        setting = self.setting
        command = [beside_python("infiniswapd"), "--memory", str(setting.size_bytes + setting.slab_bytes)]
        command += [
            "--listen",
            f"{self._address}:0",
            "--insecure",
            "--headroom",
            "32MiB",
            "--lease-ttl-s",
            str(LEASE_TTL_S),
        ]
        daemon = self.run("daemon", command)
        peer = daemon.line(START_TIMEOUT_S).removeprefix("ready http://")
        command = [beside_python("infiniswap"), "device", "serve", self.name, "--size", str(setting.size_bytes)]
        command += ["--slab-size", str(setting.slab_bytes), "--backup", str(setting.folder / f"{self.name}.img")]
        command += ["--sparse", "--socket", str(setting.socket(self.name)), "--map", "eager", "--lock-memory"]
        command += ["--pending-limit", str(setting.pending_limit_bytes), "--peer", peer]
        command += ["--writeback-delay-ms", str(WRITEBACK_DELAY_MS), "--transport", self.transport]
        command += ["--rdma-poll-us", str(self._rdma_poll_us), "--insecure", "--no-encrypt"]
        self.service = self.run("device", command)
        self.service.line(START_TIMEOUT_S)
        self._wait(self._peer_up, "does not reach its daemon", START_TIMEOUT_S)
        self._fill()
        (peer_row,) = self._get("/v1/peers")
        if peer_row["transport"] != self.transport:
            why = peer_row["rdma_error"] or peer_row["last_error"] or "and does not say why"
            raise UserError(f"its daemon is reached over {peer_row['transport']}: {why}", ExitCode.FAILED)

    def settle(self) -> None:
        """Bring what is pending to the backup: reads of pending pages would not be remote."""
        try:
            with NbdClient(self.setting.socket(self.name), self.name, SETTLE_TIMEOUT_S) as client:
                client.flush()
        except (OSError, NegotiationError) as error:
            raise UserError(f"{self.name} does not flush: {error}", ExitCode.FAILED) from None
        super().settle()

    def attach(self, undo: ExitStack) -> Path:
        """Make it a block device of the kernel's nbd; its node."""
        command = beside_python("infiniswap")
        undo.callback(run, [command, "device", "detach", "--if-attached", self.name])
        return Path(run([command, "device", "attach", self.name]).strip())

    def counts(self) -> Counts:
        """So far."""
        return parse_counts(self._get("/v1/peers"), self._get("/v1/stats"))

    def _peer_up(self) -> bool:
        return all(peer["state"] == "up" for peer in self._get("/v1/peers"))
