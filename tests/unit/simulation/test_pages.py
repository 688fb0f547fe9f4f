"""Of page I/O as much counts as remote as has been written, or promoted, since its slab was mapped."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from infiniswap.policy.activity import Activity
from infiniswap.simulation.cluster import Cluster
from infiniswap.simulation.pages import PROMOTED_PAGES_PER_S, Pages
from infiniswap.simulation.scenario import GIB, PAGE_BYTES

PER_SLAB = GIB // PAGE_BYTES


class Exact:
    """Arrivals without chance."""

    def poisson(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean


class World:
    """Two machines; the device of the first has two slabs."""

    def __init__(self) -> None:
        self.cluster = Cluster([64 * GIB] * 2, [2, 0], GIB)
        self.pages = Pages(self.cluster, Exact())  # type: ignore[arg-type]
        self.activity = Activity(np.zeros(2, dtype=np.uint64))

    def second(self, *page_ios: float, filling: float = 0.0) -> tuple[int, float]:
        return self.pages.second(np.array([*page_ios, 0.0, 0.0][:2]), np.array([filling, 0.0]), self.activity)


def test_by_hand() -> None:
    """What is written while its slab is nowhere comes from the backup, until it is written again or promoted."""
    world = World()
    assert world.second(filling=PER_SLAB / 2) == (PER_SLAB // 2, 0.0)
    assert world.second(2000) == (2000, 0.0)
    assert (world.pages.written[0], world.pages.remote[0]) == (0.5, 0.0)
    world.cluster.take(0, 1, 0.0)
    world.pages.begin(0)
    assert world.second(2000) == (2000, 1000.0), "page-outs go there, page-ins find nothing yet"
    rewritten = 0.5 * (1 - np.exp(-1000 / (PER_SLAB / 2)))
    remote = rewritten + PROMOTED_PAGES_PER_S / PER_SLAB
    assert world.pages.remote[0] == pytest.approx(remote)
    assert world.second(2000)[1] == pytest.approx(1000 + 1000 * remote / 0.5)
    world.cluster.lose(0)
    assert world.second(2000) == (2000, 0.0)
    assert (world.pages.written[0], world.pages.remote[0]) == (0.5, 0.0)


def test_what_is_written_while_mapped_is_remote_at_once() -> None:
    """All of it, and no more than fits into the slab."""
    world = World()
    world.cluster.take(0, 1, 0.0)
    assert world.second(filling=PER_SLAB * 0.75) == (PER_SLAB * 3 // 4, PER_SLAB * 0.75)
    world.second(filling=PER_SLAB * 0.75)
    assert (world.pages.written[0], world.pages.remote[0]) == (1.0, 1.0)
    assert world.second(100) == (100, 100.0)
    world.pages.keep(0, 0.25)
    assert world.second(100)[1] == pytest.approx(50 + 50 * 0.25)
    world.pages.forget(slice(0, 2))
    assert not world.pages.written.any()


def test_a_slab_that_is_mapped_anew_begins_with_nothing() -> None:
    """Also when it is given up and mapped within one second."""
    world = World()
    world.cluster.take(0, 1, 0.0)
    world.second(filling=1000)
    world.cluster.lose(0)
    world.cluster.take(0, 1, 1.0)
    world.pages.begin(0)
    assert world.pages.remote[0] == 0.0


def test_promotion_is_shared_and_ends() -> None:
    """So many pages a second for all slabs of a device, until all that was written is remote."""
    world = World()
    world.pages.written[:] = 0.02
    world.cluster.take(0, 1, 0.0)
    world.cluster.take(1, 1, 0.0)
    world.second()
    assert world.pages.remote.tolist() == [pytest.approx(PROMOTED_PAGES_PER_S / PER_SLAB / 2)] * 2
    for _ in range(20):
        world.second()
    assert world.pages.remote.tolist() == [pytest.approx(0.02)] * 2


def test_activity_follows() -> None:
    """The policy's own average, over page-ins and page-outs, first ones too."""
    world = World()
    world.second(100, 10, filling=50)
    assert world.activity.values.tolist() == [pytest.approx(30.0), pytest.approx(2.0)]
