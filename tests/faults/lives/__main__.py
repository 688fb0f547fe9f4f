"""Runs seeds of the model of lives side by side; replays and shrinks one that fails.

python -m tests.faults.lives --seeds 300            seeds 0 to 299
python -m tests.faults.lives --seed 42 --verbose    one seed, step by step
python -m tests.faults.lives --replay FILE --shrink
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from infiniswap.device.limits import BACKUP_LAYOUTS
from tests.faults.lives import disk, programs
from tests.faults.lives.run import Result, run_schedule, shrink
from tests.faults.lives.schedule import Schedule, draw_schedule, from_json, nth_schedule
from tests.support.fault_proxy import FaultProxy

PROGRESS_EVERY_S = 10.0
NTH = {"control": "proxy control_nth_cut", "page": "proxy page_nth_cut", "state": "disk faults"}
NTH_MAX = 1000
LOG_LINES_SHOWN = 60
TOLD_AGAIN_MAX = 2  # failures that stand at the end of many seeds' output, where a report that is cut short shows them


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.lives", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, help="how many; without it as many as fit into --seconds")
    parser.add_argument("--seconds", type=float, help="begin no seed after so long")
    parser.add_argument("--jobs", type=int, default=4, help="seeds side by side")
    parser.add_argument("--steps", type=int, default=12, help="steps of a schedule")
    parser.add_argument("--backup-layout", choices=BACKUP_LAYOUTS, help="not as it is drawn")
    parser.add_argument("--nth", choices=NTH, help="fail the first, the second, … until there is none to fail")
    parser.add_argument("--replay", type=Path, help="a schedule that was kept as JSON")
    parser.add_argument("--repeat", type=int, default=1, help="run the one schedule so many times, until it fails")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest schedule that fails")
    parser.add_argument("--keep", type=Path, help="folder for schedules that fail, as JSON")
    parser.add_argument("--summary", type=Path, help="file for the summary as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run; the exit code is 1 when a seed failed."""
    options = parse(arguments)
    disk.run_preloaded("tests.faults.lives", arguments)
    programs.preload()
    if options.seed is not None or options.replay is not None:
        return run_one(options)
    if options.nth is not None:
        return run_nth(options)
    return run_many(options)


def _as_asked(schedule: Schedule, options: argparse.Namespace) -> Schedule:
    """With the layout of the command line."""
    return schedule if options.backup_layout is None else replace(schedule, backup_layout=options.backup_layout)


def run_one(options: argparse.Namespace) -> int:
    """One schedule, again and again until it fails."""
    if options.replay is not None:
        schedule = from_json(json.loads(options.replay.read_text()))
    else:
        schedule = _as_asked(draw_schedule(options.seed, steps=options.steps), options)
    with FaultProxy() as proxy:
        result = run_schedule(schedule, proxy)
        for _ in range(options.repeat - 1):
            if result.failure:
                break
            result = run_schedule(schedule, proxy)
        tell(result)
        if result.failure and options.shrink:
            result = shrink(result, proxy, tell=lambda text: print(text, flush=True))
            print("\nThe smallest schedule found:")
            tell(result)
    keep(result, options.keep)
    return int(bool(result.failure))


def run_nth(options: argparse.Namespace) -> int:
    """Fail the Nth of its kind, for every N from the first on until there are not so many, or --seconds are over."""
    end_s = time.monotonic() + options.seconds if options.seconds else None
    with FaultProxy() as proxy:
        for number in range(max(1, options.first), NTH_MAX):
            if end_s is not None and time.monotonic() > end_s:
                print(f"{options.nth}: 1 to {number - 1} failed in turn, then time was over")
                return 0
            result = run_schedule(_as_asked(nth_schedule(options.nth, number), options), proxy)
            if result.failure:
                tell(result)
                keep(result, options.keep)
                return 1
            if not result.happened[NTH[options.nth]]:
                print(f"{options.nth}: all of 1 to {number - 1} failed in turn")
                return 0
    print(f"{options.nth}: more than {NTH_MAX}")
    return 1


def tell(result: Result) -> None:
    """A result in plain words."""
    print(f"seed {result.schedule.seed}: {result.schedule.describe()}")
    if not result.failure:
        print(
            f"ok: {result.answers} requests, {result.checked_pages} pages compared, {result.took_s:.1f} s", flush=True
        )
        return
    where = f"in step {result.step}" if result.step <= len(result.schedule.steps) else "at the end"
    lines = result.failure.splitlines()
    print(f"FAILED {where}: " + "\n".join([lines[0], *lines[1:][-LOG_LINES_SHOWN:]]))
    if result.log:
        print("The device's log:", *result.log.splitlines()[-LOG_LINES_SHOWN:], sep="\n    ", flush=True)


def keep(result: Result, folder: Path | None) -> None:
    """Write a failing schedule down for --replay."""
    if result.failure and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{result.schedule.seed}.json").write_text(json.dumps(result.schedule.as_json(), indent=1))


def _work(jobs: multiprocessing.Queue[Schedule | None], results: multiprocessing.Queue[Result]) -> None:
    """A process that runs schedules one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with FaultProxy() as proxy:
        while (schedule := jobs.get()) is not None:
            results.put(run_schedule(schedule, proxy))


def run_side_by_side(options: argparse.Namespace) -> Iterator[Result]:
    """Results as they come, of as many seeds as asked for."""
    context = multiprocessing.get_context("fork")
    jobs, results = context.SimpleQueue(), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(jobs, results)) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    end_s = time.monotonic() + options.seconds if options.seconds else None
    count = options.seeds if options.seeds is not None else sys.maxsize
    begun = done = 0
    try:
        while done < begun or begun < count:
            over = end_s is not None and time.monotonic() > end_s
            while begun < count and begun - done < options.jobs and not over:
                jobs.put(_as_asked(draw_schedule(options.first + begun, steps=options.steps), options))
                begun += 1
            if begun == done:
                break
            yield results.get()
            done += 1
    finally:
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join(5)
            worker.kill()


def run_many(options: argparse.Namespace) -> int:
    """Seeds side by side, with progress and a summary."""
    begun_s = told_s = time.monotonic()
    happened: Counter[str] = Counter()
    failed: list[int] = []
    first: list[Result] = []
    done = answers = checked = 0
    for result in run_side_by_side(options):
        done += 1
        answers += result.answers
        checked += result.checked_pages
        happened.update(result.happened)
        if result.failure:
            failed.append(result.schedule.seed)
            first = [*first, result][:TOLD_AGAIN_MAX]
            tell(result)
            keep(result, options.keep)
        if time.monotonic() - told_s > PROGRESS_EVERY_S:
            told_s = time.monotonic()
            print(f"{done} seeds, {len(failed)} failed, {answers} requests, {told_s - begun_s:.0f} s", flush=True)
    took_s = time.monotonic() - begun_s
    print(f"{done} seeds in {took_s:.0f} s, {answers} requests, {checked} pages compared; failed: {failed or 'none'}")
    for what, times in sorted(happened.items()):
        print(f"  {times:6} {what}")
    if options.summary is not None:
        summary = {"seeds": done, "failed": failed, "answers": answers, "checked": checked, "happened": happened}
        options.summary.write_text(json.dumps(summary))
    for result in first:
        tell(result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
