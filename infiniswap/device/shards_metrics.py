"""What Prometheus gets of a device with shards: what each of them tells, family by family, and how they are.

Samples keep their shard's name as `device`, so that no number has two meanings: who asks sums up what is to be one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from infiniswap.device.metric_families import PREFIX, SHARD_FAMILIES
from infiniswap.shared.metric_table import exposition, tell


class _Parent(Collector):
    """What the parent knows. rows: of each shard its name, whether it serves, and how often it was started again."""

    def __init__(self, device: str, rows: Sequence[tuple[str, bool, int]]) -> None:
        self._device = device
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        rows = [
            ({"device": self._device, "shard": name}, {"serves": serves, "restarts": restarts})
            for name, serves, restarts in self._rows
        ]
        yield from tell(PREFIX, SHARD_FAMILIES, rows)


def of_parent(device: str, rows: Sequence[tuple[str, bool, int]]) -> str:
    """In the text format. rows: of each shard its name, whether it serves, and how often it was started again."""
    return exposition(_Parent(device, rows)).decode()


def merged(texts: Iterable[str]) -> str:
    """One exposition out of several: each family once, with all samples (a family may not come in two pieces)."""
    families: dict[str, list[str]] = {}
    for text in texts:
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                known = line.split(" ", 3)[2] in families
                lines = families.setdefault(line.split(" ", 3)[2], [])
                if not known:
                    lines.append(line)
            elif not line.startswith("# TYPE ") or len(lines) == 1:
                lines.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
