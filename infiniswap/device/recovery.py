"""Taking up after a killed device: which leases still live, and which version a half-written page holds remotely.

The record of leases names every slab that may hold pages, for it is written before the engine maps one. A page that was
being written is settled by the checksums that the state file keeps: of the old version in the page's entry, of the new
one in the intent. What cannot be proved current is taken from the backup, and is lost where the backup is behind.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.attachment import open_connections
from infiniswap.device.daemon_client import DaemonClient, LeaseGoneError, PeerError
from infiniswap.device.heartbeats import Heartbeats
from infiniswap.device.lease_book import RecordedLease
from infiniswap.device.state import StateFile
from infiniswap.engine.binding import OP_PAGES_MAX, PAGE_BYTES, PageFlag
from infiniswap.nbd.client import NbdClient, NegotiationError, RequestError
from infiniswap.shared.address import HostPort
from infiniswap.shared.clock import Clock

log = logging.getLogger(__name__)

ReadAs = Callable[[int, memoryview], int | None]  # page, what its peer has of it

ASK_AGAIN_S = 0.3
LAST_WRITES_TIMEOUT_S = 5.0  # for a daemon to take in what the dead device had sent
_REMOTE, _DISK = np.uint32(int(PageFlag.REMOTE)), np.uint32(int(PageFlag.DISK))
_WRITING, _LOST = np.uint32(int(PageFlag.WRITING)), np.uint32(int(PageFlag.LOST))
_PUNCH = np.uint32(int(PageFlag.PUNCH))


@dataclass(slots=True)
class Adoption:
    """A lease that lives on, connected, with the slabs that are taken up."""

    entry: RecordedLease
    sockets: tuple[socket.socket, socket.socket]
    slabs: set[int]

    def close(self) -> None:
        """Close the connections: the start failed before the engine got them."""
        for sock in self.sockets:
            sock.close()


@dataclass(slots=True)
class Recovered:
    """Outcome of a recovery; counts in pages."""

    adoptions: list[Adoption] = field(default_factory=list)
    settled: int = 0
    lost: int = 0


def plain_reader(state: StateFile) -> ReadAs:
    """What recovery goes by where pages are not sealed."""
    checksum = state.checksum
    return lambda _page, data: checksum(data)


async def recover(
    state: StateFile,
    entries: list[RecordedLease],
    *,
    slab_bytes: int,
    client: Callable[[HostPort], DaemonClient],
    timeout_s: float,
    connect_timeout_s: float,
    beats: Heartbeats,
    clock: Clock,
    read_as: ReadAs | None = None,
) -> Recovered:
    """Make the page table of a killed device true again, and find the leases that live on.

    Peers are asked for up to timeout_s while pages depend on them, else once. On return no page is WRITING, and REMOTE
    is set only in slabs of an adoption. The adoptions' sockets are the caller's. beats renews each lease from the
    moment it is found alive. read_as: the checksum of what a page from a peer reads as, None: nobody sealed it so;
    without it pages are not sealed.
    """
    result = Recovered()
    pages_per_slab = slab_bytes // PAGE_BYTES
    deadline_s = clock() + timeout_s
    alive = await asyncio.gather(
        *(
            _revive(entry, client(entry.peer), _depends(state, entry, pages_per_slab), deadline_s, beats, clock)
            for entry in entries
        )
    )
    adopted: dict[int, Adoption] = {}
    for entry, slabs in zip(entries, alive, strict=True):
        if slabs is None:
            continue
        try:
            sockets = await open_connections(client(entry.peer), entry.lease, connect_timeout_s)
        except PeerError as error:
            log.warning("peer %s: its lease lives but cannot be used: %s", entry.peer, error)
            continue
        adoption = Adoption(entry, sockets, {slab for slab in slabs & entry.slabs if slab not in adopted})
        result.adoptions.append(adoption)
        adopted.update(dict.fromkeys(adoption.slabs, adoption))
    loop = asyncio.get_running_loop()

    def reader(entry: RecordedLease) -> NbdClient:
        """A connection of its own, for the thread that settles pages."""
        asked = asyncio.run_coroutine_threadsafe(client(entry.peer).export_name(entry.lease), loop)
        return NbdClient(entry.lease.address, asked.result(connect_timeout_s), connect_timeout_s)

    try:
        await asyncio.to_thread(
            _settle_all, state, adopted, pages_per_slab, reader, result, read_as or plain_reader(state)
        )
    except BaseException:
        for adoption in result.adoptions:
            adoption.close()
        raise
    log.info(
        "recovered: %d leases with %d slabs live on, %d half-written pages settled, %d pages lost",
        len(result.adoptions),
        sum(len(adoption.slabs) for adoption in result.adoptions),
        result.settled,
        result.lost,
    )
    return result


async def _revive(
    entry: RecordedLease, client: DaemonClient, needed: bool, deadline_s: float, beats: Heartbeats, clock: Clock
) -> frozenset[int] | None:
    """The slabs that the lease still has, None when it is dead."""
    last_writes_s = clock() + LAST_WRITES_TIMEOUT_S
    beating = False
    while True:
        try:
            if entry.lease.rdma:
                await client.close_rdma(entry.lease)  # what the dead process has sent may still be on its way there
            beat = await client.heartbeat(entry.lease)
            if not beating:
                beats.begin(client, entry.lease)
                beating = True
            # While an old connection is open, writes of the dead process may still change pages under our eyes.
            if beat.connections == 0 or clock() >= last_writes_s:
                return beat.slabs
        except LeaseGoneError as error:
            log.warning("peer %s: its lease is gone: %s", entry.peer, error)
            return None
        except PeerError as error:
            if not needed or clock() >= deadline_s:
                log.warning("peer %s: its lease is given up: %s", entry.peer, error)
                return None
        await asyncio.sleep(ASK_AGAIN_S)


def _depends(state: StateFile, entry: RecordedLease, pages_per_slab: int) -> bool:
    """Whether pages would be lost without this lease."""
    for slab in entry.slabs:
        meta = state.pages["meta"][slab * pages_per_slab : (slab + 1) * pages_per_slab]
        if np.any(((meta & (_REMOTE | _WRITING)) != 0) & ((meta & _DISK) == 0)):
            return True
    return False


def _settle_all(
    state: StateFile,
    adopted: dict[int, Adoption],
    pages_per_slab: int,
    reader: Callable[[RecordedLease], NbdClient],
    result: Recovered,
    read_as: ReadAs,
) -> None:
    """Settle half-written pages, then drop what slabs without a living lease held. Blocking."""
    intents, through = read_intents(state.intents), written_through(state.intents)
    readers: dict[int, NbdClient | None] = {}
    try:
        for slab in sorted(adopted):
            adoption = adopted[slab]
            writing = _writing_pages(state, slab, pages_per_slab)
            if len(writing) and not _settle_slab(
                state, writing, adoption, (intents, through), readers, reader, result, read_as
            ):
                adoption.slabs.discard(slab)
    finally:
        for opened in readers.values():
            if opened is not None:
                opened.close()
    kept = {slab for adoption in result.adoptions for slab in adoption.slabs}
    slab_count = -(-len(state.pages) // pages_per_slab)
    for slab in range(slab_count):
        if slab not in kept:
            part = state.pages["meta"][slab * pages_per_slab : (slab + 1) * pages_per_slab]
            result.lost += drop_remote(part)
    state.intents["pages"] = 0
    if result.lost:
        log.error("%d pages have no copy left: reading them fails until they are written again", result.lost)


def _writing_pages(state: StateFile, slab: int, pages_per_slab: int) -> NDArray[np.intp]:
    first = slab * pages_per_slab
    return np.flatnonzero(state.pages["meta"][first : first + pages_per_slab] & _WRITING) + first


def _settle_slab(
    state: StateFile,
    writing: NDArray[np.intp],
    adoption: Adoption,
    under_way: tuple[dict[int, set[int]], set[int]],
    readers: dict[int, NbdClient | None],
    connect: Callable[[RecordedLease], NbdClient],
    result: Recovered,
    read_as: ReadAs,
) -> bool:
    """Settle the half-written pages of one slab; False when its peer does not let us read them."""
    key, (intents, through) = id(adoption), under_way
    try:
        if key not in readers:
            readers[key] = connect(adoption.entry)
        reader = readers[key]
        if reader is None:
            return False
        for first, count in _runs(writing):
            data = memoryview(reader.read(first * PAGE_BYTES, count * PAGE_BYTES))
            for index in range(count):
                page = first + index
                remote_sum = read_as(page, data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES])
                result.settled += 1
                result.lost += settle_page(
                    state.pages[page : page + 1],
                    remote_sum,
                    intents.get(page, set()),
                    torn=adoption.entry.over_rdma,
                    through=page in through,
                )
    except (OSError, NegotiationError, PeerError) as error:
        log.warning("peer %s: half-written pages cannot be read: %s", adoption.entry.peer, error)
        if not isinstance(error, RequestError):
            readers[key] = None  # the connection is of no more use, and there is no time to wait for each slab
        return False
    return True


def _runs(pages: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """(first, count) of consecutive pages, at most OP_PAGES_MAX at once."""
    start = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or pages[end] != pages[end - 1] + 1 or end - start == OP_PAGES_MAX:
            yield int(pages[start]), end - start
            start = end


def read_intents(intents: NDArray[Any]) -> dict[int, set[int]]:
    """Checksums of the versions under way, by page."""
    found: dict[int, set[int]] = {}
    for intent in intents[intents["pages"] > 0]:
        for index in range(min(int(intent["pages"]), OP_PAGES_MAX)):
            found.setdefault(int(intent["first_page"]) + index, set()).add(int(intent["checksum"][index]))
    return found


def written_through(intents: NDArray[Any]) -> set[int]:
    """Pages whose next version may be on the backup already."""
    under_way = intents[(intents["pages"] > 0) & (intents["to_backup"] != 0)]
    return {
        int(intent["first_page"]) + index
        for intent in under_way
        for index in range(min(int(intent["pages"]), OP_PAGES_MAX))
    }


def settle_page(
    entry: NDArray[Any], remote_sum: int | None, intended: set[int], *, torn: bool = False, through: bool = False
) -> int:
    """Settle one WRITING page (entry: its table entry, shape (1,)) by what its remote copy holds; 1 when it is lost.

    The old version counts only where REMOTE was set: else the remote copy was not current before the write either.
    torn: a page may have arrived in part, for one written over RDMA travels in packets of the path's MTU, and the
    daemon does not hold it back until it is whole, as it does over TCP. through: the backup was being written; what it
    has may be the next version, so the page comes to it from the peer again. remote_sum: None when the page was sealed,
    and no seal opens it: then neither version is there, nor anything of the two.
    """
    meta, checksum = entry["meta"][0], int(entry["checksum"][0])
    if remote_sum is None:
        return drop_remote(entry["meta"])
    if meta & _REMOTE and remote_sum == checksum:
        entry["meta"] = meta & ~(_WRITING | _DISK if through else _WRITING)
        return 0
    if remote_sum in intended:
        # Whether or not the client heard of it, this version may be current; what the backup has is then the old one.
        entry["checksum"] = remote_sum
        entry["meta"] = _REMOTE
        return 0
    if torn and meta & _REMOTE and not meta & _DISK:
        # Whole packets of the new version over the old one, nowhere else to be had: what a disk may hold after a power
        # failure in the middle of a write that it had not acknowledged.
        entry["checksum"] = remote_sum
        entry["meta"] = _REMOTE
        return 0
    return drop_remote(entry["meta"])


def drop_remote(meta: NDArray[np.uint32]) -> int:
    """Take away REMOTE and WRITING, in place; returns how many pages have no copy left now and become LOST.

    A first write under way was never acknowledged, but may have reached the backup: its page becomes DISK, so that it
    reads the same from now on, whichever of zeroes and the new version is there.
    """
    orphaned = ((meta & _REMOTE) != 0) & ((meta & _DISK) == 0)
    if not np.any(meta & (_REMOTE | _WRITING)):
        return 0
    first_write = (meta & (_WRITING | _REMOTE | _DISK | _PUNCH | _LOST)) == _WRITING
    meta &= ~(_REMOTE | _WRITING)
    meta[orphaned] = _LOST
    meta[first_write] = _DISK
    return int(np.count_nonzero(orphaned))
