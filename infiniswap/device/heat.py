"""The slabs as a picture: at most some hundred cells, each of neighbouring slabs, whatever the size of the device."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.device.snapshot import heat
from infiniswap.engine.binding import SlabState

CELLS_MAX = 1024
SEVERAL = -2  # peer of a cell whose slabs are at several
NOBODY = -1
_PAGES = ("remote_pages", "backup_pages", "pending_pages")


def picture(
    table: NDArray[Any], activity: NDArray[np.float64], mapping: AbstractSet[int], cells_max: int = CELLS_MAX
) -> dict[str, Any]:
    """Columns with a number per cell; table: the engine's slabs, activity: page I/O per second of each.

    As snapshot.heat(), and the pages in each place; peer is the slot of the only one that holds some of the cell,
    NOBODY or SEVERAL.
    """
    found = heat(table, activity, mapping, cells_max)
    starts = np.arange(0, len(table), found["slabs_per_cell"])
    held = table["state"] != SlabState.UNMAPPED
    slots = table["peer"].astype(np.int64)
    low = np.minimum.reduceat(np.where(held, slots, np.iinfo(np.int64).max), starts)
    high = np.maximum.reduceat(np.where(held, slots, NOBODY), starts)
    return {
        **found,
        "slabs": len(table),
        **{name: np.add.reduceat(table[name].astype(np.int64), starts).tolist() for name in _PAGES},
        "peer": np.where(high == NOBODY, NOBODY, np.where(low == high, high, SEVERAL)).tolist(),
    }
