"""A choice of slabs comes through a query as it was meant, and nonsense in a query is told in a sentence."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from infiniswap.shared.slab_choice import SlabChoice


@pytest.mark.parametrize(
    "choice",
    [SlabChoice(), SlabChoice("mapped", "[::1]:7401", "activity", 20), SlabChoice(sort="pageins"), SlabChoice(top=1)],
)
def test_through_a_query(choice: SlabChoice) -> None:
    """What the command wrote is what the device reads."""
    assert SlabChoice.parse(dict(parse_qsl(choice.as_query().removeprefix("?")))) == choice


def test_all_in_order_needs_no_query() -> None:
    """So that it looks as it always did."""
    assert SlabChoice().as_query() == ""


@pytest.mark.parametrize(
    "query",
    [
        {"state": "gone"},
        {"sort": "colour"},
        {"top": "0"},
        {"top": "-1"},
        {"top": "²"},
        {"top": "9" * 400},
        {"peer": "x" * 999},
    ],
)
def test_nonsense(query: dict[str, str]) -> None:
    """One sentence that names the key."""
    with pytest.raises(ValueError, match=next(iter(query))):
        SlabChoice.parse(query)
