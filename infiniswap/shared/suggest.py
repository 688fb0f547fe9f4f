"""What a user may have meant by a word that nothing is called."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LIKENESS_MIN = 0.6  # of 1: difflib's own measure for a slip of the finger
SHOWN_MAX = 3


def closest(word: str, known: Iterable[str]) -> list[str]:
    """Those of known that are much like word, the closest first; at most SHOWN_MAX."""
    by_lower = {name.lower(): name for name in known}
    return [by_lower[match] for match in get_close_matches(word.lower(), by_lower, SHOWN_MAX, LIKENESS_MIN)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: `; did you mean 'a' or 'b'?`. Empty where nothing is like word."""
    found = [f"'{name}'" for name in closest(word, known)]
    return f"; did you mean {' or '.join(found)}?" if found else ""
