"""The dashboard for Grafana: its queries, with the variables that Grafana fills in filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[2] / "packaging/grafana/infiniswap.json"
# What Grafana puts in their places: a rate's interval, and all of what can be chosen.
_FILLED = {"$__rate_interval": "1m", "$instance": ".*", "$device": ".*", "$donor": ".*"}


def content() -> dict[str, Any]:
    """All of it."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions(part: Any) -> Iterator[str]:
    """Every query of a part, those of variables, too, as they stand."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("expr", "query") and isinstance(value, str) and value != "prometheus":
                yield value
            yield from expressions(value)
    elif isinstance(part, list):
        for each in part:
            yield from expressions(each)


def queries() -> list[str]:
    """Those of the panels, each once, as Prometheus gets them."""
    found = []
    for expression in expressions(content()["panels"]):
        for variable, value in _FILLED.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901
        assert "$" not in expression, expression
        found.append(expression)
    return list(dict.fromkeys(found))
