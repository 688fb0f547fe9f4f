"""What a screen of width × height shows. Pure: the same rates, view and size give the same lines, none too wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from infiniswap.cli.top.figures import (
    DEVICE_FIELDS,
    LEGEND,
    PEER_FIELDS,
    Field,
    count,
    duration,
    heat_lines,
    size,
    sources_line,
    table,
)
from infiniswap.cli.top.rates import DeviceRates, Latency
from infiniswap.policy.health import Severity

WIDTH_MIN, HEIGHT_MIN = 40, 8
HELP = (
    "up, down, j, k   choose a device",
    "enter, right     only this device, with each source's latencies",
    "esc, left        back to all devices",
    "s, r             sort by the next column; the other way round",
    "space, p         stop and go on",
    "+, -             a longer, a shorter interval",
    "h, ?             this help",
    "q                end",
    "",
    "IN pages read (page-ins), OUT pages written. HIT% of pages read came from",
    "elsewhere than the backup. P50, P99 latency of reads. PEND not yet on the",
    "backup. FAULT what failed. RTT mean time of a page-in from that peer.",
    "SHARE% of the mapped slabs. All of the last interval.",
)
SORTS: tuple[tuple[str, Callable[[DeviceRates], float]], ...] = (
    ("activity", lambda row: -((row.in_iops or 0) + (row.out_iops or 0))),
    ("in", lambda row: -(row.in_bytes_s or 0)),
    ("out", lambda row: -(row.out_bytes_s or 0)),
    ("p99", lambda row: -(row.reads.p99_us or 0)),
    ("pending", lambda row: -(row.pending_bytes or 0)),
    ("faults", lambda row: -(row.faults_total or 0)),
    ("name", lambda _: 0),
)


@dataclass(frozen=True, slots=True)
class View:
    """What the user chose to see. chosen: a device's name, for devices come and go."""

    chosen: str = ""
    deep: bool = False
    paused: bool = False
    help: bool = False
    sort: int = 0
    reverse: bool = False
    interval_s: float = 1.0


def in_order(rows: Sequence[DeviceRates], view: View) -> list[DeviceRates]:
    """As the view sorts them; equal ones by name."""
    _, key = SORTS[view.sort]
    return sorted(sorted(rows, key=lambda row: row.name), key=key, reverse=view.reverse)


def press(view: View, key: str, rows: Sequence[DeviceRates]) -> View:
    """The view after a key; one that means nothing changes nothing."""
    if view.help:
        return replace(view, help=False)
    if key in ("up", "down"):
        return replace(view, chosen=_neighbour(view, rows, -1 if key == "up" else 1))
    changes: dict[str, Callable[[], View]] = {
        "enter": lambda: replace(view, deep=bool(rows), chosen=_chosen(view, rows).name if rows else ""),
        "back": lambda: replace(view, deep=False),
        "sort": lambda: replace(view, sort=(view.sort + 1) % len(SORTS)),
        "reverse": lambda: replace(view, reverse=not view.reverse),
        "pause": lambda: replace(view, paused=not view.paused),
        "help": lambda: replace(view, help=True),
        "slower": lambda: replace(view, interval_s=min(60.0, view.interval_s * 2)),
        "faster": lambda: replace(view, interval_s=max(0.25, view.interval_s / 2)),
    }
    return changes[key]() if key in changes else view


def paint(rows: Sequence[DeviceRates], view: View, width: int, height: int, clock: str) -> list[Text]:
    """The screen: at most height lines of at most width characters. clock: time of day of the rates."""
    if width < WIDTH_MIN or height < HEIGHT_MIN:
        return _cut([Text(f"{WIDTH_MIN}x{HEIGHT_MIN} is the least")], width, height)
    head, foot = _head(rows, view, clock, width), _foot(view, width)
    room = height - 2
    if view.help:
        body = [Text(line) for line in HELP]
    elif not rows:
        body = [Text(), Text("No device runs here. Root's devices are shown to root; others' to their user.")]
    else:
        body = _body(rows, view, width, room)
    body = body[:room] + [Text()] * (room - len(body))
    return _cut([head, *body, foot], width, height)


def plain(rows: Sequence[DeviceRates], clock: str, width: int) -> str:
    """One interval as text for a pipe: devices, then the peers of each; ends with an empty line."""
    lines = [Text(f"{clock}  {len(rows)} devices"), *table(rows, DEVICE_FIELDS, width)]
    for row in rows:
        lines += [Text(f"{f.severity.name} {f.code} {f.peer or f.device}: {f.detail}") for f in row.findings]
        if row.peers:
            lines += table(row.peers, [replace(PEER_FIELDS[0], heading=f"PEER of {row.name}"), *PEER_FIELDS[1:]], width)
    return "\n".join(line.plain.rstrip() for line in lines) + "\n"


def _cut(lines: list[Text], width: int, height: int) -> list[Text]:
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines[:height]


def _chosen(view: View, rows: Sequence[DeviceRates]) -> DeviceRates:
    return next((row for row in rows if row.name == view.chosen), in_order(rows, view)[0])


def _neighbour(view: View, rows: Sequence[DeviceRates], step: int) -> str:
    if not rows:
        return ""
    names = [row.name for row in in_order(rows, view)]
    place = names.index(_chosen(view, rows).name) + step
    return names[max(0, min(len(names) - 1, place))]


def _head(rows: Sequence[DeviceRates], view: View, clock: str, width: int) -> Text:
    serving = sum(1 for row in rows if row.state == "serving")
    line = Text("infiniswap top", "bold")
    line.append(f"  {clock}  every {view.interval_s:g} s  {serving} of {len(rows)} devices serve", "not bold")
    if view.paused:
        line.append("  PAUSED", "reverse")
    sort = f"by {SORTS[view.sort][0]}{' reversed' if view.reverse else ''}"
    gap = width - len(line.plain) - len(sort)
    return line.append(" " * gap + sort, "not bold dim") if gap > 1 else line


def _foot(view: View, width: int) -> Text:
    keys = "esc back  " if view.deep else "enter deeper  "
    text = f"q quit  {keys}s sort  r reverse  space {'go on' if view.paused else 'pause'}  up/down choose  ? help"
    return Text(text.ljust(width)[:width], "reverse")


def _findings(rows: Sequence[DeviceRates], width: int) -> list[Text]:
    """What is the matter, the worst first, in one line; none where nothing is."""
    found = sorted((f for row in rows for f in row.findings), key=lambda f: -f.severity)
    if not found:
        return []
    told = [" ".join(part for part in (f.code, f.device, f.peer) if part) for f in found]
    text = "; ".join(told)
    if len(text) > width:
        text = f"{text[: width - 20].rpartition('; ')[0] or told[0]}; see infiniswap status"
    return [Text(text, "bright_red" if found[0].severity == Severity.ERROR else "bright_yellow")]


def _body(rows: Sequence[DeviceRates], view: View, width: int, room: int) -> list[Text]:
    alarm = _findings(rows, width)
    return alarm + _tables(rows, view, width, room - len(alarm))


def _tables(rows: Sequence[DeviceRates], view: View, width: int, room: int) -> list[Text]:
    chosen, ordered = _chosen(view, rows), in_order(rows, view)
    if view.deep:
        lines = table([chosen], DEVICE_FIELDS, width)
    else:
        space = max(1, min(len(ordered), room // 3))
        place = ordered.index(chosen)
        first = max(0, min(place - space + 1, len(ordered) - space))
        several = len(ordered) > 1
        lines = table(ordered[first : first + space], DEVICE_FIELDS, width, chosen=place - first if several else None)
        if space < len(ordered):
            lines[0].append(f" {first + 1}-{first + space}/{len(ordered)}"[: max(0, width - len(lines[0].plain))])
    if chosen.why:
        return [*lines, Text(), Text(chosen.why, "bright_red", overflow="fold")]
    lines.append(Text())
    lines.append(sources_line(chosen, width))
    if view.deep:
        lines += table(list(chosen.latency.items()), _LATENCY_FIELDS, min(width, 60))
    return lines + _details(chosen, width, room - len(lines))


def _details(chosen: DeviceRates, width: int, room: int) -> list[Text]:
    """Peers and the heat picture in what room is left; the picture gets at least two rows where it can."""
    lines: list[Text] = []
    if chosen.peers:
        space = max(1, min(len(chosen.peers), room - 6))
        lines += table(chosen.peers[:space], PEER_FIELDS, width)
        if space < len(chosen.peers):
            lines.append(Text(f"and {len(chosen.peers) - space} more: infiniswap peers {chosen.name}", "dim"))
    room -= len(lines) + 2  # its heading and the legend
    if room < 1 or not chosen.heat:
        return lines
    picture = heat_lines(chosen.heat, width, room)
    cells = sum(len(line.plain) for line in picture)
    slabs = chosen.slabs
    total = sum(slabs[state] for state in ("mapped", "mapping", "draining", "unmapped"))
    each = max(1, -(-total // max(1, cells)))
    states = ", ".join(f"{slabs[s]} {s}" for s in ("mapped", "mapping", "draining") if slabs[s]) or "none mapped"
    title = f"{total} slabs of {size(chosen.slab_bytes)}: {states}" + (
        f"; {each} slabs a character" if each > 1 else ""
    )
    return [*lines, Text(title, "bold"), *picture, Text(LEGEND, "dim")]


_LATENCY_FIELDS = (
    Field("SOURCE", 12, lambda item: item[0], left=True),
    Field("REQUESTS", 8, lambda item: count(_of(item).count)),
    Field("P50", 6, lambda item: duration(_of(item).p50_us)),
    Field("P99", 6, lambda item: duration(_of(item).p99_us)),
)


def _of(item: tuple[str, Latency]) -> Latency:
    return item[1]
