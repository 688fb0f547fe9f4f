"""What the demo prints: steps with progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from infiniswap.cli.progress import progress_on
from infiniswap.shared.sizes import format_size


class _Speed(ProgressColumn):
    """Throughput of a step, in the units of everything else here."""

    def render(self, task: Task) -> Text:
        """Nothing before there is something to tell."""
        speed = task.finished_speed or task.speed
        return Text(f"{format_size(int(speed))}/s" if speed else "")


class Step:
    """A step under way."""

    def __init__(self, progress: Progress, title: str, total_bytes: int | None) -> None:
        self.title = title
        self.result = ""
        self._progress = progress
        self._task = progress.add_task(title, total=total_bytes, told="")

    def advance(self, count_bytes: int) -> None:
        """So many bytes more are done."""
        self._progress.advance(self._task, count_bytes)

    def tell(self, text: str) -> None:
        """A few words that change while the step runs."""
        self._progress.update(self._task, told=text)

    def end(self, result: str) -> None:
        """What came out; printed when the step ends."""
        self.result = result


class Screen:
    """Where the demo prints."""

    def __init__(self, console: Console | None = None) -> None:
        """console: rich's own choice by default, plain text where stdout is no terminal."""
        self.console = console or Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print text as it is; above the progress when a step runs."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, total_bytes: int | None) -> Iterator[Step]:
        """Show progress (of total_bytes, or without an end) on a terminal; the result is a line of its own."""
        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        if total_bytes is not None:
            columns += [BarColumn(), DownloadColumn(binary_units=True), _Speed()]
        columns += [TimeElapsedColumn(), TextColumn("{task.fields[told]}")]
        with progress_on(self.console, *columns) as progress:
            step = Step(progress, title, total_bytes)
            yield step
        self.say(f"{title}: {step.result}")
