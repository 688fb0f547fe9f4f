"""Status fits its terminal, mutes silence what they name and nothing else, and donors are not believed blindly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from infiniswap.cli.mutes import Mute, check_code, read_mutes, split, write_mutes
from infiniswap.cli.status import as_json, as_text
from infiniswap.cli.status_facts import Facts, parse_donor
from infiniswap.policy.health import CODES, DonorFacts, Finding, Severity
from infiniswap.shared.errors import UserError

DOWN = Finding("PEER_DOWN", Severity.WARNING, "down: refused", "vol", "a:1")
LOST = Finding("LOST_PAGES", Severity.ERROR, "3 pages", "vol")


def test_mutes_silence_what_they_name() -> None:
    """A code for all, or about one device or peer; the rest comes with the worst first."""
    other = Finding("PEER_DOWN", Severity.WARNING, "down", "vol", "b:1")
    loud, silent = split([DOWN, other, LOST], [Mute("PEER_DOWN", "a:1")])
    assert (loud, [finding for finding, _ in silent]) == ([LOST, other], [DOWN])
    loud, silent = split([DOWN, other, LOST], [Mute("PEER_DOWN")])
    assert (loud, len(silent)) == ([LOST], 2)


def test_mutes_end(tmp_path: Path) -> None:
    """What was written is read again until its time has come."""
    file = tmp_path / "new" / "mutes"
    mutes = [Mute("PEER_DOWN", "a:1", 100.0), Mute("NO_ROOM")]
    write_mutes(file, mutes)
    assert read_mutes(file, 99.0) == mutes
    assert read_mutes(file, 100.0) == mutes[1:]
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[1, null, {}]", '{"code": 1}', '[{"code": "NO", "only": 3}]']
)
def test_a_damaged_file_of_mutes_silences_nothing(tmp_path: Path, content: str) -> None:
    """Whatever is in it: an alarm too many is better than one that is not heard."""
    (tmp_path / "mutes").write_text(content)
    assert read_mutes(tmp_path / "mutes", 0.0) == []


def test_codes_are_checked() -> None:
    """In any case of letters; one that does not exist is told with the nearest one."""
    assert check_code("peer_down") == "PEER_DOWN"
    with pytest.raises(UserError, match="did you mean NO_ROOM"):
        check_code("NOROOM")


def facts(seed: int) -> Facts:
    """Devices, donors and findings of any length."""
    rng = random.Random(seed)
    names = [f"{'v' * rng.randrange(1, 50)}{i}" for i in range(rng.randrange(1, 8))]
    row = {
        "state": "serving", "size_bytes": 1 << 40, "slabs": 16384, "mapped_slabs": 16000, "peers": 32, "peers_up": 31,
        "pending_bytes": 12345 << 12, "backup_state": "degraded", "nbd": "/dev/nbd15", "swap_used_bytes": 1 << 39,
    }  # fmt: skip
    donors = [DonorFacts(f"{'h' * rng.randrange(1, 60)}:7401", rng.random() < 0.5, "why") for _ in range(5)]
    found = [
        Finding(code, Severity.WARNING, "word " * rng.randrange(1, 40), rng.choice(names), "p" * 50) for code in CODES
    ]
    return Facts([{"name": name, **row} for name in names], donors[0], donors, {donors[0].address: names}, found)


@pytest.mark.parametrize("seed", range(20))
def test_it_fits(seed: int) -> None:
    """No line is wider than 80 where that is the width; where there is none, a finding is one line."""
    text, severity = as_text(facts(seed), [Mute("NO_ROOM", None, 2e9)], 80, cluster=True)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert severity is Severity.WARNING
    text, _ = as_text(facts(seed), [], 0, cluster=False)
    assert all(sum(code in line for line in text.splitlines()) == 1 for code in CODES)


def test_severity_and_mutes_in_json() -> None:
    """What is muted is there, is said to be muted, and does not count."""
    text, severity = as_json(Facts(findings=[LOST, DOWN]), [Mute("LOST_PAGES", "vol", 5.0)])
    content = json.loads(text)
    assert (severity, content["severity"]) == (Severity.WARNING, "warning")
    told = {finding["code"]: (finding["muted"], finding["severity"]) for finding in content["findings"]}
    assert told == {"PEER_DOWN": (False, "warning"), "LOST_PAGES": (True, "error")}


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"memory": 3, "lending": True}, {"memory": {}, "lending": 1}, {"lending": True}],
)
def test_an_answer_that_is_no_daemons(answer: object) -> None:
    """It counts as none."""
    assert not parse_donor("a:1", answer).answers


def test_numbers_of_a_donor() -> None:
    """What makes no sense is not known."""
    answer: dict[str, Any] = {
        "lending": False,
        "memory": {"total_bytes": 5, "free_bytes": -1, "used_bytes": True},
        "host": {
            "available_bytes": "9",
            "headroom_bytes": 1 << 80,
            "missing_bytes": 7,
            "pressure_percent": float("nan"),
        },
    }
    donor = parse_donor("a:1", answer)
    assert (donor.lending, donor.total_bytes, donor.free_bytes, donor.used_bytes) == (False, 5, None, None)
    assert (donor.available_bytes, donor.headroom_bytes, donor.missing_bytes) == (None, None, 7)
    assert donor.pressure_percent is None
