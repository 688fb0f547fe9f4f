"""Pictures of what came of a simulation, by matplotlib, which is loaded when the first one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.simulation.figures import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.5, 100


def check_matplotlib() -> None:
    """UserError when it is not there: before anything is simulated for it."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise UserError("--plot needs matplotlib, which is not installed: pip install 'matplotlib>=3.8,<4'") from None


def draw(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write one PNG a subject into folder, which is made when it is not there; the files. UserError: it cannot be."""
    subjects: dict[str, tuple[str, str, Callable[[Axes], None]]] = {
        "utilisation.png": ("memory in use", "% of the cluster's", lambda axes: _utilisation(axes, outcomes)),
        "balance.png": (
            "balance",
            "fullest machine to the median",
            lambda axes: _balance(axes, outcomes),
        ),
        "evictions.png": ("evictions", "slabs since the start", lambda axes: _lines(axes, outcomes, "evicted")),
        "remote.png": ("served by remote memory", "% of pages", lambda axes: _lines(axes, outcomes, "remote_percent")),
        "machines.png": ("memory in use at the end", "% of the machine's", lambda axes: _machines(axes, outcomes)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(folder / name, *subject) for name, subject in subjects.items()]
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}", ExitCode.RESOURCES) from None


def _write(path: Path, title: str, unit: str, fill: Callable[[Axes], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI, layout="tight")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("seconds")
    axes.set_ylabel(unit)
    axes.grid(visible=True, alpha=0.3)
    fill(axes)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path)
    return path


def _lines(axes: Axes, outcomes: Sequence[Outcome], series: str) -> None:
    for outcome in outcomes:
        values = getattr(outcome.series, series)
        axes.plot(range(1, len(values) + 1), values, label=outcome.strategy, linewidth=1.2)


def _utilisation(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    own = outcomes[0].series.own_percent
    axes.plot(range(1, len(own) + 1), own, label="nothing lent", linewidth=1.2, color="black", linestyle="dashed")
    _lines(axes, outcomes, "utilisation_percent")


def _balance(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    own = outcomes[0].series.own_max_to_median
    axes.plot(range(1, len(own) + 1), own, label="nothing lent", linewidth=1.2, color="black", linestyle="dashed")
    _lines(axes, outcomes, "max_to_median")


def _machines(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Each line sorted by itself, as what matters is its shape."""
    own = sorted(outcomes[0].machines_own_percent)
    axes.plot(range(1, len(own) + 1), own, label="nothing lent", linewidth=1.2, color="black", linestyle="dashed")
    for outcome in outcomes:
        axes.plot(range(1, len(own) + 1), sorted(outcome.machines_percent), label=outcome.strategy, linewidth=1.2)
    axes.set_xlabel("machines, the emptiest first")
