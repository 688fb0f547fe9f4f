"""What the terminal that reads us can do: its width, colours, drawing over what stands there."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

WIDTH_MIN = 40  # below that nothing is fitted any more


def is_smart(stream: TextIO | None = None) -> bool:
    """Whether stream (stdout by default) is a terminal that takes escape sequences (TERM is not dumb)."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def colours(stream: TextIO | None = None) -> bool:
    """Whether to colour: on a smart terminal, unless NO_COLOR says otherwise (no-color.org: set and not empty)."""
    return is_smart(stream) and not os.environ.get("NO_COLOR")


def width() -> int | None:
    """Columns of the terminal that stdout is (COLUMNS first), at least WIDTH_MIN; None: a file or a pipe, no width."""
    return max(shutil.get_terminal_size().columns, WIDTH_MIN) if sys.stdout.isatty() else None


def wrapped(text: str, indent: int = 0) -> str:
    """The text broken between words to the terminal's width, further lines indented; unchanged where there is none."""
    columns = width()
    if columns is None or len(text) <= columns:
        return text
    blanks = " " * indent
    return textwrap.fill(
        text, columns, subsequent_indent=blanks, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
