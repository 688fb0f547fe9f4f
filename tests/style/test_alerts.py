"""Alert rules and dashboard: promtool takes them, each alert is tried, and every metric and label they name exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from infiniswap.daemon import metric_families as daemon
from infiniswap.device import metric_families as device
from infiniswap.policy.health import CODES
from infiniswap.shared.metric_table import Family
from tests.support import metric_names
from tests.support.dashboard import content, expressions, queries

RULES = "packaging/prometheus/infiniswap.rules.yml"
TRIALS = "packaging/prometheus/infiniswap.test.yml"
SCRAPED = {"job", "instance"}
NAME = re.compile(r"\b(?:infiniswapd?_\w+|up)\b(?=[\s{\[)]|$)")
SELECTOR = re.compile(r"\b(infiniswapd?_\w+|up)\{([^}]*)\}")


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it in folder."""
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def labels() -> dict[str, dict[str, set[str] | None]]:
    """Of each sample's name the labels it has, with their values where those are fixed."""
    found: dict[str, dict[str, set[str] | None]] = {"up": {}}
    tables: list[tuple[str, list[Family], tuple[str, ...]]] = [
        (device.PREFIX, metric_names.DEVICE, ("device",)),
        (device.PREFIX, list(device.PEER_FAMILIES), ("device", "peer")),
        (device.PREFIX, list(device.SHARD_FAMILIES), ("device", "shard")),
        (daemon.PREFIX, metric_names.DAEMON, ()),
    ]
    for prefix, families, common in tables:
        for family in families:
            own = {} if family.label is None else {family.label: set(family.numbers)}
            found[prefix + family.name] = {**dict.fromkeys(common), **own}
    histograms = [(family, ("device",)) for family in device.DURATIONS]
    for family, common in [*histograms, (device.PEER_DURATION, ("device", "peer"))]:
        own = {} if family.label is None else {family.label: set(family.numbers)}
        for end in ("_bucket", "_sum", "_count"):
            more: dict[str, set[str] | None] = {"le": None} if end == "_bucket" else {}
            found[device.PREFIX + family.name + end] = {**dict.fromkeys(common), **own, **more}
    return found


def wrong(expression: str) -> list[str]:
    """What of an expression does not exist: metrics, labels in selectors, values of labels."""
    known = labels()
    found = [name for name in NAME.findall(expression) if name not in known]
    for name, matchers in SELECTOR.findall(expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers):
            values = known.get(name, {}).get(label)
            if label not in {*known.get(name, {}), *SCRAPED}:
                found.append(f"{name}{{{label}}}")
            elif values is not None and operator == "=" and value not in values:
                found.append(f"{name}{{{label}={value}}}")
    return found


def test_promtool_takes_the_rules(root: Path) -> None:
    """Their syntax, and that each fires when it should and not before."""
    folder = (root / RULES).parent
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", Path(RULES).name, folder=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tried = promtool("test", "rules", Path(TRIALS).name, folder=folder)
    assert tried.returncode == 0, tried.stdout + tried.stderr


def test_each_alert_is_tried(root: Path) -> None:
    """With a moment at which it is silent and one at which it is active."""
    alerts = re.findall(r"- alert: (\w+)", (root / RULES).read_text())
    trials = (root / TRIALS).read_text().split("\n- name: ")[1:]
    assert sorted(trial.partition("\n")[0] for trial in trials) == sorted(alerts)
    for trial in trials:
        assert trial.count("exp_alerts: []") == 1
        assert trial.count("exp_labels:") == 1


def test_alerts_use_the_codes_of_status(root: Path) -> None:
    """Each code has an alert, and no alert has another; all name what to do."""
    text = (root / RULES).read_text()
    assert set(re.findall(r"code: (\w+)", text)) == set(CODES)
    assert text.count("description:") == text.count("- alert:")


def test_what_rules_name_exists(root: Path) -> None:
    """Metrics, labels and their values."""
    text = (root / RULES).read_text()
    found = re.findall(r"expr: \|-\n(.*?)\n    for:", text, re.DOTALL)
    assert len(found) == text.count("- alert:")
    assert [name for expression in found for name in wrong(expression)] == []


def test_what_the_dashboard_names_exists() -> None:
    """Metrics, labels and their values; and Prometheus can read each query."""
    found = list(expressions(content()))
    assert len(found) > 40
    assert [name for expression in found for name in wrong(expression)] == []
    identifiers = [panel["id"] for panel in content()["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_every_query_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    """As rules; tests/interop/test_prometheus.py asks a real Prometheus."""
    rules = [{"record": f"r:{at}", "expr": expression} for at, expression in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))  # JSON is YAML
    checked = promtool("check", "rules", "queries.yml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "expression",
    [
        "infiniswap_nothing == 0",
        'infiniswap_peer_up{host="a"}',
        'rate(infiniswap_read_bytes_total{source="disk"}[5m])',
        "infiniswap_read_duration_seconds > 1",
    ],
)
def test_what_does_not_exist_is_seen(expression: str) -> None:
    """A metric, a label, a value; a histogram without its ending."""
    assert wrong(expression)
