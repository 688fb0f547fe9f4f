"""Messages of a lease's stream: what one end sends the other reads, and nonsense is one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.shared.stream_messages import (
    MESSAGE_BYTES_MAX,
    MESSAGE_SLABS_MAX,
    ActivityAnswer,
    Ask,
    Echo,
    Evict,
    FromDaemon,
    FromDevice,
    Noticed,
    Policy,
    StreamBeat,
    StreamError,
    Taken,
    encode,
    from_daemon,
    from_device,
)

FROM_DAEMON: list[FromDaemon] = [
    StreamBeat(7, "i", 29.5, 1 << 40, rdma=False, heard=6),
    Evict(3, (5, 1), 2000, now=True),
    Evict(4, (), 0),
    Ask(9, (1, 2, 3), 250),
    Taken((8,)),
    Policy(lending=False, draining=True),
]
FROM_DEVICE: list[FromDevice] = [
    Echo(7),
    Noticed(3, (5,), (1,)),
    ActivityAnswer(9, {1: 0.0, 2: 20.5}),
]


@pytest.mark.parametrize("message", FROM_DAEMON)
def test_the_daemons_messages_come_through(message: FromDaemon) -> None:
    """Every field, and never one of the device's where another was sent."""
    assert from_daemon(encode(message)) == message


@pytest.mark.parametrize("message", FROM_DEVICE)
def test_the_devices_messages_come_through(message: FromDevice) -> None:
    """Every field."""
    assert from_device(encode(message)) == message


def test_types_of_tomorrow_are_passed_over() -> None:
    """A newer program at the other end is no reason to complain."""
    assert from_daemon('{"type": "weather"}') is None
    assert from_device('{"type": "evict", "notice": 1}') is None


def test_what_is_left_out() -> None:
    """Fields with a value of their own for that."""
    assert from_daemon('{"type": "evict", "notice": 1, "slabs": [2, 2], "deadline_ms": 5}') == Evict(1, (2,), 5)
    assert from_daemon('{"type": "policy"}') == Policy(lending=True)


def changed(message: FromDaemon | FromDevice, **fields: Any) -> str:
    """The message with other fields, as text."""
    return json.dumps({**message.as_json(), **fields})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"type": 5}',
        " " * (MESSAGE_BYTES_MAX + 1),
        *(changed(FROM_DAEMON[1], notice=notice) for notice in (None, -1, 1.5, "1", True, 1 << 70)),
        *(changed(FROM_DAEMON[1], slabs=slabs) for slabs in (None, 5, [-1], [1.0], [True], [1 << 40], ["1"])),
        changed(FROM_DAEMON[1], slabs=list(range(MESSAGE_SLABS_MAX + 1))),
        changed(FROM_DAEMON[1], deadline_ms=1 << 40),
        changed(FROM_DAEMON[0], incarnation="a\nb"),
        *(changed(FROM_DAEMON[0], expires_in_s=seconds) for seconds in (None, -1, True, float("nan"), float("inf"))),
    ],
)
def test_nonsense_for_the_device(text: str) -> None:
    """One printable sentence."""
    with pytest.raises(StreamError) as error:
        from_daemon(text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        changed(FROM_DEVICE[0], number=-1),
        changed(FROM_DEVICE[1], leaving="all"),
        changed(FROM_DEVICE[1], unknown=None),
        *(changed(FROM_DEVICE[2], activity=told) for told in (None, "all")),
        *(changed(FROM_DEVICE[2], activity={name: 1}) for name in ("-1", "", "9" * 11, "²", "1.0")),
        *(changed(FROM_DEVICE[2], activity={"1": rate}) for rate in (None, "1", -0.5, float("nan"), 10**400, True)),
        changed(FROM_DEVICE[2], activity={str(slab): 1 for slab in range(MESSAGE_SLABS_MAX + 1)}),
    ],
)
def test_nonsense_for_the_daemon(text: str) -> None:
    """One printable sentence."""
    with pytest.raises(StreamError) as error:
        from_device(text)
    assert str(error.value).isprintable()


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats()
NAMES = st.text("01-x", max_size=4)
JSON = NUMBERS | NAMES | st.lists(NUMBERS, max_size=4) | st.dictionaries(NAMES, NUMBERS, max_size=4)
FIELDS = ("number", "incarnation", "notice", "slabs", "deadline_ms", "ask", "activity", "leaving", "unknown", "now")


@given(
    st.sampled_from(["beat", "evict", "ask", "taken", "policy", "noticed", "activity"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON),
)
def test_whatever_comes(kind: str, fields: dict[str, Any]) -> None:
    """A message, nothing, or one sentence: and what was read can be sent again."""
    text = json.dumps({"type": kind, **fields})
    for read in (from_daemon, from_device):
        try:
            message = read(text)
        except StreamError:
            continue
        if message is not None:
            assert read(encode(message)) == message


def test_the_longest_message_fits() -> None:
    """The bound on slabs keeps below the bound on characters."""
    rates = {(1 << 32) - 1 - number: 12345.678901234567 for number in range(MESSAGE_SLABS_MAX)}
    assert len(encode(ActivityAnswer(1 << 62, rates))) <= MESSAGE_BYTES_MAX
    slabs = tuple(rates)
    assert len(encode(Noticed(1 << 62, slabs, slabs))) <= MESSAGE_BYTES_MAX
