"""Whether remote memory pays on some hosts, in plain words, from what was measured there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

ALIKE = 1.2  # ratios nearer to one than this say nothing: runs differ by as much
LONG_TAIL = 20.0  # times its median that one page in a hundred takes, from which it is worth a word
FLOOR_SHARE = 0.5  # of a page's time that this host itself takes, from which it is worth a word


class Kind(StrEnum):
    """Where pages came from."""

    PEER = "peer"
    BACKUP = "backup"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one number of reads at a time: latencies in microseconds, and reads a second."""

    p50_us: float
    p99_us: float
    reads_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """One place: name as the user knows it, way as it was reached (TCP, RDMA, O_DIRECT).

    cached: what was read may come from this host's own page cache, so it tells nothing of the disk. here: no network
    is on the way.
    """

    kind: Kind
    name: str
    way: str
    one: Figures  # one read at a time
    many: Figures  # many at a time
    cached: bool = False
    here: bool = False

    def __str__(self) -> str:
        """As sentences call it."""
        if self.kind is Kind.PEER:
            return f"{self.name} by {self.way}"
        return f"the disk ({self.name})" if self.kind is Kind.DISK else f"the backup ({self.name})"


def verdict(places: Sequence[Place], floor: Figures | None = None, many: int = 32) -> list[str]:
    """One sentence each; floor: of pages that go nowhere; many: reads at a time of Place.many."""
    peers = [place for place in places if place.kind is Kind.PEER]
    found: list[str] = []
    against = _rival(places)
    if not peers:
        found.append("No peer was measured: nothing can be said of remote memory.")
    elif against is None:
        found += [f"A page from {peer} takes {_time(peer.one)}." for peer in peers]
        found.append("No disk was measured that it could be compared with.")
    else:
        found += [_compare(peer, against, many) for peer in peers]
    here = dict.fromkeys(peer.name for peer in peers if peer.here)  # each once, by however many ways it was reached
    found += [f"{name} is this host: that tells of its processors, and nothing of a network." for name in here]
    found += [_tail(place) for place in places if not place.cached and place.one.p99_us > LONG_TAIL * place.one.p50_us]
    found += _cached(places)
    found += _backup(places, against)
    found += _floor(peers, floor)
    return found


def _rival(places: Sequence[Place]) -> Place | None:
    """What a host without remote memory would swap to: the local disk, or else the backup's."""
    known = [place for place in places if place.kind is not Kind.PEER and not place.cached]
    return next((place for place in known if place.kind is Kind.DISK), known[0] if known else None)


def _compare(peer: Place, disk: Place, many: int) -> str:
    alone = disk.one.p50_us / peer.one.p50_us
    deep = peer.many.reads_s / disk.many.reads_s
    told = f"A page from {peer} takes {_time(peer.one)}, from {disk} {_time(disk.one)}; {many} at a time: "
    told += f"{_rate(peer.many)} against {_rate(disk.many)} pages a second: "
    if alone >= ALIKE and deep >= ALIKE:
        both = f"{_times(alone)} times as fast for a page, {_times(deep)} times for many at once"
        return told + f"remote memory pays here, {both}."
    if alone >= ALIKE and deep > 1 / ALIKE:
        return (
            told + f"remote memory pays for programs that wait for a page, which comes {_times(alone)} times as fast."
        )
    if alone >= ALIKE:
        return told + "remote memory pays for programs that wait for single pages, the disk for many at once."
    if alone <= 1 / ALIKE and deep <= 1 / ALIKE:
        return told + "swapping to this disk is faster; remote memory does not pay here."
    if deep >= ALIKE:
        return told + "remote memory pays only where many pages are wanted at once."
    if alone <= 1 / ALIKE:
        return told + "swapping to this disk is faster for programs that wait for a page."
    return told + "they are alike; remote memory saves the disk its wear, and no time."


def _tail(place: Place) -> str:
    return f"From {place}, one page in a hundred takes {_ms(place.one.p99_us)} or more."


def _cached(places: Sequence[Place]) -> list[str]:
    return [
        f"{str(place)[0].upper()}{str(place)[1:]} was read from this host's own memory: that tells nothing of the disk."
        for place in places
        if place.cached
    ]


def _backup(places: Sequence[Place], against: Place | None) -> list[str]:
    return [
        f"What no peer holds comes from {place}: {_time(place.one)} a page."
        for place in places
        if place.kind is Kind.BACKUP and place is not against and not place.cached
    ]


def _floor(peers: Sequence[Place], floor: Figures | None) -> list[str]:
    if floor is None or not peers:
        return []
    share = floor.p50_us / min(peer.one.p50_us for peer in peers)
    more = ": this host's own processors are the limit, not the network" if share >= FLOOR_SHARE else ""
    return [f"Of a page from a peer, {_ms(floor.p50_us)} is this host's own way through the device service{more}."]


def _time(figures: Figures) -> str:
    return _ms(figures.p50_us)


def _ms(us: float) -> str:
    ms = us / 1000
    return f"{ms:.3f} ms" if ms < 0.1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def _rate(figures: Figures) -> str:
    rounded = float(f"{figures.reads_s:.3g}")
    return f"{rounded:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}".removesuffix(".0")
