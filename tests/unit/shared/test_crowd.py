"""A full door: a flood pays for itself, whoever has proved a lease stays, and counts always add up."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from infiniswap.shared.crowd import Crowd, network_of


def anyone(_key: object) -> bool:
    """Nothing is under way."""
    return True


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("/run/vol.sock", ""),
    ],
)
def test_networks(address: str, network: str) -> None:
    """All addresses that one host has at will count as one."""
    assert network_of(address) == network


def test_a_flood_pays_for_itself() -> None:
    """Of two networks the one with more connections loses them, the one used longest ago first."""
    crowd: Crowd[str] = Crowd()
    crowd.enter("honest", "a")
    for number in range(3):
        crowd.enter(f"flood {number}", "b")
    crowd.use("flood 0")
    gone = []
    while len(crowd) > 2:
        victim = crowd.stranger(anyone)
        assert victim is not None
        gone.append(victim)
        crowd.leave(victim)
    assert gone == ["flood 1", "flood 2"]


def test_who_has_proved_a_lease_stays() -> None:
    """It is no stranger any more, until it proves nothing; and of a holder the last connection never goes."""
    crowd: Crowd[int] = Crowd()
    for key in range(3):
        crowd.enter(key, "a")
        crowd.prove(key, "lease")
    assert (crowd.strangers("a"), crowd.held("lease"), crowd.stranger(anyone)) == (0, 3, None)
    assert crowd.extra(anyone) == 0
    crowd.leave(0)
    assert crowd.extra(lambda key: key != 1) == 2
    crowd.prove(2, None)
    assert (crowd.extra(anyone), crowd.stranger(anyone)) == (None, 2)


def test_those_with_something_under_way_stay() -> None:
    """The caller says who may go; another network is looked at when nobody of the largest may."""
    crowd: Crowd[int] = Crowd()
    for key in range(4):
        crowd.enter(key, "a" if key < 3 else "b")
    assert crowd.stranger(lambda key: key == 3) == 3
    assert crowd.stranger(lambda key: key == 3, "a") is None


def test_counts_add_up() -> None:
    """Whatever comes, goes and proves in whatever order."""
    rng = Random(12)
    crowd: Crowd[int] = Crowd()
    model: dict[int, tuple[str, str | None]] = {}
    for _ in range(5000):
        key, network, holder = rng.randrange(20), rng.choice("abc"), rng.choice(["x", "y", None])
        match rng.randrange(5):
            case 0 | 1:
                crowd.enter(key, network)
                model[key] = network, None
            case 2:
                crowd.leave(key)
                model.pop(key, None)
            case 3:
                crowd.prove(key, holder)
                if key in model:
                    model[key] = model[key][0], holder
            case _:
                alive = {one for one in model if rng.random() < 0.9}
                crowd.keep(alive)
                model = {one: at for one, at in model.items() if one in alive}
        strangers = Counter(at for at, who in model.values() if who is None)
        holders = Counter(who for _, who in model.values() if who is not None)
        assert len(crowd) == len(model)
        assert all(crowd.strangers(one) == strangers[one] for one in "abc")
        assert all(crowd.held(one) == holders[one] for one in "xy")
