"""Scenarios: what can be written is read as meant, and what cannot be simulated is refused in one clear line."""

from __future__ import annotations

from typing import Any

import pytest

from infiniswap.shared.errors import UserError
from infiniswap.simulation.scenario import (
    GIB,
    Failure,
    Load,
    Scenario,
    Strategy,
    parse_failure,
    parse_load,
    parse_memory,
    parse_strategies,
    scaled_containers,
)


def test_what_is_written_is_meant() -> None:
    """Each form."""
    assert parse_failure("200:2") == Failure(200, 2, 60)
    assert parse_failure("0:1:5") == Failure(0, 1, 5)
    assert parse_load("100:8:16GiB") == Load(100, 8, size_bytes=16 * GIB, for_s=120)
    assert parse_load("100:8:25%:30") == Load(100, 8, percent=25.0, for_s=30)
    assert parse_memory("32GiB,64GiB") == (32 * GIB, 64 * GIB)
    assert parse_strategies("one, two-free,one") == (Strategy.ONE, Strategy.TWO_FREE)
    assert [scaled_containers(machines) for machines in (2, 32, 1000)] == [6, 90, 2812]
    assert [Scenario(memory_bytes=(2 * GIB, 4 * GIB)).memory_of(m) for m in range(3)] == [2 * GIB, 4 * GIB, 2 * GIB]


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_failure, "200", "SECOND:MACHINES"),
        (parse_failure, "200:x", "MACHINES 'x' is not a whole number"),
        (parse_failure, "-1:2", "SECOND '-1' is not a whole number"),
        (parse_failure, "1:2:3:4", "SECOND:MACHINES"),
        (parse_load, "100:8", "SECOND:MACHINES:SIZE"),
        (parse_load, "100:8:much", "'much' is not a size"),
        (parse_load, "100:8:200%", "percent 200 must be between 1 and 100"),
        (parse_memory, "64GiB,", "is not a size"),
        (parse_strategies, "best", "no strategy 'best'; there are one, two-free"),
    ],
)
def test_what_cannot_be_read(parse: Any, text: str, told: str) -> None:
    """The line says what is wrong."""
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        parse(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"machines": 1}, "--machines 1 must be between 2 and 4096"),
        ({"machines": 5000}, "--machines 5000"),
        ({"containers": 0}, "--containers 0"),
        ({"duration_s": 0}, "--duration 0"),
        ({"policy": "never"}, "--policy 'never' must be one of hot, eager"),
        ({"seed": -1}, "--seed -1"),
        ({"spread": float("nan")}, "--spread nan"),
        ({"spare": -0.5}, "--spare -0.5"),
        ({"cool_down_s": float("inf")}, "--cool-down inf"),
        ({"headroom_percent": 0.0}, "--headroom 0"),
        ({"cold_page_ios": 20.0}, "--cold 20 must be above 0 and below 20"),
        ({"memory_bytes": (1,)}, "--memory 1B must be between 1GiB and 64TiB"),
        ({"slab_bytes": 3 << 20}, "--slab 3MiB must be a power of two"),
        ({"failures": (Failure(700, 1),)}, "--fail: SECOND 700 must be between 0 and 600"),
        ({"failures": (Failure(7, 31),)}, "--fail must leave two machines of 32"),
        ({"loads": (Load(7, 33, GIB),)}, "--load: MACHINES 33 must be between 1 and 32"),
        ({"loads": (Load(7, 1, GIB),) * 1001}, "--load is given 1001 times"),
    ],
)
def test_what_cannot_be_simulated(options: dict[str, Any], told: str) -> None:
    """Before anything is."""
    with pytest.raises(UserError, match=told):
        Scenario(**options)
