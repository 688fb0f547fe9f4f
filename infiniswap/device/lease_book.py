"""The record of leases: leases.json says which there are, leases.slabs to which of them each slab belongs.

A slab goes on record before the engine maps it, on the event loop: so that costs one store and needs no room on the
disk. leases.slabs has one byte a slab, the row of its lease (0: none), in a mapping that outlives a killed process as
the state file's does. leases.json is replaced in one step when leases come and go; a row is not given to another lease
while leases.json, as it stands, may still name the former one.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.daemon_client import HeldLease
from infiniswap.device.peer import Peer
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.private_files import create_new, replace_file

log = logging.getLogger(__name__)

BOOK_BYTES_MAX = 64 << 20
ROWS_MAX = 255  # a byte; at most 64 peers have one each, and as many more may have just ended
_HEADER = struct.Struct("<8s40s16x")
_MAGIC = b"ISWSLABS"


@dataclass(frozen=True, slots=True)
class RecordedLease:
    """A lease on record, with the slabs that may hold pages, and whether these travelled over RDMA."""

    peer: HostPort
    lease: HeldLease
    slabs: frozenset[int]
    over_rdma: bool = False


class LeaseBook:
    """leases.json and leases.slabs: readable by the owner alone."""

    def __init__(self, path: Path) -> None:
        """path: of leases.json. Nothing is read or written yet."""
        self.path = path
        self.table_path = path.with_suffix(".slabs")
        self._device_id = ""
        self._peers: Iterable[Peer] = ()
        self._mapping: mmap.mmap | None = None
        self._table: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._rows: dict[str, int] = {}  # by lease id, as in leases.json
        self._written: dict[str, dict[str, Any]] = {}  # the leases in leases.json

    def read(self, device_id: str) -> list[RecordedLease]:
        """The leases on record for this device; none when the record is missing, damaged or another device's."""
        try:
            items = self._read_items(device_id)
            if all("slabs" in item for item in items):  # as it was written before there was leases.slabs
                return [_entry(item, item["slabs"]) for item in items]
            table = self._read_table(device_id)
            return [_entry(item, np.flatnonzero(table == _row(item)).tolist()) for item in items]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("the record of leases %s cannot be used: %s", self.path, error)
            return []

    def begin(self, device_id: str, slabs: int, peers: Iterable[Peer]) -> None:
        """Go on with what is on record for this device, else begin anew. peers: whose leases write_leases() writes.

        UserError when there is no room.
        """
        self._device_id, self._peers = device_id, peers
        try:
            items = {str(item["lease"]): item for item in self._read_items(device_id) if "slabs" not in item}
            self._read_table(device_id, slabs)
            self._rows = {lease_id: _row(item) for lease_id, item in items.items()}
            self._written = items
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            self._rows, self._written = {}, {}
        try:
            if not self._rows:
                self._create_table(slabs)
            fd = os.open(self.table_path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._mapping = mmap.mmap(fd, _HEADER.size + slabs)
            finally:
                os.close(fd)
        except OSError as error:
            raise UserError(f"cannot create {self.table_path}: {error.strerror}", ExitCode.RESOURCES) from None
        self._table = np.frombuffer(self._mapping, np.uint8, slabs, _HEADER.size)

    def write_leases(self) -> None:
        """Put the leases that the peers have now on record. OSError when that fails and one of them is not there yet.

        What cannot be taken off the record stays: a recovery finds out by asking.
        """
        holders = {peer.lease.lease_id: peer for peer in self._peers if peer.lease is not None}
        rows = {lease_id: row for lease_id, row in self._rows.items() if lease_id in holders}
        for row in set(self._rows.values()) - set(rows.values()):
            self._table[self._table == row] = 0
        free = iter(sorted(set(range(1, ROWS_MAX + 1)) - set(self._rows.values())))
        for lease_id, peer in holders.items():
            if lease_id not in rows:
                rows[lease_id] = next(free)
                self._table[self._table == rows[lease_id]] = 0
                self._table[list(peer.slabs)] = rows[lease_id]
        items = {lease_id: _item(peer, rows[lease_id]) for lease_id, peer in holders.items()}
        if items == self._written:
            return
        content = {"device_id": self._device_id, "leases": list(items.values())}
        try:
            replace_file(self.path, json.dumps(content).encode())
        except OSError:
            if any(self._written.get(lease_id) != item for lease_id, item in items.items()):
                raise
            return
        self._rows, self._written = rows, items

    def admit(self, lease: HeldLease) -> None:
        """See to it that lease is on record, so that slabs can be. OSError: it cannot be now."""
        if lease.lease_id not in self._rows:
            self.write_leases()

    def mapped(self, lease: HeldLease, slab: int) -> None:
        """Put on record that slab may hold pages in the memory of lease. OSError: the lease cannot be on record."""
        self.admit(lease)
        if lease.lease_id not in self._rows:
            raise OSError(errno.ESTALE, "the lease has ended")
        self._table[slab] = self._rows[lease.lease_id]

    def unmapped(self, lease: HeldLease, slab: int) -> None:
        """Nothing of slab is in the memory of lease any more."""
        if self._table[slab] == self._rows.get(lease.lease_id):
            self._table[slab] = 0

    def keep(self, lease: HeldLease, slabs: Iterable[int]) -> None:
        """Of what is on record for lease, these slabs alone are true."""
        row = self._rows.get(lease.lease_id)
        if row is not None:
            self._table[self._table == row] = 0
            self._table[list(slabs)] = row

    def remove(self) -> None:
        """Forget all leases: they were given back."""
        self.path.unlink(missing_ok=True)
        self.table_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap; what is on record stays."""
        self._table = np.zeros(0, np.uint8)
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def _read_items(self, device_id: str) -> list[dict[str, Any]]:
        """The leases in leases.json; what is not as it was written raises."""
        with self.path.open("rb") as stream:
            content = json.loads(stream.read(BOOK_BYTES_MAX))
        if content["device_id"] != device_id:
            return []
        return list(content["leases"])

    def _read_table(self, device_id: str, slabs: int | None = None) -> NDArray[np.uint8]:
        """A copy of leases.slabs; ValueError when it is not this device's, or not of so many slabs."""
        raw = self.table_path.read_bytes()
        if raw[: _HEADER.size] != _HEADER.pack(_MAGIC, device_id.encode()):
            raise ValueError(f"{self.table_path.name} is not this device's")
        if slabs is not None and len(raw) != _HEADER.size + slabs:
            raise ValueError(f"{self.table_path.name} has the wrong length")
        return np.frombuffer(raw, np.uint8, offset=_HEADER.size)

    def _create_table(self, slabs: int) -> None:
        new = self.table_path.with_name(self.table_path.name + ".new")
        fd = create_new(new, write_only=False)
        try:
            # Allocated in full: a mapping that hits a full disk later would kill the process with SIGBUS.
            os.posix_fallocate(fd, 0, _HEADER.size + slabs)
            os.pwrite(fd, _HEADER.pack(_MAGIC, self._device_id.encode()), 0)
            new.rename(self.table_path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def _item(peer: Peer, row: int) -> dict[str, Any]:
    lease = peer.lease
    assert lease is not None
    return {
        "peer": [peer.address.host, peer.address.port],
        "lease": lease.lease_id,
        "token": lease.token,
        "export": lease.export,
        "address": list(lease.address),
        "incarnation": lease.incarnation,
        "ttl_s": lease.ttl_s,
        "size_bytes": lease.size_bytes,
        "rdma": lease.rdma,
        "control": lease.control,
        "over_rdma": peer.path is not None,
        "row": row,
    }


def _row(item: dict[str, Any]) -> int:
    row = item["row"]
    if type(row) is not int or not 1 <= row <= ROWS_MAX:
        raise ValueError(f"there is no row {row}")
    return row


def _entry(item: dict[str, Any], slabs: Iterable[Any]) -> RecordedLease:
    host, port = item["peer"]
    data_host, data_port = item["address"]
    lease = HeldLease(
        lease_id=str(item["lease"]),
        token=str(item["token"]),
        export=str(item["export"]),
        address=(str(data_host), int(data_port)),
        incarnation=str(item["incarnation"]),
        ttl_s=float(item["ttl_s"]),
        size_bytes=int(item["size_bytes"]),
        renewal=[float("-inf")],  # not by this process yet
        rdma=bool(item.get("rdma", False)),
        control=str(item.get("control", "")),
    )
    over_rdma = bool(item.get("over_rdma", False))
    return RecordedLease(HostPort(str(host), int(port)), lease, frozenset(int(slab) for slab in slabs), over_rdma)
