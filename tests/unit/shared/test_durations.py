"""Durations: what people write is read, anything else is refused in one line, and what we print can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.shared.durations import format_duration, parse_duration
from infiniswap.shared.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("45", 45),
        (" 0.5s ", 0.5),
        ("0", 0),
        ("1d1h1m1.5s", 90_061.5),
    ],
)
def test_parse(text: str, seconds: float) -> None:
    """All forms that are documented."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "-1s", "1e3", "10 m", "1m1h", "1.5m", "soon", "inf", "nan", "١"])
def test_refuse(text: str) -> None:
    """Anything else, with an example of what is right."""
    with pytest.raises(UserError, match="is no duration; write for example 90s"):
        parse_duration(text)


@given(st.floats(0, 1e8))
def test_what_is_printed_is_read_again(seconds: float) -> None:
    """Nearly: two units are enough for people."""
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= max(0.5, seconds / 24)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (3.25, "3.2s"), (9.96, "10s"), (59.6, "1m"), (600, "10m"), (93_784, "1d2h")]
)
def test_format(seconds: float, text: str) -> None:
    """Short, without what nobody wants to know."""
    assert format_duration(seconds) == text
