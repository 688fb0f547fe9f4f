"""What /proc/zoneinfo says of lists of the processors is summed up over all of them, and what it is not is nothing."""

from __future__ import annotations

from resource import getpagesize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.daemon.zoneinfo import ZONEINFO_PATH, ZonePages, parse_zoneinfo

PAGE = getpagesize()

# As Linux 6.18 writes it, with most of the counts left out: two nodes of two processors each, who have lists for both.
ZONES_6_18 = """\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 31178
      nr_free_cma  0
  pages free     3840
        boost    0
        min      28
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 3019, 9035, 9035, 9035)
      nr_free_pages 3840
      nr_zone_write_pending 0
      numa_other   0
  pagesets
    cpu: 0
              count:    0
              high:     0
              batch:    1
              high_min: 17
              high_max: 240
  vm stats threshold: 4
    cpu: 1
              count:    3
              high:     0
              batch:    1
              high_min: 17
              high_max: 240
  vm stats threshold: 4
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone   Normal
  pages free     21729
        managed  2195456
        protection: (0, 0, 0, 0, 0)
  pagesets
    cpu: 0
              count:    515
              high:     7800
              batch:    63
              high_min: 7800
              high_max: 137216
  vm stats threshold: 32
    cpu: 1
              count:    10010
              high:     10052
              batch:    63
              high_min: 7800
              high_max: 137216
  vm stats threshold: 32
  node_unreclaimable:  0
  start_pfn:           1048576
Node 0, zone  Movable
  pages free     0
        managed  0
        cma      0
        protection: (0, 0, 0, 0, 0)
Node 1, zone      DMA
  pages free     0
        managed  0
        protection: (0, 0, 0, 0, 0)
Node 1, zone   Normal
  per-node stats
      nr_inactive_anon 5
  pages free     777
        managed  1000000
        protection: (0, 0, 0, 0, 0)
  pagesets
    cpu: 0
              count:    20
              high:     7800
              batch:    63
              high_min: 7800
              high_max: 137216
  vm stats threshold: 32
    cpu: 1
              count:    123456
              high:     123500
              batch:    63
              high_min: 7800
              high_max: 137216
  vm stats threshold: 32
  node_unreclaimable:  0
  start_pfn:           6553600
Node 1, zone   Device
  pages free     0
        managed  0
        protection: (0, 0, 0, 0, 0)
"""

# Before Linux 6.7 the lists have one limit.
ZONES_5_10 = """\
Node 0, zone   Normal
  pages free     100
        managed  5000
  pagesets
    cpu: 0
              count: 12
              high:  378
              batch: 63
  vm stats threshold: 24
    cpu: 10
              count: 345
              high:  378
              batch: 63
  vm stats threshold: 24
"""


def test_all_nodes_zones_and_processors() -> None:
    """Zones without lists count as what they are made of alone."""
    managed, listed = 3840 + 2195456 + 1000000, 3 + 515 + 10010 + 20 + 123456
    assert parse_zoneinfo(ZONES_6_18) == ZonePages(managed * PAGE, listed * PAGE)


def test_older_kernels() -> None:
    """Their lists are short, but written alike."""
    assert parse_zoneinfo(ZONES_5_10) == ZonePages(5000 * PAGE, 357 * PAGE)


def test_this_host() -> None:
    """Its zones are found, and in lists is less than is managed."""
    pages = parse_zoneinfo(ZONEINFO_PATH.read_text())
    assert 0 <= pages.percpu_bytes < pages.managed_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "count: 5\n",  # of nobody
        "    cpu: 0\n",
        "    cpu: 0\n              count: -5\n",
        "    cpu: 0\n              count: 5 of 7\n",
        "    cpu: 0\n              count: 0x10\n",
        "    cpu: 0\n              count: ١٢\n",  # digits, but not the kernel's
        "    cpu: 0\n              count: " + "9" * 5000 + "\n",  # more than int() takes
        "        managed  -1\n        managed  many\n",
        "    cpu: 0 pcp: 0\n              count: 5\n",  # Linux 2.6.16
    ],
)
def test_what_is_not_understood_counts_for_nothing(text: str) -> None:
    """Rather too little than too much."""
    assert parse_zoneinfo(text) == ZonePages(0, 0)


@given(st.integers(0, len(ZONES_6_18)))
def test_what_was_cut_off_counts_for_no_more(end: int) -> None:
    """Of a text that ends anywhere each figure is at most that of the whole."""
    whole, part = parse_zoneinfo(ZONES_6_18), parse_zoneinfo(ZONES_6_18[:end])
    assert 0 <= part.managed_bytes <= whole.managed_bytes
    assert 0 <= part.percpu_bytes <= whole.percpu_bytes


PIECES = st.text(max_size=40) | st.sampled_from(
    [*ZONES_5_10.splitlines(keepends=True), "    cpu: ", "\n              count: ", "        managed  ", "9" * 4400]
)


@given(st.lists(PIECES, max_size=60))
def test_garbage_never_raises(pieces: list[str]) -> None:
    """Whatever it says, there are two figures that are not negative."""
    pages = parse_zoneinfo("".join(pieces))
    assert pages.managed_bytes >= 0
    assert pages.percpu_bytes >= 0
