"""Options that every benchmark has: where its backup lies, and where it writes what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

ROOT = Path(__file__).resolve().parents[2]

Command = TypeVar("Command", bound=Callable[..., Any])


def directory_option(help_text: str) -> Callable[[Command], Command]:
    """--directory: a folder that is there and can be written to."""
    return click.option(
        "--directory",
        type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
        default=Path("/var/tmp"),
        show_default=True,
        help=help_text,
    )


def output_option(files: str) -> Callable[[Command], Command]:
    """--output: the folder for files, which are named to people."""
    return click.option(
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        default=ROOT / "bench-results",
        help=f"Folder for {files}.  [default: bench-results]",
    )
