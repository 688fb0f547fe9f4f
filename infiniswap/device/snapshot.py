"""All that one look at a device needs, in one answer: rates come from two of them, so all numbers are of one moment."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.engine.binding import SOURCES, SlabState
from infiniswap.shared.slab_choice import SORTS, SlabChoice

CELLS_DEFAULT = 256
CELLS_MAX = 8192  # of the heat picture; more than any screen has characters


def histograms(counts: NDArray[np.uint64], floors_ns: NDArray[np.uint64]) -> dict[str, list[list[int]]]:
    """By source the buckets that counted something: [from_ns, to_ns, count]. Counts only grow while a device runs."""
    out = {}
    for row, source in enumerate(SOURCES):
        used = np.flatnonzero(counts[row])
        above = np.minimum(used + 1, len(floors_ns) - 1)  # the last bucket has no width
        out[source] = np.stack([floors_ns[used], floors_ns[above], counts[row][used]], axis=1).tolist()
    return out


def heat(table: NDArray[Any], activity: NDArray[np.float64], mapping: AbstractSet[int], cells: int) -> dict[str, Any]:
    """The slabs as at most so many cells of equally many slabs each, in order.

    By cell: activity of its most active slab, slabs mapped, slabs being mapped or given up, slabs that hold any page.
    """
    slabs = len(table)
    each = max(1, -(-slabs // cells))
    starts = np.arange(0, slabs, each)
    state = table["state"]
    changing = state == int(SlabState.DRAINING)
    if mapping:
        changing = changing.copy()
        changing[np.fromiter(mapping, np.int64)] = True
    used = (table["remote_pages"] > 0) | (table["backup_pages"] > 0) | (table["pending_pages"] > 0)

    def per_cell(values: NDArray[Any]) -> list[int]:
        return [int(n) for n in np.add.reduceat(values.astype(np.int64), starts)]

    return {
        "slabs_per_cell": each,
        "activity": np.round(np.maximum.reduceat(activity, starts), 1).tolist(),
        "mapped": per_cell(state == int(SlabState.MAPPED)),
        "changing": per_cell(changing),
        "used": per_cell(used),
    }


def slab_sums(table: NDArray[Any], mapping: AbstractSet[int]) -> dict[str, int]:
    """Slabs by state, and pages by place, of the whole device; unmapped_used: hold pages without remote memory."""
    state = table["state"]
    mapped, draining = (int(np.count_nonzero(state == int(s))) for s in (SlabState.MAPPED, SlabState.DRAINING))
    begun = sum(1 for index in mapping if state[index] == int(SlabState.UNMAPPED))
    pages = {name: int(table[name].sum()) for name in ("remote_pages", "backup_pages", "pending_pages")}
    unmapped = len(table) - mapped - draining - begun
    used = (table["backup_pages"] > 0) | (table["pending_pages"] > 0)
    without = int(np.count_nonzero(used & (state == int(SlabState.UNMAPPED))))
    states = {"mapped": mapped, "mapping": begun, "draining": draining, "unmapped": unmapped}
    return {**states, "unmapped_used": without, **pages}


def choose_slabs(
    choice: SlabChoice,
    table: NDArray[Any],
    activity: NDArray[np.float64],
    mapping: AbstractSet[int],
    peers: Mapping[int, str],
) -> NDArray[np.int64]:
    """Indexes of the slabs that are wanted, in the order that is wanted; peers: addresses by slot."""
    keep = np.ones(len(table), np.bool_)
    if choice.state is not None:
        begun = np.zeros(len(table), np.bool_)
        begun[np.fromiter(mapping, np.int64, len(mapping))] = True
        begun &= table["state"] == int(SlabState.UNMAPPED)
        states = {"mapping": begun, "unmapped": (table["state"] == int(SlabState.UNMAPPED)) & ~begun}
        keep = (
            states[choice.state] if choice.state in states else table["state"] == int(SlabState[choice.state.upper()])
        )
    if choice.peer is not None:
        keep &= np.isin(table["peer"], [slot for slot, address in peers.items() if choice.is_peer(address)])
        keep &= table["state"] != int(SlabState.UNMAPPED)
    indexes = np.flatnonzero(keep)
    if choice.sort != "index":
        key = activity if choice.sort == "activity" else table[SORTS[choice.sort]]
        # Stable, and the largest first: equal ones stay in order.
        indexes = indexes[np.argsort(-key[indexes].astype(np.float64), kind="stable")]
    return indexes[: choice.top]
