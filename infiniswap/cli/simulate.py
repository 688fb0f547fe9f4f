"""infiniswap simulate: a cluster in one process, to compare policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from infiniswap.cli.common_options import Size, make_output, output_options
from infiniswap.cli.param_type import ParamType
from infiniswap.cli.progress import progress_on
from infiniswap.cli.table import Column, Output, Row, as_decimal, columns_help, show
from infiniswap.shared.errors import UserError
from infiniswap.simulation.figures import Outcome, mean_rows, nothing_lent
from infiniswap.simulation.plots import check_matplotlib, draw
from infiniswap.simulation.run import Simulation
from infiniswap.simulation.scenario import (
    GIB,
    MACHINES,
    RUNS_MAX,
    SEED_MAX,
    Scenario,
    Strategy,
    parse_failure,
    parse_load,
    parse_memory,
    parse_strategies,
    scaled_containers,
)


def as_ratio(value: Any) -> str:
    """Two digits behind the point."""
    return "-" if value is None else f"{float(value):.2f}"


def as_count(value: Any) -> str:
    """Whole where it is; a mean has one digit behind the point."""
    return "-" if value is None else f"{float(value):.1f}".removesuffix(".0")


COLUMNS = (
    Column("STRATEGY", "strategy", "how donors are chosen; none: nothing is lent"),
    Column("USE-%", "utilisation_percent", "memory in use of all machines", right=True, format=as_decimal),
    Column("MAX/MED", "max_to_median", "the fullest machine to the median one", right=True, format=as_ratio),
    Column("MAX/MIN", "max_to_min", "the fullest machine to the emptiest", right=True, format=as_ratio),
    Column("DEV", "deviation_percent", "standard deviation of use, points", right=True, format=as_decimal),
    Column("REMOTE-%", "remote_percent", "pages served by remote memory", right=True, format=as_ratio),
    Column("MAPPED", "mapped", "slabs mapped", right=True, format=as_count),
    Column("EVICTED", "evicted", "slabs that donors wanted back", right=True, format=as_count),
    Column("HOT", "evicted_hot", "of them, hot ones", right=True, format=as_count),
    Column("FORCED", "forced", "slabs taken by force", right=True, format=as_count),
    Column("MOVED", "moved", "slabs copied to another donor", right=True, format=as_count),
    Column("PAGES", "moved_pages", "pages copied to another donor", right=True, format=as_count),
    Column("LOST", "lost", "slabs lost with machines that failed", right=True, format=as_count),
    Column("WAIT-S", "hot_unmapped_s", "seconds that hot slabs were not mapped", right=True, format=as_count),
    Column("NO-ROOM", "no_room", "times no donor had room", right=True, default=False, format=as_count),
    Column("COLD", "cold", "slabs given up as cold", right=True, default=False, format=as_count),
    Column("REBALANCED", "rebalanced", "slabs moved to even shares", right=True, default=False, format=as_count),
    Column("ASKED", "asked", "owners asked for activity", right=True, default=False, format=as_count),
    Column("EVICTED-IO", "evicted_page_ios", "page I/O per s of evicted slabs", True, default=False, format=as_count),
)


class _Parsed(ParamType[Any]):
    """A value that one of the scenario's parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the parser makes of it; click's usage error otherwise."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


def simulate(scenario: Scenario, strategies: Sequence[Strategy], runs: int) -> dict[Strategy, list[Outcome]]:
    """Each strategy, runs times with seeds in sequence. Progress goes to stderr when that is a terminal."""
    found: dict[Strategy, list[Outcome]] = {strategy: [] for strategy in strategies}
    with progress_on(None) as progress:
        for strategy in strategies:
            task = progress.add_task(str(strategy), total=runs * scenario.duration_s)
            for number in range(runs):
                simulation = Simulation(replace(scenario, seed=(scenario.seed + number) % (SEED_MAX + 1)), strategy)
                found[strategy].append(simulation.run(lambda _, task=task: progress.advance(task)))  # type: ignore[misc]
    return found


def rows_of(outcomes: dict[Strategy, list[Outcome]]) -> list[dict[str, Any]]:
    """What to show: first the cluster with nothing lent, then a row for each strategy, the mean of its runs."""
    rows = [mean_rows([outcome.summary() for outcome in runs]) for runs in outcomes.values()]
    return [nothing_lent(rows[0]), *rows]


def _show_json(rows: Sequence[Row], outcomes: dict[Strategy, list[Outcome]], scenario: Scenario) -> None:
    """Rows with the series of each strategy's first run, and what was simulated."""
    series: list[Any] = [{}, *(asdict(runs[0].series) for runs in outcomes.values())]
    shown = [dict(row) | {"series": each} for row, each in zip(rows, series, strict=True)]
    click.echo(json.dumps({"scenario": asdict(scenario), "results": shown}, indent=2))


@click.command("simulate", epilog=columns_help(COLUMNS))
@click.option("--machines", type=int, default=MACHINES, show_default=True, help="Machines, each a donor and a device.")
@click.option(
    "--memory",
    "memory_bytes",
    type=_Parsed("sizes", parse_memory),
    default="64GiB",
    show_default=True,
    help="Memory of a machine; several sizes, separated by commas, are the machines' in turn.",
)
@click.option("--containers", type=int, help="Containers in all [default: 90 for each 32 machines].")
@click.option("--slab", "slab_bytes", type=Size(), default=GIB, show_default="1GiB", help="Size of a slab.")
@click.option(
    "--spread", type=float, default=1.0, show_default=True, help="Swap area touched, for each byte that is paged out."
)
@click.option("--duration", "duration_s", type=int, default=600, show_default=True, help="Simulated seconds.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same result to the byte.")
@click.option("--runs", type=click.IntRange(1, RUNS_MAX), default=1, show_default=True, help="Seeds to average over.")
@click.option(
    "--strategy",
    "strategies",
    type=_Parsed("strategies", parse_strategies),
    default=",".join(Strategy),
    show_default=True,
    help="What to compare, separated by commas.",
)
@click.option(
    "--fail",
    "failures",
    type=_Parsed("failure", parse_failure),
    multiple=True,
    metavar="SECOND:MACHINES[:SECONDS]",
    help="Random machines fail, and are back after so long [60 s].",
)
@click.option(
    "--load",
    "loads",
    type=_Parsed("load", parse_load),
    multiple=True,
    metavar="SECOND:MACHINES:SIZE[:SECONDS]",
    help="Programs on random machines take SIZE (or 25% of its memory) more, for so long [120 s].",
)
@click.option("--spare", type=float, default=1.0, show_default=True, help="E'/E: slabs asked about that need not go.")
@click.option("--cool-down", "cool_down_s", type=float, default=5.0, show_default=True, help="After an eviction, s.")
@click.option("--cold", "cold_page_ios", type=float, help="Give slabs up below so many page I/O per s [never].")
@click.option("--headroom", "headroom_percent", type=float, default=10.0, show_default=True, help="Kept free, percent.")
@click.option("--policy", default="hot", show_default=True, help="hot or eager: when devices map a slab.")
@click.option("--rebalance/--no-rebalance", default=True, show_default=True, help="Move slabs to donors with few.")
@click.option("--move/--no-move", default=True, show_default=True, help="Copy hot slabs from donor to donor.")
@click.option("--plot", "plot_folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Write pictures there.")
@click.option("--series", is_flag=True, help="With --json: every second of each strategy's first run, too.")
@output_options
def command(
    containers: int | None,
    machines: int,
    strategies: tuple[Strategy, ...],
    runs: int,
    plot_folder: Path | None,
    series: bool,
    columns: str | None,
    noheadings: bool,
    in_bytes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate a cluster and compare ways to choose donors.

    It decides second by second as devices and donors do. Containers at random places grow, page and pause; donors lend
    what is free beyond their headroom and take it back. Balance is the mean of the second half of the time, all else is
    counted from the start. docs/simulation.md tells what is modelled, and how it differs from a real cluster.
    """
    output: Output = make_output(columns, noheadings, in_bytes, as_json)
    if series and not output.as_json:
        raise UserError("--series is for --json")
    if plot_folder is not None:
        check_matplotlib()
    count = scaled_containers(machines) if containers is None else containers
    scenario = Scenario(machines=machines, containers=count, **options)
    outcomes = simulate(scenario, strategies, runs)
    rows = rows_of(outcomes)
    if series:
        _show_json(rows, outcomes, scenario)
    else:
        show(rows, COLUMNS, output)
    if plot_folder is not None:
        for path in draw([found[0] for found in outcomes.values()], plot_folder):
            click.echo(f"wrote {path}", err=True)
