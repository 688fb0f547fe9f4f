"""The picture of the slabs has a bounded number of cells, each the sum of its slabs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infiniswap.device.heat import NOBODY, SEVERAL, picture
from infiniswap.engine.binding import SlabState

FIELDS = ("state", "peer", "remote_pages", "backup_pages", "pending_pages")


def table(*rows: tuple[SlabState, int, int]) -> NDArray[Any]:
    """Slabs by state, peer and remote pages; as many pages on the backup, one pending."""
    found = np.zeros(len(rows), dtype=[(name, "<i4") for name in FIELDS])
    for at, (state, peer, pages) in enumerate(rows):
        found[at] = (state, peer, pages, pages, 1)
    return found


def test_a_cell_a_slab() -> None:
    """While there are few, each slab is a cell; what is not mapped has no peer, whatever its row says."""
    slabs = table((SlabState.MAPPED, 1, 7), (SlabState.UNMAPPED, 1, 0), (SlabState.DRAINING, 0, 3))
    found = picture(slabs, np.array([1.26, 0.0, 5.0]), frozenset())
    assert (found["slabs"], found["slabs_per_cell"]) == (3, 1)
    assert found["activity"] == [1.3, 0.0, 5.0]
    assert (found["mapped"], found["changing"]) == ([1, 0, 0], [0, 0, 1])
    assert found["peer"] == [1, NOBODY, 0]
    assert (found["remote_pages"], found["pending_pages"]) == ([7, 0, 3], [1, 1, 1])


def test_several_slabs_a_cell() -> None:
    """Beyond the limit neighbours share a cell: sums, the highest activity, the peer where it is one."""
    mapped, free = SlabState.MAPPED, SlabState.UNMAPPED
    slabs = table((mapped, 0, 1), (free, 0, 0), (mapped, 1, 2), (mapped, 2, 4), (mapped, 2, 8))
    found = picture(slabs, np.array([2.0, 4.0, 1.0, 1.0, 9.0]), frozenset({1}), cells_max=3)
    assert (found["slabs"], found["slabs_per_cell"]) == (5, 2)
    assert found["activity"] == [4.0, 1.0, 9.0]
    assert found["peer"] == [0, SEVERAL, 2]
    assert (found["mapped"], found["changing"], found["remote_pages"]) == ([1, 2, 1], [1, 0, 0], [1, 6, 8])


@pytest.mark.parametrize("slabs", [1, 1023, 1024, 1025, 16_384, 1 << 18])
def test_never_more_cells_than_that(slabs: int) -> None:
    """The largest device there may be is no larger an answer, and every slab is in it."""
    found = picture(np.ones(slabs, dtype=[(name, "<i4") for name in FIELDS]), np.ones(slabs), frozenset())
    assert len(found["activity"]) == len(found["peer"]) <= 1024
    assert sum(found["mapped"]) == slabs
    assert set(found["activity"]) == {1.0}
