"""The table as Markdown: as it is printed, and as it stands in README.md, between two marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size
from scripts.benchmark.comparison import Verdict, middle
from scripts.benchmark.measure import Sample
from scripts.benchmark.report import MET, number, table
from scripts.benchmark.workload import WORKLOADS

BEGIN, END = "<!-- what scripts/bench printed: begin -->", "<!-- what scripts/bench printed: end -->"


def about_line(about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What was measured on, and how much."""
    return (
        f"{about['cpu']}, {about['cores']} cores, kernel {about['kernel']}; backups on {about['disk']}. "
        f"Devices of {format_size(settings['size_bytes'])}, {settings['rounds']} rounds of {settings['runtime_s']:g} s "
        f"in turns, {settings['took_s'] / 60:.0f} minutes in all; medians, ratios of those within a round."
    )


def wanted_table(verdicts: Sequence[Verdict]) -> str:
    """What is wanted, measured, and whether that is met."""
    rows = [[verdict.text, verdict.wanted, verdict.value, MET[verdict.met]] for verdict in verdicts]
    return table(("", "wanted", "measured", "met"), rows)


def figures_table(samples: Sequence[Sample], titles: Mapping[str, str]) -> str:
    """Operations a second and p50 of everything: a row for each workload, a column for each contender."""
    names = [name for name in titles if any(sample.contender == name for sample in samples)]
    rows = []
    for workload in WORKLOADS:
        cells = []
        for name in names:
            iops, p50_us = (middle(samples, workload.name, name, field) for field in ("iops", "p50_us"))
            cells.append("" if iops is None else f"{number(iops)} ({number(p50_us)})")
        if any(cells):
            rows.append([workload.name, *cells])
    return table(("operations/s (p50, µs)", *names), rows)


def markdown(
    verdicts: Sequence[Verdict],
    samples: Sequence[Sample],
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    warnings: Sequence[str],
) -> str:
    """All of it."""
    parts = [f"    {settings['command']}", about_line(about, settings), wanted_table(verdicts)]
    if samples:
        parts.append(figures_table(samples, settings["contenders"]))
    parts += [f"warning: {warning}" for warning in warnings]
    return "\n\n".join(parts) + "\n"


def with_table(document: str, text: str) -> str:
    """The document with text between the marks. UserError when it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"README.md has no place for the table, between {BEGIN} and {END}", ExitCode.NOT_FOUND)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"
