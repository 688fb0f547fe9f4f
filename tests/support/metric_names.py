"""The metrics of both programs: their names, and the tables of docs/metrics.md, which follow from the descriptions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infiniswap.daemon import metric_families as daemon
from infiniswap.device import metric_families as device
from infiniswap.shared.metric_table import BUILD_INFO, Family

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/metrics.md"
DEVICE_LABELS = ("device",)
PEER_LABELS = ("device", "peer")
SHARD_LABELS = ("device", "shard")  # told by the parent of a device with shards
DEVICE = [BUILD_INFO, *device.DEVICE_FAMILIES, *device.WATCH_FAMILIES]
DAEMON = [BUILD_INFO, *daemon.FAMILIES]


def _row(each: Family, labels: Iterable[str], kind: str = "") -> str:
    labels = [*labels, *([] if each.label is None else [each.label])]
    kind = kind or ("counter" if each.grows else "gauge")
    shown = ", ".join(f"`{label}`" for label in labels)
    values = [] if each is BUILD_INFO or each.label is None else [f"`{value}`" for value in each.numbers]
    words = f" `{each.label}` is one of {', '.join(values)}." if values else ""
    return f"| `{each.name}` | {kind} | {shown} | {each.help}{words} |"


def rows() -> tuple[list[str], list[str]]:
    """Of the device's table and the daemon's."""
    found = [_row(each, DEVICE_LABELS) for each in DEVICE]
    found += [_row(each, DEVICE_LABELS, "histogram") for each in device.DURATIONS]
    found += [_row(each, PEER_LABELS) for each in device.PEER_FAMILIES]
    found.append(_row(device.PEER_DURATION, PEER_LABELS, "histogram"))
    found += [_row(each, SHARD_LABELS) for each in device.SHARD_FAMILIES]
    return found, [_row(each, ()) for each in DAEMON]


def document(text: str) -> str:
    """docs/metrics.md with both tables as they are to be."""
    head = "| metric | type | labels | what it is |\n|---|---|---|---|\n"
    for title, lines in zip(("## A device", "## A daemon"), rows(), strict=True):
        before, after = text.split(title, 1)
        introduction, old = after.split("| metric ", 1)
        _, rest = old.split("\n\n", 1)
        text = f"{before}{title}{introduction}{head}" + "\n".join(lines) + "\n\n" + rest
    return text


def device_names() -> set[str]:
    """Names of a device's families as Prometheus stores them."""
    return {
        device.PREFIX + each.name for each in (*DEVICE, *device.PEER_FAMILIES, *device.DURATIONS, device.PEER_DURATION)
    }


def shard_names() -> set[str]:
    """Those that the parent of a device with shards tells besides."""
    return {device.PREFIX + each.name for each in device.SHARD_FAMILIES}


def daemon_names() -> set[str]:
    """The same of a daemon's."""
    return {daemon.PREFIX + each.name for each in DAEMON}
