"""Progress of what takes long: on a terminal, and nothing at all elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


@contextmanager
def progress_on(console: Console | None, *columns: str | ProgressColumn) -> Iterator[Progress]:
    """Rich's progress, which is gone at its end. console: stderr unless given; columns: rich's own unless given."""
    from rich.console import Console
    from rich.progress import Progress

    console = console or Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    if not console.is_terminal:
        yield progress  # never started: at its end the rich of Debian 12 prints an empty line even when it is disabled
        return
    with progress:
        yield progress


@contextmanager
def copying() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Begins a bar for each part of a copy: told what it is and of how many bytes, then how many more are done."""
    with progress_on(None) as progress:

        def begin(what: str, total_bytes: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=total_bytes)
            return lambda done_bytes: progress.advance(task, done_bytes)

        yield begin
