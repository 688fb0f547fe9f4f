"""Sizes: what people write is read as powers of 1024, anything else is refused, and what we print can be read again."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import SIZE_BYTES_MAX, exact_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("512MiB", 512 << 20),
        ("512Mi", 512 << 20),
        ("1Gi", 1 << 30),
        ("1GiB", 1 << 30),
        ("1.5G", 3 << 29),
        (" 2 TiB ", 2 << 40),
        ("7B", 7),
        ("0", 0),
        (4096, 4096),
    ],
)
def test_parse(text: str | int, size_bytes: int) -> None:
    """All forms that are documented."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e3", "1 2", "M", "1.M", ".5M", "0.3", "1PiB", "١٢", "1\n2", "4096 b b"]
)
def test_refuse(text: str) -> None:
    """Anything else, in one line."""
    with pytest.raises(UserError, match="size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1KB", "10 mb", "1Gb", "2TB"])
def test_decimal_units_are_refused_with_a_hint(text: str) -> None:
    """KB could mean two things."""
    with pytest.raises(UserError, match=r"write [KMGT]iB instead"):
        parse_size(text)


def test_too_large() -> None:
    """Numbers have a limit."""
    assert parse_size(SIZE_BYTES_MAX) == SIZE_BYTES_MAX
    with pytest.raises(UserError, match="too large"):
        parse_size(SIZE_BYTES_MAX + 1)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 1023), st.sampled_from([1, 1 << 10, 1 << 20, 1 << 30, 1 << 40]))
def test_whole_units_survive_printing(number: int, unit: int) -> None:
    """What is printed exactly can be typed again."""
    assert parse_size(format_size(number * unit)) == number * unit


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 1 << 50))
def test_printing_is_close(size_bytes: int) -> None:
    """Other sizes are printed to one digit."""
    shown = format_size(size_bytes)
    digits = shown.rstrip("KMGTiB")
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(shown[len(digits)], 1)
    assert abs(Fraction(digits) * unit - size_bytes) <= Fraction(unit, 20)


@given(st.integers(0, SIZE_BYTES_MAX))
def test_what_is_written_down_is_exact(size_bytes: int) -> None:
    """A size that is remembered or shown as an option's value is read as the same number."""
    assert parse_size(exact_size(size_bytes)) == size_bytes
