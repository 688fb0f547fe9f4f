"""Complaints: once in a while, and what was held back is counted."""

from __future__ import annotations

import logging

import pytest

from infiniswap.shared.complaints import COMPLAINT_INTERVAL_S, Complaints
from tests.support.clock import FakeClock


def test_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """The first of each kind at once, the next after the interval with the number of those between."""
    clock = FakeClock()
    complaints = Complaints(logging.getLogger("c"), clock)
    for _ in range(1000):
        complaints.say("a", "a is short")
    complaints.say("b", "b is short", logging.WARNING)
    clock.now_s += COMPLAINT_INTERVAL_S
    complaints.say("a", "a is short")
    complaints.say("b", "b is short")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "a is short"),
        ("WARNING", "b is short"),
        ("ERROR", "a is short (999 more like this suppressed)"),
        ("ERROR", "b is short"),
    ]
