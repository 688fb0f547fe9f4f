"""Each sentence of the verdict, from the figures that call for it, and from none that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infiniswap.policy.worth import Figures, Kind, Place, verdict


def place(kind: Kind, one_us: float, many_s: float, name: str = "node2", way: str = "TCP") -> Place:
    """Median one_us for a page alone, many_s pages a second at once."""
    return Place(kind, name, way, Figures(one_us, one_us * 2, 1e6 / one_us), Figures(one_us * 8, one_us * 16, many_s))


def peer(one_us: float, many_s: float) -> Place:
    """A peer's."""
    return place(Kind.PEER, one_us, many_s)


DISK = place(Kind.DISK, 90.0, 10_000.0, "/var/tmp", "O_DIRECT")
BACKUP = place(Kind.BACKUP, 4100.0, 200.0, "/dev/sdb", "O_DIRECT")


@pytest.mark.parametrize(
    ("one_us", "many_s", "end"),
    [
        (30, 50_000, "remote memory pays here, 3 times as fast for a page, 5 times for many at once."),
        (30, 10_000, "remote memory pays for programs that wait for a page, which comes 3 times as fast."),
        (30, 5_000, "remote memory pays for programs that wait for single pages, the disk for many at once."),
        (210, 5_000, "swapping to this disk is faster; remote memory does not pay here."),
        (210, 50_000, "remote memory pays only where many pages are wanted at once."),
        (90, 50_000, "remote memory pays only where many pages are wanted at once."),
        (210, 10_000, "swapping to this disk is faster for programs that wait for a page."),
        (90, 10_000, "they are alike; remote memory saves the disk its wear, and no time."),
        (80, 9_000, "they are alike; remote memory saves the disk its wear, and no time."),
    ],
)
def test_against_the_disk(one_us: float, many_s: float, end: str) -> None:
    """Faster, slower and alike, for a page alone and for many at once: each pair has its word, with the numbers."""
    (told,) = verdict([peer(one_us, many_s), DISK])
    assert told.endswith(end)
    first = f"{one_us / 1000:.3f}" if one_us < 100 else f"{one_us / 1000:.2f}"
    assert told.startswith(f"A page from node2 by TCP takes {first} ms, from the disk (/var/tmp) 0.090 ms; ")
    assert f"32 at a time: {many_s:,} against 10,000 pages a second" in told


def test_each_peer_and_way() -> None:
    """Every one gets its sentence; the disk that counts is the local one, and the backup is told of beside it."""
    rdma = replace(peer(10, 200_000), way="RDMA")
    told = verdict([rdma, peer(60, 90_000), BACKUP, DISK])
    assert [sentence.partition(" takes")[0] for sentence in told[:2]] == [
        "A page from node2 by RDMA",
        "A page from node2 by TCP",
    ]
    assert "the disk (/var/tmp)" in told[0]
    assert told[2:] == ["What no peer holds comes from the backup (/dev/sdb): 4.10 ms a page."]


def test_the_backup_where_no_other_disk_was_measured() -> None:
    """Then it is what one would swap to."""
    (told,) = verdict([peer(100, 20_000), BACKUP])
    assert "from the backup (/dev/sdb) 4.10 ms" in told
    assert "remote memory pays here, 41 times" in told


def test_nothing_to_compare_with() -> None:
    """The number is told, and no judgement."""
    assert verdict([peer(100, 20_000)]) == [
        "A page from node2 by TCP takes 0.10 ms.",
        "No disk was measured that it could be compared with.",
    ]


def test_no_peer() -> None:
    """Disks alone say nothing of remote memory."""
    assert verdict([DISK])[0] == "No peer was measured: nothing can be said of remote memory."
    assert verdict([])[0] == "No peer was measured: nothing can be said of remote memory."


def test_a_page_cache_is_no_disk() -> None:
    """What came from this host's own memory is not compared with, and that is said."""
    cached = replace(DISK, cached=True, way="tmpfs: that is memory")
    told = verdict([peer(100, 20_000), cached])
    assert "No disk was measured that it could be compared with." in told
    assert told[-1] == "The disk (/var/tmp) was read from this host's own memory: that tells nothing of the disk."
    assert "the backup (/dev/sdb) 4.10 ms" in verdict([peer(100, 20_000), cached, BACKUP])[0]


def test_a_long_tail() -> None:
    """One in a hundred that takes far longer than the median is worth a word, from wherever it comes."""
    slow = replace(peer(100, 20_000), one=Figures(100, 2100, 5000))
    told = verdict([slow, DISK])
    assert told[1:] == ["From node2 by TCP, one page in a hundred takes 2.10 ms or more."]
    assert len(verdict([replace(slow, one=Figures(100, 1900, 5000)), DISK])) == 1


def test_a_peer_that_is_this_host() -> None:
    """Nobody shall take a trial on loopback for his network."""
    near = replace(peer(30, 50_000), here=True)
    told = verdict([near, replace(near, way="RDMA"), DISK])
    assert told[2:] == ["node2 is this host: that tells of its processors, and nothing of a network."]


@pytest.mark.parametrize(("floor_us", "limit"), [(20.0, False), (60.0, True)])
def test_the_part_of_this_host(floor_us: float, limit: bool) -> None:
    """What the way through the device takes is told; where it is most of it, that it is the limit."""
    told = verdict([peer(100, 20_000), DISK], Figures(floor_us, floor_us, 1.0))[-1]
    assert told.startswith(f"Of a page from a peer, {floor_us / 1000:.3f} ms is this host's own way through the device")
    assert told.endswith(": this host's own processors are the limit, not the network.") is limit
