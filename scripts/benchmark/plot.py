"""The PNG: IOPS and latencies of every contender."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.comparison import middle
from scripts.benchmark.measure import Sample
from scripts.benchmark.workload import Workload

_PANELS = (("iops", "IOPS (log)"), ("p50_us", "p50, µs (log)"), ("p99_us", "p99, µs (log)"))


def load_pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing to files. UserError where it is not installed."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise UserError("matplotlib is missing: run scripts/bench, which installs it", ExitCode.NOT_FOUND) from None


def write_plot(path: Path, samples: Sequence[Sample], workloads: Sequence[Workload], titles: Mapping[str, str]) -> None:
    """Grouped bars, one panel per figure, one group per workload, medians. UserError without matplotlib."""
    pyplot = load_pyplot()
    names = [name for name in titles if any(sample.contender == name for sample in samples)]
    figure, panels = pyplot.subplots(len(_PANELS), 1, figsize=(11, 11), layout="constrained")
    width = 0.8 / max(1, len(names))
    for panel, (field, label) in zip(panels, _PANELS, strict=True):
        for place, name in enumerate(names):
            heights = [middle(samples, workload.name, name, field) or float("nan") for workload in workloads]
            shifts = [group + (place - (len(names) - 1) / 2) * width for group in range(len(workloads))]
            panel.bar(shifts, heights, width, label=titles[name])
        panel.set_xticks(range(len(workloads)), [workload.name for workload in workloads])
        panel.set_yscale("log")
        panel.set_ylabel(label)
        panel.grid(axis="y", alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
