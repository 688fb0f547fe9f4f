"""Whatever the numbers and the size of the terminal, the screen of top fits, and keys do what the help says."""

from __future__ import annotations

import random
from typing import Any

import pytest

from infiniswap.cli.top.figures import LEGEND, count, duration, heat_lines, megabytes, percent, size
from infiniswap.cli.top.rates import DeviceRates, between
from infiniswap.cli.top.screen import HELP, SORTS, View, in_order, paint, plain, press
from infiniswap.cli.top.terminal import keys_in
from tests.support.snapshots import peer, snapshot


def device(name: str, rng: random.Random) -> DeviceRates:
    """With numbers of all magnitudes."""

    def number() -> int:
        return rng.randrange(1 << rng.randrange(1, 50))

    slabs = 1 << rng.randrange(1, 14)
    peers = [peer(f"{'n' * rng.randrange(1, 60)}{i}.example.com:7401") for i in range(rng.randrange(12))]
    busy = [{**p, "bytes_in": number(), "latency_total_us": float(number()), "latency_count": 1} for p in peers]
    before = snapshot(name, peers=peers, slabs=slabs)
    after = snapshot(
        name,
        uptime_s=10.5,
        slabs=slabs,
        peers=busy,
        reads={"remote": number(), "backup": number()},
        writes={"remote": number()},
        counters={"read_requests": number(), "write_requests": number()},
        failures={"peers_lost": number()},
        histograms={"remote": [[number(), number() + (1 << 50), number() + 1]]},
        pending_bytes=number(),
    )
    after["heat"]["activity"] = [float(number()) for _ in range(slabs)]
    after["heat"]["mapped"] = [rng.randrange(2) for _ in range(slabs)]
    return between(before, after)


@pytest.mark.parametrize("seed", range(30))
def test_it_fits(seed: int) -> None:
    """No line is wider than the terminal, and there are as many as it has; deep, paused, helping or not."""
    rng = random.Random(seed)
    rows = [device(f"{'d' * rng.randrange(1, 60)}{i}", rng) for i in range(rng.randrange(20))]
    for width, height in ((80, 24), (40, 8), (300, 80), (rng.randrange(1, 200), rng.randrange(1, 60))):
        view = View(deep=rng.random() < 0.5, paused=rng.random() < 0.5, help=rng.random() < 0.2)
        lines = paint(rows, view, width, height, "12:34:56")
        assert [line.plain for line in lines if line.cell_len > width or "\n" in line.plain] == []
        assert len(lines) <= height
        if width >= 40 and height >= 8:
            assert len(lines) == height
            assert lines[-1].plain.startswith("q quit")


def test_all_of_the_help_and_the_legend_fit() -> None:
    """At 80 × 24 nothing of them is cut."""
    assert [line for line in (*HELP, LEGEND) if len(line) > 80] == []
    assert len(HELP) <= 22


@pytest.mark.parametrize("seed", range(20))
def test_figures_are_short(seed: int) -> None:
    """A cell never outgrows its column."""
    rng = random.Random(seed)
    value = rng.randrange(1 << rng.randrange(1, 52))
    assert len(count(value)) <= 5
    assert len(count(value / 7)) <= 5
    assert len(megabytes(value)) <= 5
    assert len(size(value)) <= 5
    assert len(duration(rng.random() * 10 ** rng.randrange(1, 10))) <= 6
    assert len(percent(rng.random())) <= 4


def test_figures() -> None:
    """As one reads them; what is not quite all is not 100."""
    assert [count(v) for v in (None, 0, 8, 0.25, 999, 1234, 12_345, 1_200_000)] == [
        "-", "0", "8", "0.2", "999", "1.2k", "12k", "1.2M"]  # fmt: skip
    assert [duration(v) for v in (None, 61.4, 999.6, 1300, 2_100_000)] == ["-", "61us", "1.0ms", "1.3ms", "2.1s"]
    assert [size(v) for v in (None, 0, 4096, 1536, 1 << 40)] == ["-", "0", "4K", "1.5K", "1T"]
    assert [percent(v) for v in (None, 0.0, 0.99999, 1.0)] == ["-", "0.0", "99.9", "100"]


def heat(**rows: list[Any]) -> dict[str, Any]:
    """A heat picture's cells."""
    length = max(len(row) for row in rows.values())
    empty: dict[str, Any] = {name: [0] * length for name in ("activity", "mapped", "changing", "used")}
    return {"slabs_per_cell": 1, **empty, **rows}


def test_heat_tells_state_and_activity_without_colour() -> None:
    """By the character alone: mapped from idle to hot, not mapped though hot, backup only, never used, changing."""
    cells = heat(
        activity=[0.0, 5.0, 50.0, 500.0, 5e3, 5e4, 0.0, 5.0, 50.0, 0.0, 0.0],
        mapped=[1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        changing=[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        used=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1],
    )
    assert [line.plain for line in heat_lines(cells, 80, 5)] == ["-=+*#@.oO m"]


def test_of_several_slabs_a_character_the_hottest_speaks() -> None:
    """16,384 slabs fit, and the one that is hot is seen."""
    slabs = 16_384
    activity = [0.0] * slabs
    activity[9_999] = 30_000.0
    lines = heat_lines(heat(activity=activity, mapped=[1] * slabs), 80, 10)
    assert len(lines) <= 10
    assert max(len(line.plain) for line in lines) <= 80
    assert sum(line.plain.count("@") for line in lines) == 1


def test_keys() -> None:
    """Choosing follows the order on the screen, enter goes into the chosen one, esc back; sort comes round."""
    rows = [between(None, snapshot(name)) for name in ("b", "a", "c")]
    view = View(sort=[name for name, _ in SORTS].index("name"))
    assert [row.name for row in in_order(rows, view)] == ["a", "b", "c"]
    for key in ("down", "down", "down", "up", "enter"):
        view = press(view, key, rows)
    assert (view.chosen, view.deep) == ("b", True)
    assert not press(view, "back", rows).deep
    assert press(view, "pause", rows).paused
    assert press(view, "nonsense", rows) == view
    for _ in SORTS:
        view = press(view, "sort", rows)
    assert view.sort == len(SORTS) - 1
    shown = press(view, "help", rows)
    assert shown.help
    assert press(shown, "down", rows) == view  # any key leaves the help, and does no more
    assert press(View(), "enter", []) == View()


def test_keys_as_terminals_send_them() -> None:
    """Arrows in both modes, escape alone, several at once; a sequence that is not known is one other key."""
    assert keys_in("\x1b[A\x1bOBj q") == ["up", "down", "down", "pause", "quit"]
    assert keys_in("\x1b") == ["back"]
    assert keys_in("\x1b[1;5Cq\x1b[15~") == ["other", "quit", "other"]
    assert keys_in("\r?") == ["enter", "help"]


def test_a_device_that_is_gone() -> None:
    """It stays in the list with its state, and going deeper says why."""
    rows = [DeviceRates("vol", "dead", why="device 'vol' does not run any more")]
    assert "dead" in paint(rows, View(), 80, 24, "")[2].plain
    assert "does not run any more" in "\n".join(line.plain for line in paint(rows, View(deep=True), 80, 24, ""))


def test_what_is_the_matter_stands_above() -> None:
    """The worst first, by code; in a pipe each with its detail."""
    down = peer(state="down", last_error="refused")
    row = between(None, snapshot(peers=[down, peer("10.0.0.6:7401")], counters={"unreadable_pages": 3}))
    assert paint([row], View(), 80, 24, "")[1].plain == "LOST_PAGES vol; PEER_DOWN vol 10.0.0.5:7401"
    assert "WARNING PEER_DOWN 10.0.0.5:7401: down: refused" in plain([row], "12:00:00", 80)
    many = [between(None, snapshot(f"vol{i}", counters={"unreadable_pages": 3})) for i in range(9)]
    line = paint(many, View(), 80, 24, "")[1].plain
    assert line.endswith("; see infiniswap status")
    assert len(line) <= 80
