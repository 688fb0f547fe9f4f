"""Each health code is told when it is so and not when it is not, with what is worst first, and documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infiniswap.policy.health import CODES, DonorFacts, Finding, Severity, of_device, of_donor, of_missing_device, worst
from tests.support.snapshots import peer, snapshot

GIB = 1 << 30
UP = (peer("a:1", slabs=3), peer("b:1"))
WARNING, ERROR = Severity.WARNING, Severity.ERROR


def codes(findings: list[Finding]) -> dict[str, Severity]:
    """By code the severity; each code once."""
    found = {finding.code: finding.severity for finding in findings}
    assert len(found) == len(findings)
    return found


def test_nothing_is_the_matter() -> None:
    """A device that serves with peers and a backup that keeps up is OK."""
    assert of_device(snapshot(peers=UP)) == []
    assert worst([]) is Severity.OK


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peers": ()}, {"NO_PEERS": WARNING}),
        ({"peers": (*UP, peer("c:1", state="down", last_error="refused"))}, {"PEER_DOWN": WARNING}),
        ({"peers": (peer("c:1", state="held"),)}, {"PEER_DOWN": ERROR}),  # the only one
        ({"peers": (*UP, peer("c:1", state="slow"))}, {"PEER_SLOW": WARNING}),
        ({"peers": (*UP, peer("c:1", lending="draining"))}, {"DONOR_CORDONED": WARNING}),
        ({"peers": (peer("c:1", free_bytes=1 << 20),)}, {"NO_ROOM": WARNING}),
        ({"peers": UP, "pending_bytes": 60 << 20}, {"BACKUP_LAGGING": WARNING}),
        ({"peers": UP, "pending_bytes": 40 << 20}, {}),
        ({"peers": UP, "backup_state": "degraded", "backup_problems": ["EIO"]}, {"BACKUP_FAILING": ERROR}),
        ({"peers": UP, "counters": {"only_remote_pages": 5}}, {"UNPROTECTED_PAGES": WARNING}),
        ({"peers": UP, "counters": {"doubtful_pages": 1, "only_remote_pages": 5}}, {"UNPROTECTED_PAGES": ERROR}),
        ({"peers": UP, "counters": {"unreadable_pages": 1}}, {"LOST_PAGES": ERROR}),
        ({"peers": UP, "counters": {"broken_invariants": 1}}, {"ENGINE_BROKEN": ERROR}),
        ({"peers": UP, "failures": {"checksum_mismatches": 2}}, {"PAGES_CHANGED": WARNING}),
        ({"peers": UP, "nbd_dead": 1, "nbd_connections": 4}, {"CONNECTIONS_DEAD": WARNING}),
        ({"peers": UP, "nbd_dead": 4, "nbd_connections": 4}, {"CONNECTIONS_DEAD": ERROR}),
    ],
)
def test_of_a_device(changes: dict[str, Any], expected: dict[str, Severity]) -> None:
    """Exactly this is told of it."""
    assert codes(of_device(snapshot(**changes))) == expected


def test_shards_that_do_not_serve() -> None:
    """Each is told by its own name, dead or silent; those that serve or stop are well."""
    whole = snapshot(peers=UP)
    states = ("serving", "stopping", "dead", "silent")
    rows = [{"name": f"vol~{n}", "state": state, "why": "killed" * (n == 2)} for n, state in enumerate(states)]
    found = of_device({**whole, "status": {**whole["status"], "shards": rows}})
    assert [(each.code, each.device) for each in found] == [("DEVICE_DEAD", "vol~2"), ("DEVICE_SILENT", "vol~3")]
    assert found[0].detail == "dead: killed; its parent starts it again"
    assert found[1].detail == "its process does not answer"


def test_no_room_matters_only_where_a_slab_could_want_some() -> None:
    """With all slabs mapped, or with room at one peer, nobody is bothered."""
    full = peer("c:1", free_bytes=0)
    mapped = snapshot(peers=[full])
    mapped["slabs"]["unmapped"] = 0
    assert of_device(mapped) == []
    assert of_device(snapshot(peers=[full, UP[0]])) == []
    assert set(codes(of_device(snapshot(peers=[full, peer("d:1", lending="cordoned")])))) == {
        "NO_ROOM",
        "DONOR_CORDONED",
    }


def test_details_say_who_and_why() -> None:
    """Device, peer and reason."""
    (finding,) = of_device(snapshot(peers=(*UP, peer("c:1", state="down", last_error="no route"))))
    assert (finding.device, finding.peer) == ("vol", "c:1")
    assert "no route" in finding.detail
    assert finding.about("vol")
    assert finding.about("c:1")
    assert not finding.about("a:1")


@pytest.mark.parametrize(("dead", "code"), [(True, "DEVICE_DEAD"), (False, "DEVICE_SILENT")])
def test_of_a_device_that_cannot_be_asked(dead: bool, code: str) -> None:
    """It is an error in any case."""
    finding = of_missing_device("vol", dead=dead, why="it does not")
    assert (finding.code, finding.severity, finding.detail) == (code, ERROR, "it does not")


@pytest.mark.parametrize(
    ("donor", "here", "expected"),
    [
        (DonorFacts("a:1", answers=True, lending=True, pressure_percent=3.0, missing_bytes=0), False, {}),
        (DonorFacts("a:1", answers=True, lending=True, available_bytes=2 * GIB, headroom_bytes=GIB), False, {}),
        (DonorFacts("a:1", answers=False, why="refused"), False, {"DONOR_DOWN": WARNING}),
        (DonorFacts("a:1", answers=False, why="refused"), True, {"DONOR_DOWN": ERROR}),
        (DonorFacts("a:1", answers=True, lending=False), False, {"DONOR_CORDONED": WARNING}),
        (DonorFacts("a:1", answers=True, lending=True, pressure_percent=10.0), False, {"DONOR_PRESSURE": WARNING}),
        (DonorFacts("a:1", answers=True, lending=True, missing_bytes=1), False, {"DONOR_PRESSURE": WARNING}),
        (
            DonorFacts("a:1", answers=True, lending=True, available_bytes=0, headroom_bytes=GIB),
            False,
            {"DONOR_PRESSURE": WARNING},
        ),
    ],
)
def test_of_a_donor(donor: DonorFacts, here: bool, expected: dict[str, Severity]) -> None:
    """Exactly this is told of it; one's own daemon is a graver matter than another's."""
    assert codes(of_donor(donor, here=here)) == expected


def test_every_code_is_documented(root: Path) -> None:
    """docs/operate.md has a row for each, and none for another."""
    text = (root / "docs" / "operate.md").read_text()
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and line.split("`")[1].isupper()]
    assert sorted(rows) == sorted(CODES)
