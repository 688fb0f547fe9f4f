"""What a device tells of itself at one moment is what its tables say, however much of it is put together."""

from __future__ import annotations

import random

import numpy as np
import pytest

from infiniswap.device.snapshot import choose_slabs, heat, histograms, slab_sums
from infiniswap.engine.binding import SLAB_DTYPE, SOURCES, SlabState
from infiniswap.shared.slab_choice import SORTS, STATES, SlabChoice

PEERS = {0: "a:1", 1: "a:2", 2: "b:1"}


def world(seed: int) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """A table of slabs, their activity, and those for which a peer is looked for."""
    rng = random.Random(seed)
    table = np.zeros(rng.randrange(1, 300), SLAB_DTYPE)
    for row in table:
        row["state"] = rng.choice(list(SlabState))
        row["peer"] = rng.randrange(3)
        for key in ("remote_pages", "backup_pages", "pending_pages", "page_ins", "page_outs"):
            row[key] = rng.randrange(3)
    activity = np.array([rng.choice([0.0, 1.5, 30.0]) for _ in table])
    return table, activity, {rng.randrange(len(table)) for _ in range(4)}


def state_of(table: np.ndarray, mapping: set[int], index: int) -> str:
    """As the API words it."""
    word = SlabState(int(table[index]["state"])).name.lower()
    return "mapping" if word == "unmapped" and index in mapping else word


@pytest.mark.parametrize("seed", range(40))
def test_the_device_chooses_as_the_command_does(seed: int) -> None:
    """Both ends of a choice agree, so that an older device, which answers with all, makes no difference."""
    table, activity, mapping = world(seed)
    rng = random.Random(seed)
    rows = [
        {
            "index": i,
            "state": state_of(table, mapping, i),
            "peer": None if row["state"] == SlabState.UNMAPPED else PEERS[int(row["peer"])],
            "activity": float(activity[i]),
            **{key: int(row[key]) for key in SORTS.values() if key not in ("index", "activity")},
        }
        for i, row in enumerate(table)
    ]
    for _ in range(20):
        choice = SlabChoice(
            rng.choice([None, *STATES]),
            rng.choice([None, "a", "a:2", "b:1", "c"]),
            rng.choice(list(SORTS)),
            rng.choice([None, 1, 7, 1000]),
        )
        chosen = [row["index"] for row in choice.choose(rows)]
        assert choose_slabs(choice, table, activity, mapping, PEERS).tolist() == chosen, choice


@pytest.mark.parametrize("cells", [1, 7, 256, 1000])
def test_heat_puts_slabs_together(cells: int) -> None:
    """Never more cells than asked for; each has its slabs' highest activity and their numbers; none is left out."""
    table, activity, mapping = world(cells)
    picture = heat(table, activity, mapping, cells)
    each = picture["slabs_per_cell"]
    assert len(picture["activity"]) <= cells
    for cell, start in enumerate(range(0, len(table), each)):
        part = table[start : start + each]
        assert picture["activity"][cell] == activity[start : start + each].max()
        assert picture["mapped"][cell] == sum(1 for row in part if row["state"] == SlabState.MAPPED)
    assert sum(picture["used"]) == sum(
        1 for row in table if row["remote_pages"] or row["backup_pages"] or row["pending_pages"]
    )


def test_sums() -> None:
    """States add up to all slabs; a slab that holds pages without remote memory is told apart."""
    table, _, mapping = world(3)
    sums = slab_sums(table, mapping)
    assert sum(sums[state] for state in STATES) == len(table)
    assert sums["mapping"] == sum(1 for i in range(len(table)) if state_of(table, mapping, i) == "mapping")
    without = [r for r in table if r["state"] == SlabState.UNMAPPED and (r["backup_pages"] or r["pending_pages"])]
    assert sums["unmapped_used"] == len(without)


def test_histograms_have_what_was_counted() -> None:
    """Only buckets that counted, each with its edges; the last one has no width."""
    floors = np.array([0, 10, 20, 40], np.uint64)
    counts = np.zeros((len(SOURCES), 4), np.uint64)
    counts[0] = [0, 5, 0, 1]
    told = histograms(counts, floors)
    assert told["remote"] == [[10, 20, 5], [40, 40, 1]]
    assert told["flush"] == []
