"""Lines of the log: one format, the journal's priorities, JSON, a bound for what comes again and again, levels."""

from __future__ import annotations

import json
import logging
import os
import re
import sys

import pytest

from infiniswap.shared import logs
from infiniswap.shared.errors import UserError
from infiniswap.shared.log_limit import BURST, INTERVAL_S, KINDS_MAX, LogLimit
from infiniswap.shared.logs import JsonFormatter, RateFilter, TextFormatter, detail, is_journal, levels, set_level
from tests.support.clock import FakeClock


def record(message: str, *arguments: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    """As a logger of the device's peers makes it."""
    made = logging.LogRecord("infiniswap.device.peers", level, "f", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_line_of_text() -> None:
    """Time with its zone, level, module, message, and what it is about; blanks and quotes are quoted."""
    made = record("peer %s is lost", "a:1", **detail(peer="a:1", slabs=3, reason='no "answer"'))
    line = TextFormatter(journal=False).format(made)
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
    assert rest == r'WARNING device.peers: peer a:1 is lost peer=a:1 slabs=3 reason="no \"answer\""'


def test_nobody_forges_a_line() -> None:
    """What somebody else wrote cannot begin a line or carry control characters."""
    for formatter in (TextFormatter(journal=False), TextFormatter(journal=True), JsonFormatter(journal=False)):
        line = formatter.format(record("name %s", "x\n<0>ERROR device: forged\x1b[31m", **detail(name="y\n<0>z")))
        assert "\n" not in line
        assert "\x1b" not in line


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_priorities_in_the_journal(level: int, priority: int) -> None:
    """In front of each line, a traceback's too; the time is the journal's own."""
    assert (
        TextFormatter(journal=True)
        .format(record("m", level=level))
        .startswith(f"<{priority}>{logging.getLevelName(level)} ")
    )
    assert JsonFormatter(journal=True).format(record("m", level=level)).startswith(f"<{priority}>{{")
    try:
        raise OSError("no")
    except OSError:
        made = record("m", level=level, exc_info=sys.exc_info())
    lines = TextFormatter(journal=True).format(made).splitlines()
    assert len(lines) > 3
    assert all(line.startswith(f"<{priority}>") for line in lines)


def test_json() -> None:
    """An object a line: numbers stay numbers, and nothing that a line is about replaces what each line has."""
    line = JsonFormatter(journal=False).format(record("m %d", 5, **detail(slabs=3, peer=("a", 1), level="forged")))
    told = json.loads(line)
    assert (told["level"], told["module"], told["message"]) == ("warning", "device.peers", "m 5")
    assert (told["slabs"], told["peer"]) == (3, "('a', 1)")


def test_the_journal_is_known_by_its_socket() -> None:
    """By device and inode, as systemd says: another stderr of the same service is no journal."""
    status = os.fstat(2)
    assert is_journal(2, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not is_journal(2, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
    assert not is_journal(2, {})
    assert not is_journal(-1, {"JOURNAL_STREAM": "1:2"})


def test_more_like_this_is_suppressed() -> None:
    """A few lines of a kind, then none until the interval is over; the next one tells how many there were."""
    clock = FakeClock()
    limit = RateFilter(clock)
    said = [limit.filter(record("peer %s: %s", "a:1", number)) for number in range(1000)]
    assert said == [True] * BURST + [False] * (1000 - BURST)
    assert limit.filter(record("peer %s: %s", "b:1", 0)), "another peer is another kind"
    assert limit.filter(record("slab %d", 1)), "another message, too"
    assert limit.filter(record("peer %s: %s", "a:1", 0, level=logging.INFO)), "no warning"
    assert limit.filter(record("peer %s: %s", "a:1", 0, **{logs.LIMITED: True})), "who logs it counts by himself"
    clock.now_s += INTERVAL_S
    last = record("peer %s: %s", "a:1", "gone")
    assert limit.filter(last)
    assert last.getMessage() == f"peer a:1: gone ({1000 - BURST} more like this suppressed)"


def test_kinds_are_bounded() -> None:
    """Of more kinds than that, the one heard of longest ago is forgotten."""
    limit = LogLimit(FakeClock())
    for kind in range(10 * KINDS_MAX):
        for _ in range(BURST):
            limit.admit(kind)
    assert limit.admit(10 * KINDS_MAX - 1) is None
    assert limit.admit(0) == 0
    assert len(limit._kinds) == KINDS_MAX


def test_levels_at_run_time() -> None:
    """Of all and of a module, which keeps its own until that is taken away; names as the log shows them."""
    logging.getLogger("infiniswap.device.peers")  # as its module does
    set_level("error")
    set_level("device.peers=DEBUG")
    assert levels()[""] == "error"
    assert levels()["device.peers"] == "debug"
    assert logging.getLogger("infiniswap.device.peers").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("infiniswap.device.other").isEnabledFor(logging.WARNING)
    set_level("info")
    assert levels()["device.peers"] == "debug"
    set_level("infiniswap.device.peers=default")
    assert "device.peers" not in levels()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loud", "log level 'loud' must be one of debug, info, warning, error"),
        ("default", "must be one of"),
        ("device.peers=", "must be one of debug, info, warning, error, default"),
        ("device.pears=debug", "no module 'device.pears' logs here; did you mean 'device.peers'?"),
        ("=debug", "no module '' logs here; there are "),
    ],
)
def test_wrong_levels(text: str, words: str) -> None:
    """One line that says what would be right."""
    logging.getLogger("infiniswap.device.peers")
    with pytest.raises(UserError, match=re.escape(words)):
        set_level(text)
