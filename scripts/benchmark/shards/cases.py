"""A device with one service or two, its daemons and its clients: set up, pinned and measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark import accounting, fio
from scripts.benchmark.affinity import pin, strays
from scripts.benchmark.cluster import beside_python
from scripts.benchmark.contenders import nbd_target
from scripts.benchmark.processes import Program, Programs
from scripts.benchmark.shards.clients import Plan, fio_command, run_fio, run_of
from scripts.benchmark.shards.results import Run, misplaced
from scripts.benchmark.workload import Workload

SETTLE_TIMEOUT_S = 120.0
FILL_PASSES_MAX = 5
PENDING_BYTES = 64 << 20  # of a device, and of each shard where it has a core of its own
BUSY_SHARE = 0.1  # of the machine, by others


class Case:
    """Daemons, a device on them, and as many clients as there are parts."""

    def __init__(self, name: str, plan: Plan, folder: Path, programs: Programs, cores: Sequence[int]) -> None:
        """Start everything and fill the device, so that all pages are in daemons' memory. cores: for what is pinned."""
        self.name, self.plan, self._programs = name, plan, programs
        self.shards = 2 if name.startswith("two") else 1
        self.clients = 1 if name == "one-core" else 2
        self.cores = list(cores[: self.clients]) if "core" in name else []  # empty: anywhere
        size_bytes = plan.size_bytes * self.clients
        self._daemons = [self._daemon(number, size_bytes) for number in range(self.clients)]
        self._peers = [programs.ready_line(daemon).partition("//")[2] for daemon in self._daemons]
        command = [beside_python("infiniswap"), "device", "serve", name, "--size", str(size_bytes)]
        command += ["--slab-size", str(plan.slab_bytes), "--backup", str(folder / f"{name}.img"), "--map", "eager"]
        pending_bytes = PENDING_BYTES * max(1, len(self.cores))
        command += ["--pending-limit", str(pending_bytes), "--socket", str(folder / f"{name}.sock")]
        command += [part for peer in self._peers for part in ("--peer", peer)]
        command += ["--shards", str(self.shards)] if self.shards > 1 else []
        self._service = programs.start(f"{name}-device", command)
        programs.ready_line(self._service)
        self._control = DeviceClient(name, folder / "run")
        status = self._control.get("/v1/status")
        parts = status.get("shards") or [status]
        self._sockets = [(part["socket"], part["name"]) for part in parts]
        self._services = [int(part["pid"]) for part in parts]
        self._shards = [DeviceClient(part["name"], folder / "run") for part in parts]
        if self.cores:
            self._part_peers()
            self._pin()
        self._fill()

    def _daemon(self, number: int, size_bytes: int) -> Program:
        command = [beside_python("infiniswapd"), "--memory", str(size_bytes), "--headroom", "0"]
        return self._programs.start(f"{self.name}-daemon-{number}", [*command, "--listen", "127.0.0.1:0"])

    def _part_peers(self) -> None:
        """Each shard keeps the daemon of its own core alone: else half of its pages would cross over to the other."""
        for number, shard in enumerate(self._shards):
            others = [peer for other, peer in enumerate(self._peers) if other != number]
            for peer in others:
                shard.post("/v1/peers/remove", {"peer": peer, "deadline_s": SETTLE_TIMEOUT_S})

            def parted(shard: DeviceClient = shard, own: str = self._peers[number]) -> bool:
                return [row["peer"] for row in shard.get("/v1/peers")] == [own]

            self._programs.wait_until(parted, self._service, "keeps a peer that it should not", SETTLE_TIMEOUT_S)

    def _pin(self) -> None:
        for core, daemon, service in zip(self.cores, self._daemons, self._services, strict=False):  # no cores: none
            pin(daemon.pid, {core})
            pin(service, {core})

    def _check(self) -> None:
        """UserError where a pinned case is not what it says: a page on another core's daemon, a thread elsewhere."""
        for number, (core, shard) in enumerate(zip(self.cores, self._shards, strict=False)):
            rows: list[dict[str, Any]] = shard.get("/v1/slabs")
            found = misplaced(rows, self._peers[number])
            found += strays(self._daemons[number].pid, {core}) + strays(self._services[number], {core})
            if found:
                raise UserError(f"{self.name}: not all is on core {core}: {', '.join(found[:5])}", ExitCode.FAILED)

    def _target(self, client: int) -> list[str]:
        socket, export = self._sockets[client % self.shards]
        return nbd_target(Path(socket), export)

    def _offset(self, client: int) -> int:
        """Where this client's part of its target begins."""
        return client // self.shards * self.plan.size_bytes

    def _fill(self) -> None:
        for _ in range(FILL_PASSES_MAX):
            for client in range(self.clients):
                command = fio.fill_arguments(self._target(client), self.plan.size_bytes)
                fio.run([*command, f"--offset={self._offset(client)}"], "write", fio.FILL_TIMEOUT_S)
            self._programs.wait_until(self._mapped, self._service, "maps not all", SETTLE_TIMEOUT_S)
            self.settle()
            pages = self.plan.size_bytes * self.clients // 4096
            if self._control.get("/v1/snapshot?cells=1")["slabs"]["remote_pages"] == pages:
                return
        raise UserError(f"{self.name}: not all pages are in remote memory", ExitCode.FAILED)

    def _mapped(self) -> bool:
        sums = self._control.get("/v1/snapshot?cells=1")["slabs"]
        return not (sums["unmapped"] or sums["mapping"] or sums["draining"])

    def settle(self) -> None:
        """Until nothing is on its way to the backup."""

        def settled() -> bool:
            return bool(self._control.get("/v1/stats")["pending_bytes"] == 0)

        self._programs.wait_until(settled, self._service, "still has pending data", SETTLE_TIMEOUT_S)

    def takes(self, _workload: Workload) -> bool:
        """All of them."""
        return True

    def measure(self, workload: Workload, number: int) -> Run:
        """All clients at once."""
        self._pin()
        self._check()
        pids = [*(daemon.pid for daemon in self._daemons), *self._services]
        reads, cpu_s = self._reads(), accounting.cpu_seconds(pids)
        busy_s, begun_s, ours_s = accounting.busy_seconds()[0], time.monotonic(), accounting.children_cpu_seconds()
        cores: list[int | None] = [*self.cores] or [None] * self.clients
        commands = [
            fio_command(self._target(client), workload, self.plan, 10 * number + client, self._offset(client), core)
            for client, core in enumerate(cores)
        ]
        found = run_fio(self.name, commands, workload, self.plan)
        self._check()  # threads come while there is work
        servers_s = accounting.cpu_seconds(pids) - cpu_s
        others_s = accounting.busy_seconds()[0] - busy_s - servers_s - (accounting.children_cpu_seconds() - ours_s)
        share = others_s / max(1e-9, time.monotonic() - begun_s) / (os.cpu_count() or 1)
        after = self._reads()
        pages = {source: after[source] - reads[source] for source in after}
        remote_share = pages["remote"] / max(1, sum(pages.values()))
        busy = share > BUSY_SHARE
        return run_of(self.name, workload, number, found, servers_s=servers_s, remote_share=remote_share, busy=busy)

    def _reads(self) -> dict[str, int]:
        reads = self._control.get("/v1/stats")["reads"]
        assert isinstance(reads, dict)
        return reads
