"""Discovery adds what is named, drops nobody by silence, and lets go of a peer only after its grace time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infiniswap.policy.discovery import Discovery, Wanted
from infiniswap.shared.address import HostPort
from tests.support.clock import FakeClock

A, B, C = (HostPort(host, 7401) for host in "abc")
NOTHING = Wanted((), ())


def test_named_ones_are_added() -> None:
    """In order; not those that there are, nor those that were removed by hand."""
    discovery = Discovery(["file"], 10.0, FakeClock())
    assert discovery.step([A], [A], []) == NOTHING
    assert discovery.heard("file", [C, B, A])
    assert not discovery.heard("file", [A, B, C]), "that is no news"
    assert discovery.step([A], [A], []) == Wanted((B, C), ())
    assert discovery.step([A], [A], [C]) == Wanted((B,), ())


def test_what_is_not_named_any_more_leaves_after_the_grace_time() -> None:
    """Not before, and not when it is named again meanwhile."""
    clock = FakeClock()
    discovery = Discovery(["file"], 10.0, clock)
    discovery.heard("file", [A, B])
    discovery.step([], [], [])
    discovery.heard("file", [A])
    clock.now_s += 9.9
    assert discovery.step([A, B], [], []) == NOTHING
    assert discovery.ours == (A, B)
    discovery.heard("file", [A, B])
    clock.now_s += 5.0
    assert discovery.step([A, B], [], []) == NOTHING
    discovery.heard("file", [])
    clock.now_s += 10.0
    assert discovery.step([A, B], [], []) == Wanted((), (A, B))
    assert len(discovery.ours) == 0


def test_others_stay() -> None:
    """A peer of the configuration is not discovery's to remove."""
    clock = FakeClock()
    discovery = Discovery(["file"], 1.0, clock)
    discovery.heard("file", [A])
    discovery.step([], [], [])
    discovery.heard("file", [])
    clock.now_s += 2.0
    assert discovery.step([A], [A], []) == NOTHING


def test_silence_drops_nobody() -> None:
    """What was named last counts for ever while nothing else is heard; after a start, what was known before."""
    clock = FakeClock()
    discovery = Discovery(["file", "dns"], 1.0, clock, known=[A])
    assert discovery.step([], [], []) == Wanted((A,), ())
    discovery.heard("file", [B])
    clock.now_s += 1000.0
    assert discovery.step([A], [], []) == Wanted((B,), ()), "dns may be the one that named A"
    discovery.heard("dns", [])
    assert discovery.step([A, B], [], []) == NOTHING, "its grace time begins now"
    clock.now_s += 1.0
    assert discovery.step([A, B], [], []) == Wanted((), (A,))
    clock.now_s += 1000.0
    assert discovery.step([B], [], []) == NOTHING


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["file", "dns"]), st.frozensets(st.sampled_from([A, B, C]))) | st.floats(0.1, 30.0),
        max_size=30,
    )
)
def test_never_removes_what_is_named_or_fresh(
    events: list[tuple[str, frozenset[HostPort]] | float],
) -> None:
    """Whatever happens, who leaves was named by nobody for the whole grace time, and who is named is there."""
    clock = FakeClock()
    discovery = Discovery(["file", "dns"], 10.0, clock)
    present: set[HostPort] = set()
    named: dict[str, frozenset[HostPort]] = {}
    last_s: dict[HostPort, float] = {}
    for event in events:
        if isinstance(event, float):
            clock.now_s += event
        else:
            named[event[0]] = event[1]
            discovery.heard(*event)
        for peer in frozenset().union(*named.values()):
            last_s[peer] = clock()
        wanted = discovery.step(present, [], [])
        for peer in wanted.remove:
            assert clock() - last_s[peer] >= 10.0
        present = (present | set(wanted.add)) - set(wanted.remove)
        assert present >= frozenset().union(*named.values())
