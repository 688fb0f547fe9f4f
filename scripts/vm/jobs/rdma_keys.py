"""A device of its own making against a memory daemon over RDMA: rdma_keys.py URL PID, PID being the daemon's process.

It borrows like a device, with a client of its own for the API and plain pyverbs for the pages, and looks at the same
memory through the lease's NBD export. Ends with 0 when every key opened what it should, and nothing else.
"""

import ipaddress
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from infiniswap.nbd.client import NbdClient

DEVICE, PORT = "rxe0", 1
PAGE = 4096
SLAB = 1 << 20
SLABS = 16
MTUS = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
PAGES = 4000  # of the comparison of processor times
POOLED = 8  # slabs registered in advance for two leases
WAIT_S = 120.0


def check(holds: object, what: str) -> None:
    """End with a word when something is not as it must be."""
    if not holds:
        sys.exit(f"FAILED: {what}")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it, within reason."""
    end = time.monotonic() + WAIT_S
    while not condition():
        check(time.monotonic() < end, f"not within {WAIT_S:g} s: {what}")
        time.sleep(0.1)


class Daemon:
    """The control API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, token: str = "", body: object = None) -> Any:
        """The answer's JSON; an HTTPError for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {token}"}, method=method)
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)

    def rdma(self) -> Any:
        """What the daemon tells of RDMA."""
        return self.call("GET", "/v1/stats")["rdma"]


class Host:
    """The opened device of this end."""

    def __init__(self) -> None:
        self.context = Context(name=DEVICE)
        self.gid_index, self.gid = next(
            (index, self.context.query_gid(PORT, index).gid)
            for index in range(16)
            if "ffff" in self.context.query_gid(PORT, index).gid.split(":")[5]
        )
        code = self.context.query_port(PORT).active_mtu
        self.mtu_bytes = next(size for size, known in MTUS.items() if known == code)


class Connected:
    """Two queue pairs to a lease's, and a buffer."""

    def __init__(self, host: Host, lease: "Lease") -> None:
        self.domain = PD(host.context)
        self.completions = CQ(host.context, 16)
        capacity = QPCap(max_send_wr=8, max_recv_wr=1)
        wanted = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.completions, rcq=self.completions, cap=capacity)
        self.pairs = [QP(self.domain, wanted, None) for _ in range(2)]
        self.buffer = MR(self.domain, SLAB, e.IBV_ACCESS_LOCAL_WRITE)
        end = {
            "link_layer": "Ethernet",
            "gid": host.gid,
            "lid": 0,
            "mtu_bytes": host.mtu_bytes,
            "reads_max": 16,
            "queue_pairs": [{"number": pair.qp_num, "psn": 100 + i} for i, pair in enumerate(self.pairs)],
        }
        self.answer = lease.call("POST", "/rdma", {"path": end})
        for i, (pair, remote) in enumerate(zip(self.pairs, self.answer["path"]["queue_pairs"], strict=True)):
            self._connect(host, pair, remote, 100 + i)

    def _connect(self, host: Host, pair: Any, remote: dict[str, int], psn: int) -> None:
        there = self.answer["path"]
        attributes = QPAttr(port_num=PORT)
        pair.to_init(attributes)
        attributes.path_mtu = MTUS[min(host.mtu_bytes, there["mtu_bytes"])]
        attributes.dest_qp_num, attributes.rq_psn = remote["number"], remote["psn"]
        attributes.max_dest_rd_atomic, attributes.min_rnr_timer = 1, 12
        groups = GID(exploded(there["gid"]))
        route = GlobalRoute(dgid=groups, sgid_index=host.gid_index, hop_limit=64)
        attributes.ah_attr = AHAttr(port_num=PORT, is_global=1, gr=route)
        pair.to_rtr(attributes)
        attributes.sq_psn, attributes.timeout = psn, 14
        attributes.retry_cnt, attributes.rnr_retry = 6, 7  # soft-RoCE takes a retry_cnt of 7 for "for ever"
        attributes.max_rd_atomic = min(16, there["reads_max"])
        pair.to_rts(attributes)

    def _move(self, pair: Any, opcode: int, address: int, rkey: int, length: int) -> int:
        pieces = [SGE(self.buffer.buf, length, self.buffer.lkey)]
        request = SendWR(opcode=opcode, num_sge=1, sg=pieces, send_flags=e.IBV_SEND_SIGNALED)
        request.set_wr_rdma(rkey, address)
        pair.post_send(request)
        end = time.monotonic() + WAIT_S
        while True:
            count, completions = self.completions.poll(1)
            if count:
                return int(completions[0].status)
            check(time.monotonic() < end, "a completion")

    def read(self, address: int, rkey: int, length: int = PAGE) -> int:
        """RDMA READ into the buffer; the completion's status."""
        return self._move(self.pairs[0], e.IBV_WR_RDMA_READ, address, rkey, length)

    def write(self, data: bytes, address: int, rkey: int) -> int:
        """RDMA WRITE; the completion's status."""
        self.buffer.write(data, len(data))
        return self._move(self.pairs[1], e.IBV_WR_RDMA_WRITE, address, rkey, len(data))

    def got(self, length: int = PAGE) -> bytes:
        """What the buffer holds."""
        return bytes(self.buffer.read(length, 0))

    def close(self) -> None:
        """Everything."""
        for pair in self.pairs:
            pair.close()
        self.buffer.close()
        self.completions.close()
        self.domain.close()


class Lease:
    """Borrowed memory."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        body = {"device": "keys", "device_id": str(uuid.uuid4()), "size_bytes": SLABS * SLAB, "slab_bytes": SLAB}
        self.told = daemon.call("POST", "/v1/leases", body=body)
        self.keys: dict[int, tuple[int, int]] = {}

    def call(self, method: str, path: str = "", body: object = None) -> Any:
        """A call of this lease."""
        return self.daemon.call(method, f"/v1/leases/{self.told['lease']}{path}", self.told["token"], body)

    def map(self, slab: int) -> float:
        """Map a slab and keep its key; the milliseconds that the call took."""
        start = time.monotonic()
        answer = self.call("PUT", f"/slabs/{slab}")
        took_ms = (time.monotonic() - start) * 1e3
        if answer["rdma"] is not None:
            self.keys[slab] = (answer["rdma"]["address"], answer["rdma"]["rkey"])
        return took_ms

    def export(self) -> NbdClient:
        """The same memory over TCP."""
        host, port = self.told["address"]
        return NbdClient((host, port), self.told["export"], timeout_s=WAIT_S)


def exploded(gid: str) -> str:
    """All eight groups, as pyverbs wants them."""
    return ipaddress.IPv6Address(gid).exploded


def processor_s(pid: int) -> float:
    """Processor time that a process has taken in user space and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def keys_open_what_is_mapped(path: Connected, lease: Lease) -> None:
    """Both ways between RDMA and the export, for every slab; the probe too."""
    probe = path.answer["probe"]
    check(path.read(probe["address"], probe["rkey"], probe["bytes"]) == e.IBV_WC_SUCCESS, "the probe is read")
    check(any(path.got()), "the probe has content")
    check(path.write(b"p" * PAGE, probe["address"], probe["rkey"]) == e.IBV_WC_SUCCESS, "the probe is written")
    with lease.export() as export:
        for slab, (address, rkey) in lease.keys.items():
            pattern = os.urandom(SLAB)
            export.write(slab * SLAB, pattern)
            check(path.read(address, rkey, SLAB) == e.IBV_WC_SUCCESS, f"slab {slab} is read")
            check(path.got(SLAB) == pattern, f"slab {slab} reads as it was written over TCP")
            pattern = os.urandom(SLAB)
            check(path.write(pattern, address, rkey) == e.IBV_WC_SUCCESS, f"slab {slab} is written")
            check(export.read(slab * SLAB, SLAB) == pattern, f"slab {slab} has over TCP what RDMA wrote")
        address, rkey = lease.keys[0]
        export.trim(0, SLAB)
        check(path.read(address, rkey, SLAB) == e.IBV_WC_SUCCESS, "a trimmed slab is read")
        check(not any(path.got(SLAB)), "TRIM over TCP is seen by RDMA")


def refused(path: Connected, address: int, rkey: int, what: str) -> None:
    """Neither READ nor WRITE with this key does anything, and both say so."""
    before = b"U" * PAGE
    path.buffer.write(before, PAGE)
    status = path.read(address, rkey)
    print(f"{what}: READ ends with status {status}, {'nothing' if path.got() == before else 'SOMETHING'} read")
    check(status == e.IBV_WC_REM_ACCESS_ERR, f"{what}: READ is refused")
    check(path.got() == before, f"{what}: nothing is read")
    status = path.write(b"\x66" * PAGE, address, rkey)
    check(status == e.IBV_WC_REM_ACCESS_ERR, f"{what}: WRITE is refused")


def stale_key(host: Host, mine: Lease, other: Lease) -> None:
    """The key of a slab given up opens nothing, above all not when its memory is somebody else's."""
    path = Connected(host, mine)
    mine.map(5)
    address, rkey = mine.keys.pop(5)
    check(path.write(b"m" * PAGE, address, rkey) == e.IBV_WC_SUCCESS, "the key is good as long as the slab is mapped")
    mine.call("DELETE", "/slabs/5")
    refused(path, address, rkey, "key of a slab given up")
    path.close()
    for slab in range(5, SLABS):
        other.map(slab)
        if other.keys[slab][0] == address:
            break
    else:
        check(False, "the other lease has the memory now")
    with other.export() as export:
        check(not any(export.read(slab * SLAB, SLAB)), "it reads as zero there")
        pattern = os.urandom(SLAB)
        export.write(slab * SLAB, pattern)
        path = Connected(host, mine)
        refused(path, address, rkey, "the same key, the memory lent to another lease")
        check(export.read(slab * SLAB, SLAB) == pattern, "the other lease's memory is as it was")
    path.close()


def foreign_key(host: Host, mine: Lease, other: Lease) -> None:
    """A key that is good elsewhere opens nothing through the queue pairs of another lease."""
    path = Connected(host, mine)
    address, rkey = other.keys[0]
    with other.export() as export:
        pattern = os.urandom(SLAB)
        export.write(0, pattern)
        refused(path, address, rkey, "key of another lease")
        check(export.read(0, SLAB) == pattern, "the other lease's memory is as it was")
    path.close()


def ended_paths(host: Host, mine: Lease) -> None:
    """Nothing arrives through a path that another one has replaced, or that was closed."""
    address, rkey = mine.keys[0]
    with mine.export() as export:
        export.write(0, b"o" * PAGE)
        connections = mine.call("POST", "/heartbeat", {})["connections"]
        earlier = Connected(host, mine)
        path = Connected(host, mine)
        beat = mine.call("POST", "/heartbeat", {})
        check(beat["rdma"] is True and beat["connections"] == connections, "one path at a time")
        check(earlier.write(b"l" * PAGE, address, rkey) != e.IBV_WC_SUCCESS, "the earlier path is dead")
        check(export.read(0, PAGE) == b"o" * PAGE, "nothing arrives through the earlier path")
        check(path.write(b"n" * PAGE, address, rkey) == e.IBV_WC_SUCCESS, "the new path works")
        for _ in range(2):
            check(mine.call("DELETE", "/rdma") == {}, "a path is closed, more than once if need be")
        beat = mine.call("POST", "/heartbeat", {})
        check(beat["rdma"] is False and beat["connections"] == connections - 2, "no queue pair is left")
        check(path.write(b"l" * PAGE, address, rkey) != e.IBV_WC_SUCCESS, "the closed path is dead")
        check(export.read(0, PAGE) == b"n" * PAGE, "nothing arrives through the closed path")
    earlier.close()
    path.close()


def processor_times(host: Host, lease: Lease, pid: int) -> None:
    """The daemon's processor time for the same pages over RDMA and over TCP."""
    path = Connected(host, lease)
    address, rkey = lease.keys[0]
    page = os.urandom(PAGE)
    begun = processor_s(pid)
    for i in range(PAGES // 2):
        place = address + i % (SLAB // PAGE) * PAGE
        check(path.write(page, place, rkey) == e.IBV_WC_SUCCESS, "a page-out")
        check(path.read(place, rkey) == e.IBV_WC_SUCCESS, "a page-in")
    rdma_s = processor_s(pid) - begun
    with lease.export() as export:
        begun = processor_s(pid)
        for i in range(PAGES // 2):
            place = i % (SLAB // PAGE) * PAGE
            export.write(place, page)
            export.read(place, PAGE)
        tcp_s = processor_s(pid) - begun
    print(f"processor time of the daemon for {PAGES} pages: RDMA {rdma_s:.2f} s, TCP {tcp_s:.2f} s", flush=True)
    check(rdma_s < tcp_s / 4, "RDMA costs the daemon less than a quarter of TCP")
    path.close()


def device_gone_and_back(host: Host, mine: Lease) -> None:
    """A device that is removed is let go of, the memory is served over TCP meanwhile, and a new device is used."""
    daemon = mine.daemon
    path = Connected(host, mine)
    check(mine.call("POST", "/heartbeat", {})["rdma"] is True, "the path is good")
    pattern = os.urandom(SLAB)
    with mine.export() as export:
        export.write(0, pattern)
        removal = subprocess.Popen(["rdma", "link", "del", DEVICE])
        until(lambda: mine.call("POST", "/heartbeat", {})["rdma"] is False, "the daemon sees the device go")
        told = daemon.rdma()
        check(told["state"] == "unavailable" and told["regions"] == told["queue_pairs"] == 0, "all is closed")
        check(daemon.call("GET", "/v1/offer")["rdma"] is None, "the offer tells of no RDMA")
        check(mine.call("PUT", "/slabs/0")["rdma"] is None, "no key without a device")
        check(export.read(0, SLAB) == pattern, "the memory is served over TCP")
        try:
            Connected(host, mine)
            check(False, "there is no path without a device")
        except urllib.error.HTTPError as refusal:
            print("without a device:", refusal.code, refusal.read().decode())
            check(refusal.code == 501, "the refusal says so")
        path.close()
        host.context.close()
        check(removal.wait(WAIT_S) == 0, "the device goes once nobody has it open")
        subprocess.run(["rdma", "link", "add", DEVICE, "type", "rxe", "netdev", "lo"], check=True)
        until(lambda: daemon.call("GET", "/v1/offer")["rdma"] is not None, "the daemon finds the new device")
        again = Connected(Host(), mine)
        keys = {slab["slab"]: (slab["address"], slab["rkey"]) for slab in again.answer["slabs"]}
        check(set(mine.keys) <= set(keys), "all slabs have keys again")
        check(again.read(*keys[0], SLAB) == e.IBV_WC_SUCCESS and again.got(SLAB) == pattern, "they read as before")
    again.close()
    print("rdma:", json.dumps(daemon.rdma()), flush=True)


def main() -> int:
    """Everything in turn."""
    daemon, pid = Daemon(sys.argv[1]), int(sys.argv[2])
    check(daemon.call("GET", "/v1/offer")["rdma"] == {"link_layer": "Ethernet"}, "the offer tells of RDMA")
    host = Host()
    mine, other = Lease(daemon), Lease(daemon)
    plain = Lease(daemon)
    plain.map(0)
    check(not plain.keys, "no keys without a path")
    try:
        Connected(host, plain)
        check(False, "slabs that were mapped for TCP are not registered under whoever uses them")
    except urllib.error.HTTPError as refusal:
        check(refusal.code == 409, "the refusal says so")
    plain.call("DELETE", "")
    path, others = Connected(host, mine), Connected(host, other)
    check(path.answer["slabs"] == [], "no slab, no key")
    until(lambda: daemon.rdma()["pooled"] >= POOLED, "the pools are full")
    took_ms = [mine.map(slab) for slab in range(4)]
    other.map(0)
    print("mapping a slab took, emulation included:", ", ".join(f"{ms:.0f} ms" for ms in took_ms))
    check(daemon.rdma()["counts"]["pool_misses"] == 0, "all these slabs came from the pools")
    keys_open_what_is_mapped(path, mine)
    keys_open_what_is_mapped(others, other)
    path.close()
    others.close()
    print("what is mapped can be read and written, over RDMA and TCP alike", flush=True)
    stale_key(host, mine, other)
    foreign_key(host, mine, other)
    ended_paths(host, mine)
    processor_times(host, mine, pid)
    device_gone_and_back(host, mine)
    other.call("DELETE", "")
    mine.call("DELETE", "")
    told = daemon.rdma()
    check(told["regions"] == told["queue_pairs"] == 0, "nothing is left of ended leases")
    check(daemon.call("GET", "/v1/offer")["used_bytes"] == 0, "their memory has come back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
