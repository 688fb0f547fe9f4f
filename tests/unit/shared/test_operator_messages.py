"""Messages of administrators' commands and the daemon: what one sends the other reads; nonsense is one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infiniswap.shared.messages import AnswerError
from infiniswap.shared.operator_messages import DonorState, DonorStatus, DrainRequest, DrainState, Host
from tests.support.donor_status import SWAP, VOL, donor_status, drain


def sent(content: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of the other end's JSON."""
    read: dict[str, Any] = json.loads(json.dumps(content))
    return read


@pytest.mark.parametrize(
    "status",
    [
        donor_status(),
        donor_status(host=None, leases=(), state=DonorState.CORDONED),
        donor_status(host=Host(64 << 30, 6 << 30, 6 << 30, None, percpu_bytes=300 << 20)),
        donor_status(drain=drain(), state=DonorState.DRAINING),
        donor_status(drain=drain(DrainState.DONE, left=0, forced=(VOL, SWAP), stop=True), state=DonorState.DRAINED),
    ],
)
def test_status_comes_through(status: DonorStatus) -> None:
    """Every field, and sums for who reads the JSON."""
    answer = sent(status.as_json())
    assert DonorStatus.parse(answer) == status
    assert [lease["bytes"] for lease in answer["leases"]] == [lease.holding.size_bytes for lease in status.leases]


def test_what_a_drain_did() -> None:
    """Given back, by force and left are all that there was."""
    shown = drain(left=1, forced=(VOL,))
    assert (shown.moved, shown.forced_slabs, shown.left) == (2, 3, 1)
    assert sent(shown.as_json())["moved"] == 2


@pytest.mark.parametrize("request_", [DrainRequest(), DrainRequest(0.0), DrainRequest(3600.0, stop=True)])
def test_requests_come_through(request_: DrainRequest) -> None:
    """Every field; what is left out has the default."""
    assert DrainRequest.parse(sent(request_.as_json())) == request_
    assert DrainRequest.parse({}) == DrainRequest()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"deadline_s": -1}, "deadline_s must be a number of seconds from 0 to 3600"),
        ({"deadline_s": 3601}, "deadline_s must be"),
        ({"deadline_s": "10m"}, "deadline_s must be"),
        ({"deadline_s": True}, "deadline_s must be"),
        ({"deadline_s": float("nan")}, "deadline_s must be"),
        ({"stop": 1}, "stop must be true or false"),
    ],
)
def test_wrong_requests(content: dict[str, Any], sentence: str) -> None:
    """One sentence, for who sent it."""
    with pytest.raises(ValueError, match=sentence):
        DrainRequest.parse(content)


@given(st.data())
def test_wrong_answers(data: st.DataObject) -> None:
    """Whatever is missing or of another kind, at whatever depth: an AnswerError, or it is read all the same."""
    content = sent(donor_status(drain=drain(forced=(VOL,))).as_json())
    place: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just([1])
    )
    with suppress(AnswerError):
        DonorStatus.parse(content)


@pytest.mark.parametrize("content", [None, [], "x", {}, {"state": "lending"}, {"state": "asleep"}])
def test_no_status_at_all(content: object) -> None:
    """What some other program answers."""
    with pytest.raises(AnswerError):
        DonorStatus.parse(content)
