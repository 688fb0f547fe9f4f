"""The part of a device's control API that changes what it goes by: its options and its peers."""

from __future__ import annotations

import math
from typing import Any, Protocol

from aiohttp import web

from infiniswap.device.changes import Changes
from infiniswap.device.membership import DEADLINE_S_DEFAULT, DEADLINE_S_MAX
from infiniswap.device.metrics import Metrics
from infiniswap.shared.address import CONTROL_PORT, HostPort, parse_host_port
from infiniswap.shared.errors import UserError
from infiniswap.shared.http_server import read_object


class Changeable(Protocol):
    """What is needed of the device."""

    metrics: Metrics
    changes: Changes


class ChangesApi:
    """Handlers of the calls."""

    def __init__(self, device: Changeable) -> None:
        """Nothing is changed before a call."""
        self._device = device

    def routes(self) -> list[web.RouteDef]:
        """For the application of the control API."""
        return [
            web.get("/v1/config", self.config),
            web.post("/v1/config", self.set),
            web.post("/v1/reload", self.reload),
            web.post("/v1/peers/add", self.add_peer),
            web.post("/v1/peers/remove", self.remove_peer),
        ]

    async def config(self, _request: web.Request) -> web.Response:
        """GET /v1/config: each option, what is in force and where it was stated."""
        changes = self._device.changes
        return web.json_response({**changes.settings.describe(), "discovery": changes.finder.snapshot()})

    async def set(self, request: web.Request) -> web.Response:
        """POST /v1/config {"option": NAME, "value": VALUE}; null: as files and command line have it."""
        content = await read_object(request)
        name = content.get("option")
        if not isinstance(name, str) or "value" not in content:
            raise UserError('"option" must be an option\'s name, and "value" its value or null')
        return web.json_response(self._device.changes.set(name, content["value"]))

    async def reload(self, request: web.Request) -> web.Response:
        """POST /v1/reload: read the files again; what has changed, and what needs a restart."""
        await read_object(request)
        return web.json_response(self._device.changes.reload())

    async def add_peer(self, request: web.Request) -> web.Response:
        """POST /v1/peers/add {"peer": HOST:PORT}; one that is a peer already stays one."""
        address = _address(await read_object(request))
        changed = await self._device.changes.add_peer(address)
        return web.json_response({"changed": changed, "peer": self._row(address)})

    async def remove_peer(self, request: web.Request) -> web.Response:
        """POST /v1/peers/remove {"peer": HOST:PORT, "deadline_s": SECONDS}; answers at once."""
        content = await read_object(request)
        address = _address(content)
        deadline_s = content.get("deadline_s", DEADLINE_S_DEFAULT)
        number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
        if not number or not math.isfinite(deadline_s) or not 0 <= deadline_s <= DEADLINE_S_MAX:
            raise UserError(f"deadline_s must be a number from 0 to {DEADLINE_S_MAX:g}")
        self._device.changes.remove_peer(address, float(deadline_s))
        return web.json_response({"changed": True, "peer": self._row(address)}, status=202)

    def _row(self, address: HostPort) -> dict[str, Any] | None:
        rows = self._device.metrics.peers()
        return next((row for row in rows if row["peer"] == str(address)), None)


def _address(content: dict[str, Any]) -> HostPort:
    value = content.get("peer")
    if not isinstance(value, str):
        raise UserError("peer must be HOST:PORT")
    return parse_host_port(value, "peer", default_port=CONTROL_PORT)
