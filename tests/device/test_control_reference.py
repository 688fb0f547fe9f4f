"""docs/control-api.md is the reference of both HTTP APIs: every route, every field of their answers, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aiohttp import web

from infiniswap.daemon.operator_api import OperatorApi
from infiniswap.shared.messages import Beat, Granted, Life, Mapped
from infiniswap.shared.path_messages import Region
from infiniswap.shared.stream_messages import ActivityAnswer, Ask, Echo, Evict, Noticed, Policy, StreamBeat, Taken
from tests.support.applications import daemon_application, device_application
from tests.support.services import Services
from tests.support.waiting import wait_for

# Objects whose keys are names of what is counted (docs/metrics.md), of modules, or numbers.
COUNTED = {"counters", "counts", "engine", "failures", "evictions", "levels", "histograms_ns"}
ROOTS_ALONE = {"nbd", "nbd_connections", "nbd_dead", "nbd_replaced"}  # only a service of root's looks after those


def parts(root: Path) -> tuple[str, str]:
    """The daemon's half of the page and the device's."""
    text = (root / "docs/control-api.md").read_text()
    daemon, device = text.split("\n# The device's control API\n")
    return daemon.split("\n# The daemon's control API\n")[1], device


def documented_routes(text: str) -> set[str]:
    """METHOD /path of each call in the first column of a table; paths of a lease stand below theirs."""
    found = set()
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        below = "/v1/leases/{id}" if section.startswith("About a lease") else ""
        for row in re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE):
            for method, path in re.findall(r"`(GET|POST|PUT|DELETE)(?: (/[^`? ]*))?[^`]*`", row):
                found.add(f"{method} {below}{path}")
    return found


def routes(*applications: web.Application) -> set[str]:
    """What the programs serve."""
    found = set()
    for application in applications:
        for route in application.router.routes():
            assert route.resource is not None
            if route.method != "HEAD":
                found.add(f"{route.method} {route.resource.canonical}".replace("{lease}", "{id}"))
    return found


def operator_application() -> web.Application:
    """The calls for administrators."""
    application, api = web.Application(), OperatorApi.__new__(OperatorApi)
    application.add_routes(api.routes())
    return application


def words(text: str) -> set[str]:
    """All that stands in code on the page, names apart."""
    return {word for code in re.findall(r"`([^`]*)`", text) for word in re.findall(r"[a-z0-9_]+", code)}


def keys(answer: object) -> set[str]:
    """Every key of an answer, inner ones too, but for those that are names of what is counted."""
    if isinstance(answer, list):
        return {key for item in answer for key in keys(item)}
    if not isinstance(answer, dict):
        return set()
    return set(answer) | {key for name, item in answer.items() if name not in COUNTED for key in keys(item)}


def column(text: str, heading: str) -> set[str]:
    """The fields in the first column of the table with that heading."""
    table = text[text.index(f"| {heading} |") :]
    rows = table[: table.index("\n\n")] if "\n\n" in table else table
    return {name for row in rows.splitlines()[2:] for name in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1])}


def test_routes(root: Path) -> None:
    """Each route of the programs is on the page, and nothing that they do not serve."""
    daemon, device = parts(root)
    assert documented_routes(device) == routes(device_application())
    served = routes(daemon_application(), operator_application())
    assert documented_routes(daemon) == served


def test_fields_of_a_device(root: Path, services: Services) -> None:
    """Each field that a running device answers is on the page, and each that the tables name is answered."""
    daemon = services.daemon("32MiB")
    device = services.device("vol", "--map", "eager", peers=[daemon.address])
    with device.connect() as client:
        client.write(0, b"x" * 4096)
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"], what="a mapped slab")
    text = parts(root)[1]
    known = words(text)
    for path, heading in (
        ("status", "field of the status"),
        ("slabs", "field of a slab"),
        ("peers", "field of a peer"),
        ("stats", "field of the stats"),
        ("scrub", "field of a scrub"),
    ):
        answer: Any = device.get(f"/v1/{path}")
        assert not keys(answer) - known, f"/v1/{path} answers fields that docs/control-api.md does not know"
        first = answer[0] if isinstance(answer, list) else answer
        assert column(text, heading) ^ set(first) <= ROOTS_ALONE, path
    snapshot = device.get("/v1/snapshot?cells=4")
    assert set(snapshot) <= known
    assert "levels" in device.get("/v1/log-level")


def test_fields_of_a_daemon(root: Path, services: Services) -> None:
    """The same of a running daemon: what it offers, grants and tells of a lease, and how it stands."""
    daemon = services.daemon("32MiB")
    text = parts(root)[0]
    known = words(text)
    for path in ("health", "offer", "stats", "status", "log-level"):
        answer = daemon.get(f"/v1/{path}")
        inner = keys(answer) if path != "stats" else set(answer)
        assert not inner - known, f"/v1/{path} answers fields that docs/control-api.md does not know"
    assert column(text, "field of the status") == set(daemon.get("/v1/status"))
    row = next(line for line in text.splitlines() if line.startswith("| `GET /v1/stats`"))
    assert words(row.split("|")[2]) - {"metrics", "md"} == set(daemon.get("/v1/stats"))


def test_fields_of_a_stream(root: Path) -> None:
    """Each message of a lease's stream stands in the tables with exactly its fields."""
    text = parts(root)[0]
    said: list[Any] = [StreamBeat(1, "i", 1.0, 1), Evict(1, (1,), 5), Ask(1, (1,), 5), Taken((1,)), Policy(True, False)]
    heard: list[Any] = [Echo(1), Noticed(1, (1,), ()), ActivityAnswer(1, {1: 1.0})]
    tables = text[text.index("The daemon tells:") : text.index("Who does what when")]
    told, answers = tables.split("The device tells:")
    for part, messages in ((told, said), (answers, heard)):
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", part, re.MULTILINE))
        assert rows.pop("type") == "fields"
        assert len(rows) == len(messages)
        for message in messages:
            content = message.as_json()
            kind = content.pop("type")
            assert words(rows[kind]) == set(content), kind


def test_fields_of_a_lease(root: Path) -> None:
    """What a lease, a heartbeat, a slab and a path are answered with stands in their rows."""
    text = parts(root)[0]
    life, region = Life("i", 10.0, 10.0), Region(1, 2)
    granted = Granted("l", "t", "e", ("h", 1), None, life, no_rdma="none")
    beat = Beat(frozenset({1}), 5).as_json(life)
    for beginning, answer in (("| `POST /v1/leases`", granted.as_json()), ("| `POST /heartbeat`", beat)):
        row = next(line for line in text.splitlines() if line.startswith(beginning))
        assert set(answer) <= words(row), beginning
    assert keys(Mapped(5, region).as_json(4)) <= words(text)
