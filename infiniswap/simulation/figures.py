"""What a simulation counts, second by second and in all, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.simulation.cluster import Cluster

PERCENT = 100.0


@dataclass(slots=True)
class Tally:
    """Events since the start, ever growing."""

    mapped: int = 0
    no_room: int = 0  # slabs for which no donor that may be asked had room
    asked: int = 0  # owners asked for activity
    evicted: int = 0  # slabs that a donor wanted back
    evicted_hot: int = 0  # of them, as active as one that would be mapped
    evicted_page_ios: float = 0.0  # per second of those slabs, summed up
    forced: int = 0  # slabs taken before they had been drained or moved
    cold: int = 0  # slabs given up because they were cold
    rebalanced: int = 0  # moved because another donor held far fewer
    moved: int = 0  # slabs copied from donor to donor, for whatever reason
    moved_pages: int = 0
    lost: int = 0  # slabs of donors that failed
    pages: int = 0  # page-ins and page-outs
    remote_pages: float = 0.0  # of them, those that remote memory served
    hot_unmapped_s: int = 0  # seconds that hot slabs spent without remote memory


@dataclass(frozen=True, slots=True)
class Balance:
    """How memory use is spread over machines: what is used of all, and the fullest against the middle and the least."""

    utilisation_percent: float
    max_to_median: float
    max_to_min: float
    deviation_percent: float  # standard deviation of the machines' utilisation, points

    @classmethod
    def of(cls, used_bytes: NDArray[np.int64], memory_bytes: NDArray[np.int64]) -> Balance:
        """Of machines with so much memory and so much of it in use."""
        if not len(used_bytes):
            return cls(0.0, 1.0, 1.0, 0.0)
        share = used_bytes / memory_bytes
        most = float(share.max())
        median, least = float(np.median(share)), float(share.min())
        return cls(
            PERCENT * float(used_bytes.sum()) / float(memory_bytes.sum()),
            most / median if median > 0 else 1.0,
            most / least if least > 0 else 1.0,
            PERCENT * float(share.std()),
        )


@dataclass(slots=True)
class Series:
    """One number a second of each."""

    utilisation_percent: list[float] = field(default_factory=list)
    own_percent: list[float] = field(default_factory=list)  # the same with nothing lent
    max_to_median: list[float] = field(default_factory=list)
    max_to_min: list[float] = field(default_factory=list)
    deviation_percent: list[float] = field(default_factory=list)
    own_max_to_median: list[float] = field(default_factory=list)
    own_max_to_min: list[float] = field(default_factory=list)
    own_deviation_percent: list[float] = field(default_factory=list)
    remote_percent: list[float] = field(default_factory=list)
    lent_slabs: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)  # since the start
    hot_unmapped: list[int] = field(default_factory=list)  # slabs, now

    def second(self, cluster: Cluster, tally: Tally, *, pages: int, remote_pages: float, hot_unmapped: int) -> None:
        """A second is over, in which so many pages travelled."""
        up = cluster.up
        memory = cluster.memory_bytes[up]
        all_of_it, own = Balance.of(cluster.used_bytes[up], memory), Balance.of(cluster.own_bytes[up], memory)
        self.utilisation_percent.append(all_of_it.utilisation_percent)
        self.max_to_median.append(all_of_it.max_to_median)
        self.max_to_min.append(all_of_it.max_to_min)
        self.deviation_percent.append(all_of_it.deviation_percent)
        self.own_percent.append(own.utilisation_percent)
        self.own_max_to_median.append(own.max_to_median)
        self.own_max_to_min.append(own.max_to_min)
        self.own_deviation_percent.append(own.deviation_percent)
        self.remote_percent.append(PERCENT * remote_pages / pages if pages else PERCENT)
        self.lent_slabs.append(int(cluster.lent.sum()))
        self.evicted.append(tally.evicted)
        self.hot_unmapped.append(hot_unmapped)


@dataclass(slots=True)
class Outcome:
    """What came of one strategy in one cluster."""

    strategy: str
    seed: int
    tally: Tally
    series: Series
    machines_percent: list[float]  # memory in use of each machine, at the end
    machines_own_percent: list[float]  # the same without what it has lent

    def summary(self) -> dict[str, Any]:
        """One row: balance over the second half of the time, when containers have grown; counts over all of it."""
        row: dict[str, Any] = {"strategy": self.strategy, "seed": self.seed}
        late = slice(len(self.series.lent_slabs) // 2, None)
        for name in (
            "utilisation_percent",
            "max_to_median",
            "max_to_min",
            "deviation_percent",
            "own_percent",
            "own_max_to_median",
            "own_max_to_min",
            "own_deviation_percent",
        ):
            row[name] = round(float(np.mean(getattr(self.series, name)[late])), 3)
        tally = self.tally
        row["remote_percent"] = round(PERCENT * tally.remote_pages / tally.pages, 3) if tally.pages else None
        for entry in fields(Tally):
            if entry.name not in ("pages", "remote_pages"):
                row[entry.name] = round(getattr(tally, entry.name), 1)
        return row


def nothing_lent(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a cluster that lends nothing, from any row of the same cluster."""
    return {"strategy": "none", "seed": row["seed"]} | {
        name: row[f"own_{name.removeprefix('utilisation_')}"]
        for name in ("utilisation_percent", "max_to_median", "max_to_min", "deviation_percent")
    }


def mean_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of several runs of one strategy; seed: the first one's."""
    row = dict(rows[0])
    for key, value in rows[0].items():
        if key not in ("strategy", "seed") and isinstance(value, int | float):
            row[key] = round(float(np.mean([each[key] for each in rows])), 3)
    return row
