"""The ring of samples forgets the oldest, and gives each sample to who has not seen it."""

from __future__ import annotations

from infiniswap.shared.history import History


def numbers(history: History, after: int) -> list[int]:
    """Which samples come after that one."""
    return [int(sample["seq"]) for sample in history.after(after)]


def test_only_what_is_new() -> None:
    """Samples are numbered from 1 on, and asked for by the last number that was seen."""
    history = History(10)
    assert (history.last, history.after(0)) == (0, [])
    for value in "abc":
        history.add({"value": value})
    assert history.after(1) == [{"seq": 2, "value": "b"}, {"seq": 3, "value": "c"}]
    assert numbers(history, 3) == []


def test_it_does_not_grow() -> None:
    """At the limit the oldest goes; who has seen less than is left gets all of that."""
    history = History(3)
    for _ in range(1000):
        history.add({})
    assert (history.last, numbers(history, 0), numbers(history, 999)) == (1000, [998, 999, 1000], [1000])


def test_a_number_from_another_life() -> None:
    """A number beyond the last one, or below zero, is no error."""
    history = History(3)
    history.add({})
    assert (numbers(history, 50), numbers(history, -50)) == ([], [1])
