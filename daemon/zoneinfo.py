"""Free pages in lists of the processors, by /proc/zoneinfo (kernel docs, filesystems/proc).

What a processor frees it keeps in a list of its own first, to use it again without a lock: since Linux 6.7 up to an
eighth of a zone in all, which goes back to the zone within minutes, or when the kernel reclaims. MemFree and
MemAvailable count what zones have free, and not these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from resource import getpagesize

ZONEINFO_PATH = Path("/proc/zoneinfo")
PIECES_MAX = 64  # the kernel gives it a node at a time, or as much as is asked for
_MANAGED = re.compile(r"^ +managed +([0-9]{1,12})$", re.MULTILINE)
_COUNT = re.compile(r"^ +cpu: [0-9]+\n +count: +([0-9]{1,12})$", re.MULTILINE)  # of each zone and processor


@dataclass(frozen=True, slots=True)
class ZonePages:
    """All zones of all nodes together: what they are made of, and what of it lies in lists of the processors."""

    managed_bytes: int
    percpu_bytes: int


def parse_zoneinfo(text: str) -> ZonePages:
    """What it says; a line that is not understood, or was cut off, counts for nothing."""
    managed, counts = (sum(map(int, pattern.findall(text))) for pattern in (_MANAGED, _COUNT))
    return ZonePages(managed * getpagesize(), counts * getpagesize())
