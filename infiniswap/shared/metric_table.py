"""What a metric is, described once: from it follow what Prometheus gets and what docs/metrics.md says.

Names and units are as Prometheus wants them (https://prometheus.io/docs/practices/naming/): base units (bytes, seconds,
ratios from 0 to 1), _total on what only grows, and labels where several numbers are parts of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import infiniswap

TOTAL = "_total"
Labels = Mapping[str, str]
Numbers = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric. name: as it is told, less the program's prefix; with TOTAL at its end it only grows.

    numbers: which number each value of label comes from; {"": number} of a metric without a label of its own.
    scale: what a number is multiplied by to be in the unit of the name.
    """

    name: str
    help: str
    numbers: Mapping[str, str]
    label: str | None = None
    scale: float = 1.0

    @property
    def grows(self) -> bool:
        """Whether it is a counter."""
        return self.name.endswith(TOTAL)


def family(name: str, text: str, number: str | None = None, *, scale: float = 1.0) -> Family:
    """A metric of one number, which has the metric's name (less TOTAL) unless given."""
    return Family(name=name, help=text, numbers={"": number or name.removesuffix(TOTAL)}, scale=scale)


def parts(name: str, text: str, label: str, numbers: Mapping[str, str], *, scale: float = 1.0) -> Family:
    """A metric whose label tells several numbers apart."""
    return Family(name=name, help=text, numbers=numbers, label=label, scale=scale)


BUILD_INFO = parts("build_info", "1; its label tells the version.", "version", {infiniswap.__version__: "one"})


def tell(prefix: str, families: Iterable[Family], rows: Sequence[tuple[Labels, Numbers]]) -> Iterator[Metric]:
    """The families with a sample for each number that a row has and that is known; rows have the same labels."""
    common = list(rows[0][0]) if rows else []
    for each in families:
        labels = [*common, *([] if each.label is None else [each.label])]
        kind = CounterMetricFamily if each.grows else GaugeMetricFamily
        metric = kind(prefix + each.name.removesuffix(TOTAL), each.help, labels=labels)
        for values, numbers in rows:
            for part, number in each.numbers.items():
                if (value := 1 if each is BUILD_INFO else numbers.get(number)) is not None:
                    own = [] if each.label is None else [part]
                    metric.add_metric([*values.values(), *own], float(value) * each.scale)
        if metric.samples:
            yield metric


def exposition(collector: Collector) -> bytes:
    """All that the collector tells, in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
