"""One schedule from beginning to end, and the smallest part of it that still fails."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.lives.actions import perform
from tests.faults.lives.schedule import Schedule
from tests.faults.lives.world import World
from tests.support.fault_proxy import FaultProxy
from tests.support.pace import paced

RUN_TIMEOUT_S = paced(240.0)
SHRINK_TRIES_MAX = 200
_MEMORY = Path("/dev/shm")


class TooLongError(AssertionError):
    """A run does not end."""


@dataclass(slots=True)
class Result:
    """How a run went."""

    schedule: Schedule
    log: str = ""  # of all lives of the device, where it failed
    failure: str = ""  # empty: every promise was kept
    step: int = 0  # where it failed, from 1; behind the last: in the finale
    happened: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    checked_pages: int = 0
    took_s: float = 0.0


def run_schedule(schedule: Schedule, proxy: FaultProxy) -> Result:
    """Run it in an empty folder, which is removed again."""
    result = Result(schedule)
    begun_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="lives-", dir=_folder()))
    try:
        with _alarm(RUN_TIMEOUT_S):
            _run(schedule, folder, proxy, result)
    except AssertionError as error:
        result.failure = str(error) or repr(error)
    except Exception as error:  # noqa: BLE001 (a run that breaks is a failure like any other, and shall be told)
        result.failure = f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result.took_s = time.monotonic() - begun_s
    return result


def _run(schedule: Schedule, folder: Path, proxy: FaultProxy, result: Result) -> None:
    world = World(schedule, folder, proxy)
    result.happened = world.happened
    try:
        with world:
            for result.step, step in enumerate(schedule.steps, 1):
                perform(world, step)
            result.step = len(schedule.steps) + 1
            world.finale()
    except Exception:
        result.log = world.device_logs()
        raise
    finally:
        result.checked_pages = world.oracle.checked
        result.answers = world.answers


def _folder() -> str | None:
    """In memory where that carries what a backup needs: marks and O_DIRECT; else where temporary files go."""
    try:
        with tempfile.NamedTemporaryFile(dir=_MEMORY) as file:
            os.setxattr(file.fileno(), "user.infiniswap.probe", b"1")
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return None
    return str(_MEMORY)


@contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    def over(*_: object) -> None:
        raise TooLongError(f"the run did not end within {timeout_s:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def shrink(
    result: Result, proxy: FaultProxy, *, tries: int = 2, tell: Callable[[str], None] = lambda _: None
) -> Result:
    """The smallest schedule found that fails: steps are left out by halves, then one at a time.

    Processes take turns as the machine pleases, so each candidate is tried a few times before it counts as good.
    """
    best = result
    left = SHRINK_TRIES_MAX
    steps = list(result.schedule.steps[: result.step])
    size = max(1, len(steps) // 2)
    while left > 0:
        shorter = False
        for first in reversed(range(0, len(steps), size)):
            candidate = steps[:first] + steps[first + size :]
            failed = None
            for _ in range(tries):
                left -= 1
                found = run_schedule(replace(result.schedule, steps=tuple(candidate)), proxy)
                if found.failure:
                    failed = found
                    break
            if failed is not None:
                best, steps, shorter = failed, candidate[: failed.step], True
                tell(f"still fails with {len(steps)} steps")
        if size == 1 and not shorter:
            break
        size = max(1, size // 2)
    return best
