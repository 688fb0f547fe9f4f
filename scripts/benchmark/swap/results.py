"""What came out of a comparison: samples, tables, JSON, plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from infiniswap.shared.errors import UserError
from scripts.benchmark.plot import load_pyplot
from scripts.benchmark.report import number, table
from scripts.benchmark.swap.jobs import Figures

FULL = 100
PANELS = (("rate", "operations/s (log)"), ("p50_us", "p50, µs (log)"), ("p99_us", "p99, µs (log)"))


@dataclass(frozen=True, slots=True)
class Sample:
    """One job on one medium with percent of its memory; pages_in and pages_out: what the machine swapped meanwhile.

    zswap_in: pages of pages_in that zswap gave back.
    limit_bytes: of its control group, 0 for none; charged_bytes: what was charged to it at the end; zswap_bytes: what
    of that were zswap's compressed pages.
    """

    round: int
    medium: str
    job: str
    percent: int
    figures: Figures
    pages_in: int
    pages_out: int
    zswap_in: int = 0
    limit_bytes: int = 0
    charged_bytes: int = 0
    zswap_bytes: int = 0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.figures.operations / self.figures.seconds if self.figures.seconds else 0.0


def middle(samples: Sequence[Sample], medium: str, job: str, percent: int, field: str) -> float | None:
    """Median over rounds of rate, p50_us, p99_us or pages_in; None where nothing was measured, or nothing happened."""
    found = [s for s in samples if (s.medium, s.job, s.percent) == (medium, job, percent) and s.figures.operations]
    if not found:
        return None
    if field in ("p50_us", "p99_us"):
        return median(float(getattr(sample.figures, field)) for sample in found)
    return median(float(getattr(sample, field)) for sample in found)


def job_table(samples: Sequence[Sample], job: str, media: Mapping[str, str], percents: Sequence[int]) -> str:
    """A row for each medium: per share of memory throughput, p50 and p99; what is left of the full throughput."""
    paged = [percent for percent in percents if percent != FULL]
    headings = ["swap on"]
    for label in ("op/s", "p50 us", "p99 us"):
        headings += [f"{label} {percent} %" for percent in percents]
    headings += [f"left at {percent} %" for percent in paged] if FULL in percents else []
    rows = []
    for name, title in media.items():
        row = [title]
        for field in ("rate", "p50_us", "p99_us"):
            row += [number(middle(samples, name, job, percent, field)) for percent in percents]
        full = middle(samples, name, job, FULL, "rate")
        for percent in paged if FULL in percents else []:
            rate = middle(samples, name, job, percent, "rate")
            row.append("-" if not full or rate is None else f"{rate / full:.1%}")
        rows.append(row)
    return table(headings, rows)


def text(samples: Sequence[Sample], jobs: Mapping[str, str], media: Mapping[str, str], percents: Sequence[int]) -> str:
    """Everything that the command prints at its end."""
    parts = []
    for job, title in jobs.items():
        parts += [title, "", job_table(samples, job, media, percents), ""]
    return "\n".join(parts).rstrip()


def as_json(samples: Sequence[Sample], machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """All samples with what they were measured on."""
    report = {
        "machine": dict(machine),
        "settings": dict(settings),
        "samples": [{**asdict(sample), "rate": sample.rate} for sample in samples],
    }
    return json.dumps(report, indent=2) + "\n"


def from_json(text: str) -> tuple[list[Sample], dict[str, Any]]:
    """Samples and settings that as_json() wrote; UserError when it is something else."""
    try:
        report = json.loads(text)
        samples = []
        for found in report["samples"]:
            fields = {name: value for name, value in found.items() if name not in ("rate", "figures")}
            samples.append(Sample(**fields, figures=Figures(**found["figures"])))
        settings: dict[str, Any] = report["settings"]
        if not samples or not {"media", "jobs"} <= settings.keys():
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError("these are no results of scripts/bench --swap") from None
    return samples, settings


def write_plot(
    path: Path, samples: Sequence[Sample], jobs: Mapping[str, str], media: Mapping[str, str], percents: Sequence[int]
) -> None:
    """A row of panels for each job: throughput, p50, p99 over the shares of memory. UserError without matplotlib."""
    pyplot = load_pyplot()
    size = (13, 3 * len(jobs) + 1)
    figure, grid = pyplot.subplots(len(jobs), len(PANELS), figsize=size, layout="constrained", squeeze=False)
    width = 0.8 / max(1, len(media))
    for panels, (job, title) in zip(grid, jobs.items(), strict=True):
        for panel, (field, label) in zip(panels, PANELS, strict=True):
            for place, (name, medium) in enumerate(media.items()):
                heights = [middle(samples, name, job, percent, field) or float("nan") for percent in percents]
                shifts = [group + (place - (len(media) - 1) / 2) * width for group in range(len(percents))]
                panel.bar(shifts, heights, width, label=medium)
            panel.set_xticks(range(len(percents)), [f"{percent} %" for percent in percents])
            panel.set_yscale("log")
            panel.set_ylabel(label)
            panel.grid(axis="y", alpha=0.3)
            panel.set_title(title, fontsize="small")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
