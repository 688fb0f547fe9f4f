"""Grafana's own types of a dashboard take all of ours: each key, each kind of value, each word of a choice.

Grafana itself is in no package that the tests could install; these types (grafana-foundation-sdk, by Grafana Labs) are
generated from its sources. They have no list of units and of colours, and say nothing of what it looks like.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.dashboard import content

SCALARS = {str: str, bool: bool, int: int, float: int | float}


def read(dashboard: dict[str, Any]) -> Dashboard:
    """As Grafana's types have it."""
    register_default_plugins()
    return Dashboard.from_json(dashboard)


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """What of the former the latter has not, or has otherwise: keys that Grafana does not know."""
    if isinstance(given, dict) and isinstance(kept, dict):
        gone = [f"{path}.{key}" for key in given.keys() - kept.keys()]
        return gone + [it for key in given.keys() & kept.keys() for it in lost(given[key], kept[key], f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [it for at, pair in enumerate(zip(given, kept, strict=True)) for it in lost(*pair, f"{path}[{at}]")]
    return [] if given == kept else [path]


def unfit(value: Any, hint: Any, path: str = "") -> list[str]:
    """What within value is not of the type that Grafana gives it: words that are no choice, texts for numbers."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [unfit(value, each, path) for each in inner]
        return [] if [] in found else found[0]
    if origin is list and not isinstance(value, list):
        return [f"{path}: {value!r}"]
    if origin is list:
        return [it for at, each in enumerate(value) for it in unfit(each, inner[0], f"{path}[{at}]")]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [] if value in [*hint, *(each.value for each in hint)] else [f"{path}: {value!r}"]
    if hint in SCALARS:
        return [] if isinstance(value, SCALARS[hint]) else [f"{path}: {value!r}"]
    if hint is type(None):
        return [] if value is None else [f"{path}: {value!r}"]
    if not hasattr(value, "from_json"):
        return []
    hints = typing.get_type_hints(type(value))
    return [it for name, each in hints.items() for it in unfit(getattr(value, name), each, f"{path}.{name}")]


def wrong(dashboard: dict[str, Any]) -> list[str]:
    """All that Grafana's types do not know of a dashboard."""
    found = read(dashboard)
    kept = json.loads(JSONEncoder().encode(found))
    of_panels = [it for panel in found.panels or [] for it in unfit(getattr(panel, "options", None), Any, "options")]
    return lost(dashboard, kept) + unfit(found, Dashboard) + of_panels


def test_grafana_knows_all_of_it() -> None:
    """Keys and values."""
    dashboard = content()
    assert len(dashboard["panels"]) > 20
    assert wrong(dashboard) == []


def test_panels_lie_side_by_side() -> None:
    """Within the 24 columns that Grafana has, none over another."""
    taken: set[tuple[int, int]] = set()
    for panel in content()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize(
    "change",
    [
        {"titel": "x"},
        {"title": 5},
        {"gridPos": {"x": 0, "y": 1, "w": "wide", "h": 4}},
        {"options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "backgruond", "graphMode": "none"}},
        {"options": {"reduce": {}}},
        {"fieldConfig": {"defaults": {"unit": "none", "treshold": 1}, "overrides": []}},
        {"targets": [{"refId": "A", "expression": "up"}]},
    ],
)
def test_mistakes_are_seen(change: dict[str, Any]) -> None:
    """In a panel: keys, kinds of values, choices."""
    dashboard = content()
    (panel,) = [panel for panel in dashboard["panels"] if panel["title"] == "Peers down"]
    panel.update(change)
    assert wrong(dashboard)
