"""Numbers in few characters, tables, the sources and the slabs as a picture. Pure, and ASCII: any terminal shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from infiniswap.cli.top.rates import READ_SOURCES, DeviceRates, PeerRates

HOT, ACTIVE = 20.0, 1.0  # page I/O per second of a slab: above HOT it is worth remote memory (the default threshold)
RAMP = "-=+*#@"  # a mapped slab, from idle to the hottest
RAMP_FLOORS = (0.0, 1.0, 20.0, 200.0, 2_000.0, 20_000.0)  # page I/O per second
LEGEND = "mapped: -=+*#@ idle to hot; not: . backup only, o O active; m changing"
_HEAT_STYLES = ("green", "green", "bright_green", "yellow", "bright_yellow", "bright_red")
_SOURCE_STYLES = {"remote": "green", "pending": "cyan", "backup": "yellow", "zero": "blue"}
_STATE_STYLES = {"serving": "green", "up": "green", "stopping": "yellow", "slow": "yellow", "held": "yellow"}
_NAMES_SHORT = {"remote": "REM%", "pending": "PEN%", "backup": "BAK%", "zero": "ZERO%"}


def count(value: float | None) -> str:
    """At most five characters: 0, 999, 1.2k, 45k, 1.2M, and 0.5 of what is no whole number; a dash: not known."""
    if value is None:
        return "-"
    if round(value) < 1000:
        return f"{value:.1f}" if value < 9.95 and not float(value).is_integer() else f"{value:.0f}"
    for unit in "kMGT":
        value /= 1000
        if value < 999.5 or unit == "T":
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    raise AssertionError


def megabytes(bytes_s: float | None) -> str:
    """MB/s in at most five characters."""
    if bytes_s is None:
        return "-"
    value = bytes_s / 1e6
    return f"{value:.1f}" if value < 999.95 else count(value)


def duration(us: float | None) -> str:
    """At most six characters: 61us, 1.3ms, 2.1s."""
    if us is None:
        return "-"
    if us < 999.5:
        return f"{us:.0f}us"
    if us < 999_500:
        return f"{us / 1000:.1f}ms" if us < 99_950 else f"{us / 1000:.0f}ms"
    return f"{us / 1e6:.1f}s" if us < 99.95e6 else f"{us / 1e6:.0f}s"


def size(value: int | None) -> str:
    """At most six characters: 0, 12K, 1.5M, 512G."""
    if value is None:
        return "-"
    if value < 1024:
        return str(value)
    number = float(value)
    for unit in "KMGTP":
        number /= 1024
        if number < 1023.5 or unit == "P":
            return f"{number:.1f}{unit}" if number < 9.95 and not number.is_integer() else f"{number:.0f}{unit}"
    raise AssertionError


def percent(share: float | None) -> str:
    """A share of 0 to 1, at most five characters; what is not quite all never reads as 100."""
    if share is None:
        return "-"
    return "100" if share >= 1 else f"{min(share * 100, 99.9):.1f}"


def crop(text: str, width: int) -> str:
    """Text in width characters; what is left out, at its beginning, is a tilde: addresses differ at their ends."""
    return text if len(text) <= width else "~" + text[len(text) - width + 1 :]


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a table: its heading, its width at least, how a row's cell reads and in which style."""

    heading: str
    width: int
    cell: Callable[[Any], str]
    left: bool = False
    style: Callable[[Any], str] = lambda _: ""
    wide: int = 0  # shown from so many columns of the terminal on


def _state_style(row: DeviceRates | PeerRates) -> str:
    return _STATE_STYLES.get(row.state, "bright_red")


def _fault_style(row: DeviceRates | PeerRates) -> str:
    return "bright_red" if row.faults else ""


def _pending_style(row: DeviceRates) -> str:
    full = (
        row.pending_bytes is not None and row.pending_limit_bytes and row.pending_bytes > 0.8 * row.pending_limit_bytes
    )
    return "bright_yellow" if full else ""


def _share_of(source: str) -> Callable[[DeviceRates], str]:
    return lambda row: percent(row.hits.get(source))


DEVICE_FIELDS = (
    Field("DEVICE", 12, lambda row: row.name, left=True),
    Field("STATE", 8, lambda row: row.state, left=True, style=_state_style),
    Field("IN/s", 5, lambda row: count(row.in_iops)),
    Field("MB/s", 5, lambda row: megabytes(row.in_bytes_s)),
    Field("OUT/s", 5, lambda row: count(row.out_iops)),
    Field("MB/s", 5, lambda row: megabytes(row.out_bytes_s)),
    Field("HIT%", 5, lambda row: percent(row.hit_ratio)),
    *(Field(_NAMES_SHORT[source], 5, _share_of(source), wide=120) for source in READ_SOURCES),
    Field("P50", 5, lambda row: duration(row.reads.p50_us)),
    Field("P99", 6, lambda row: duration(row.reads.p99_us)),
    Field("W-P99", 6, lambda row: duration(row.writes.p99_us), wide=96),
    Field("PEND", 5, lambda row: size(row.pending_bytes), style=_pending_style),
    Field("FAULT", 5, lambda row: count(row.faults), style=_fault_style),
    Field("FAULTS", 6, lambda row: count(row.faults_total), wide=96),
    Field("CONNS", 5, lambda row: count(row.connections), wide=120),
)


def _peer_state(row: PeerRates) -> str:
    return row.lending if row.state == "up" and row.lending not in (None, "lending") else row.state


PEER_FIELDS = (
    Field("PEER", 21, lambda row: row.peer, left=True),
    Field("STATE", 10, _peer_state, left=True, style=_state_style),
    Field("VIA", 4, lambda row: row.transport or "-", left=True),
    Field("RTT", 6, lambda row: duration(row.rtt_us)),
    Field("SHARE%", 6, lambda row: percent(row.share)),
    Field("SLABS", 5, lambda row: count(row.slabs)),
    Field("IN MB", 5, lambda row: megabytes(row.in_bytes_s)),
    Field("OUT", 5, lambda row: megabytes(row.out_bytes_s)),
    Field("FREE", 5, lambda row: size(row.free_bytes)),
    Field("FAULT", 5, lambda row: count(row.faults), style=_fault_style, wide=86),
    Field("ERROR", 30, lambda row: row.error or "-", left=True, wide=130),
)


def table(rows: Sequence[Any], fields: Sequence[Field], width: int, *, chosen: int | None = None) -> list[Text]:
    """Heading and one line a row, none wider than width; the chosen row is reversed."""
    shown = [field for field in fields if width >= field.wide]
    room = width - sum(field.width for field in shown) - len(shown) + 1
    lines = [Text()]
    for i, field in enumerate(shown):
        cell = field.heading.ljust(field.width) if field.left else field.heading.rjust(field.width)
        lines[0].append((" " if i else "") + cell + (" " * max(0, room) if not i else ""), "bold")
    for number, row in enumerate(rows):
        line = Text(style="reverse" if number == chosen else "")
        for i, field in enumerate(shown):
            space = field.width + (max(0, room) if not i else 0)
            cell = crop(field.cell(row), space)
            line.append((" " if i else "") + (cell.ljust(space) if field.left else cell.rjust(space)), field.style(row))
        lines.append(line)
    return lines


def sources_line(row: DeviceRates, width: int) -> Text:
    """Where the pages read came from: shares, and as a bar where there is room."""
    line = Text("Pages read from ")
    if not row.hits:
        return line.append("nowhere in this interval", "dim")
    for source in READ_SOURCES:
        line.append(f"{source} {percent(row.hits[source])}%  ", _SOURCE_STYLES[source])
    room = min(40, width - len(line.plain) - 2)
    if room >= 8:
        line.append("[")
        left = room
        for source in READ_SOURCES:
            part = min(left, round(row.hits[source] * room))
            line.append(source[0] * part, _SOURCE_STYLES[source])
            left -= part
        line.append(" " * left + "]")
    return line


def heat_lines(heat: Mapping[str, Any], width: int, height: int) -> list[Text]:
    """The slabs in order, row by row, at most width × height characters; several slabs a character where need be."""
    cells = [
        _heat_cell(activity, mapped, changing, used)
        for activity, mapped, changing, used in zip(
            heat["activity"], heat["mapped"], heat["changing"], heat["used"], strict=True
        )
    ]
    together = max(1, -(-len(cells) // max(1, width * height)))
    # Of several cells the hottest speaks for all.
    merged = [max(cells[i : i + together]) for i in range(0, len(cells), together)]
    lines = []
    for start in range(0, len(merged), width):
        line = Text()
        for _, letter, style in merged[start : start + width]:
            line.append(letter, style)
        lines.append(line)
    return lines[:height]


def _heat_cell(activity: float, mapped: int, changing: int, used: int) -> tuple[float, str, str]:
    """Weight among its neighbours, character and style."""
    if changing:
        return (1e12, "m", "magenta")
    if mapped:
        level = sum(1 for floor in RAMP_FLOORS if activity >= floor) - 1
        return (1.0 + activity, RAMP[level], _HEAT_STYLES[level])
    if activity >= ACTIVE:
        return (1.5 + activity, "O" if activity >= HOT else "o", "bright_magenta")
    return (0.5, ".", "dim") if used else (0.0, " ", "")
