"""Sets up what is to be measured, measures it, and writes down what came of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infiniswap.shared.errors import UserError
from scripts.benchmark import machine, report
from scripts.benchmark.accounting import peak_rss_bytes
from scripts.benchmark.comparison import (
    LAYOUT_TARGETS,
    SEALED_TARGETS,
    Verdict,
    judge,
    judge_memory,
    rss_bound_bytes,
)
from scripts.benchmark.contenders import Contender, Setting
from scripts.benchmark.device_contender import Device
from scripts.benchmark.floor_build import build_floor
from scripts.benchmark.kinds import KINDS, memory_needed_bytes
from scripts.benchmark.measure import Plan, Sample, expected_s, measure
from scripts.benchmark.places import ROOT
from scripts.benchmark.plot import write_plot
from scripts.benchmark.processes import Programs
from scripts.benchmark.start.starts import expected_s as start_s
from scripts.benchmark.start.starts import judge_start
from scripts.benchmark.terms import say
from scripts.benchmark.wanted import table
from scripts.benchmark.wanted.programs import expected_s as programs_s
from scripts.benchmark.wanted.programs import judge_programs
from scripts.benchmark.wanted.rows import PROGRAMS, START, Row, Source
from scripts.benchmark.workload import WORKLOADS, Workload

SLAB_BYTES = 16 << 20
PENDING_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured, and the rows of the table that come of it."""

    sources: frozenset[Source]
    rows: list[Row]
    encrypt: bool = False
    layouts: bool = False

    @property
    def contenders(self) -> list[str]:
        """Names, in the order of KINDS."""
        return [name for name in KINDS if any(source.contender == name for source in self.sources)]

    @property
    def workloads(self) -> list[Workload]:
        """Those that anybody is measured with."""
        return [each for each in WORKLOADS if any(source.workload == each.name for source in self.sources)]


@dataclass(slots=True)
class Outcome:
    """What came of the contenders; absent: those that this machine cannot have, and why."""

    samples: list[Sample]
    verdicts: list[Verdict]
    absent: dict[str, str]
    titles: dict[str, str]


@contextmanager
def temporary_folder(directory: Path) -> Iterator[tuple[Path, Programs]]:
    """A folder in directory, and programs that live in it; nothing is left of both."""
    folder = Path(tempfile.mkdtemp(prefix="isw-bench-", dir=directory))
    try:
        environment = {"INFINISWAP_RUNTIME_DIR": str(folder / "run"), "INFINISWAP_STATE_DIR": str(folder / "state")}
        with Programs(folder, environment) as programs:
            yield folder, programs
    finally:
        shutil.rmtree(folder)


def set_up(contenders: Sequence[Contender]) -> dict[str, str]:
    """Start all of them; those that the machine cannot have are told with the reason."""
    absent = {}
    for contender in contenders:
        say(f"Setting up: {contender.title}")
        try:
            contender.start()
        except UserError as error:
            if not contender.optional:
                raise
            absent[contender.name] = str(error)
            say(f"  left out: {error}")
    return absent


def judge_all(task: Task, samples: Sequence[Sample], contenders: Sequence[Contender], size_bytes: int) -> list[Verdict]:
    """The targets of the mode, and the memory of each device service that runs."""
    targets = SEALED_TARGETS if task.encrypt else LAYOUT_TARGETS if task.layouts else ()
    verdicts = [judge(samples, target) for target in targets]
    for contender in contenders:
        if isinstance(contender, Device) and contender.service is not None:
            bound_bytes = rss_bound_bytes(size_bytes, contender.pending_limit_bytes(), sealed=contender.sealed)
            verdicts.append(judge_memory(peak_rss_bytes(contender.service.pid), bound_bytes, contender.title))
    return verdicts


def compare(task: Task, plan: Plan, directory: Path) -> Outcome:
    """Every contender set up, and measured in turns."""
    with temporary_folder(directory) as (folder, programs):
        build = ROOT / "build" / "floor"
        setting = Setting(programs, folder, build, plan.size_bytes, SLAB_BYTES, PENDING_LIMIT_BYTES)
        contenders = [KINDS[name](setting) for name in task.contenders]
        machine.need_memory(memory_needed_bytes(contenders, plan.size_bytes))
        machine.need_disk(directory, 2 * len(contenders) * plan.size_bytes)
        minutes = (expected_s(contenders, task.workloads, plan, task.sources) + others_s(task, plan)) / 60
        say(f"This takes about {max(1, round(minutes))} minutes.")
        build_floor(build)
        absent = set_up(contenders)
        present = [contender for contender in contenders if contender.name not in absent]
        samples = list(measure(present, task.workloads, plan, say, wanted=task.sources))
        verdicts = judge_all(task, samples, present, plan.size_bytes)
        say("Ending what was set up")
    return Outcome(samples, verdicts, absent, {contender.name: contender.title for contender in present})


def others_s(task: Task, plan: Plan) -> float:
    """What the rows take that are measured by modules of their own."""
    return (programs_s(plan) if PROGRAMS in task.rows else 0.0) + (start_s(plan) if START in task.rows else 0.0)


def judge_row(row: Row, outcome: Outcome, plan: Plan, directory: Path) -> Verdict:
    """Measured here and now, where it is not from samples."""
    try:
        if row is PROGRAMS:
            return judge_programs(row, plan, directory)
        if row is START:
            with temporary_folder(directory) as (folder, programs):
                return judge_start(row, plan, folder, programs)
    except UserError as error:
        say(f"  FAILED: {error}")
        return row.missing(str(error))
    return row.judge(outcome.samples, outcome.absent)


def run(task: Task, plan: Plan, directory: Path, output: Path, command: str, *, into_readme: bool) -> None:
    """Measure, print the tables and write the files."""
    begun_s = time.monotonic()
    about = machine.describe(directory)
    outcome = compare(task, plan, directory) if task.sources else Outcome([], [], {}, {})
    wanted = [judge_row(row, outcome, plan, directory) for row in task.rows]
    warnings = [*report.warnings_of_amount(plan.rounds, plan.runtime_s), *report.warnings(outcome.samples)]
    settings = {
        "command": command,
        "rounds": plan.rounds,
        "runtime_s": plan.runtime_s,
        "ramp_s": plan.ramp_s,
        "size_bytes": plan.size_bytes,
        "slab_bytes": SLAB_BYTES,
        "pending_limit_bytes": PENDING_LIMIT_BYTES,
        "contenders": outcome.titles,
        "absent": outcome.absent,
        "took_s": round(time.monotonic() - begun_s, 1),
    }
    output.mkdir(parents=True, exist_ok=True)
    written = [output / "bench.json"]
    written[0].write_text(report.as_json(outcome.samples, [*wanted, *outcome.verdicts], about, settings))
    if outcome.samples:
        written.append(output / "bench.png")
        write_plot(written[-1], outcome.samples, task.workloads, outcome.titles)
        print(report.text(outcome.samples, task.workloads, outcome.titles, outcome.verdicts))
        print()
    if wanted:
        text = table.markdown(wanted, outcome.samples, about, settings, warnings)
        print(text, end="")
        written.append(output / "table.md")
        written[-1].write_text(text)
        if into_readme:
            written.append(ROOT / "README.md")
            written[-1].write_text(table.with_table(written[-1].read_text(), text))
    else:
        print(table.about_line(about, settings))
        print("".join(f"\nwarning: {warning}" for warning in warnings))
    say(f"\nWritten: {', '.join(map(str, written))}")
