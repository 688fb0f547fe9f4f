"""The control API of a device with shards: each call is put to all of them, and their answers made one.

Looking on does with those that answer; a change needs all of them, so that they never go by different options.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from infiniswap.device import events_api, traces
from infiniswap.device import shards_metrics as metrics
from infiniswap.device import shards_sums as sums
from infiniswap.device.control_api import BODY_BYTES_MAX, errors_as_json
from infiniswap.device.settings import Settings
from infiniswap.device.shards import OWN_OPTIONS, shard_socket
from infiniswap.device.snapshot import CELLS_DEFAULT, CELLS_MAX
from infiniswap.shared import log_api
from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import METRICS_CONTENT_TYPE, read_object
from infiniswap.shared.slab_choice import SlabChoice

if TYPE_CHECKING:
    from infiniswap.device.shards_serve import Parent, Shard

ANSWER_TIMEOUT_S = 1.0  # half of what the most impatient of those who look on waits (cli/top/sampler.py)
CHANGE_TIMEOUT_S = 15.0
Ask = Callable[[DeviceClient], Any]


class ShardsApi:
    """Handlers of the calls."""

    def __init__(self, parent: Parent) -> None:
        """Nothing is asked before a call."""
        self._parent = parent
        self._settings = Settings(parent.described)

    def application(self) -> web.Application:
        """The aiohttp application with all routes."""
        app = web.Application(middlewares=[errors_as_json], client_max_size=BODY_BYTES_MAX)
        every = [web.post(path, self._change) for path in ("/v1/config", "/v1/reload", log_api.PATH)]
        every += [web.post(path, self._change_peers) for path in ("/v1/peers/add", "/v1/peers/remove")]
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/slabs", self._slabs),
                web.get("/v1/peers", self._peers),
                web.get("/v1/stats", self._stats),
                web.get("/v1/snapshot", self._snapshot),
                web.get("/v1/config", self._config),
                web.get("/v1/scrub", self._scrub),
                web.post("/v1/scrub", self._scrub),
                web.delete("/v1/scrub", self._scrub),
                web.get(log_api.PATH, self._log_levels),
                web.post("/v1/stop", self._stop),
                *every,
                web.get(events_api.PATH, self._events),
                web.get("/v1/metrics", self._metrics),
                web.get(traces.PATH, self._traces),
                web.post(traces.PATH, self._remember),
            ]
        )
        return app

    async def _ask(self, ask: Ask, *, all_of_them: bool = False) -> list[tuple[Shard, Any]]:
        """Answers of those that serve or stop, in order; UserError where none answers, or all have to and one does not.

        One that stops tells of itself to its end, as a device does; changes it takes none.
        """
        limit_s = CHANGE_TIMEOUT_S if all_of_them else ANSWER_TIMEOUT_S

        def one(shard: Shard) -> tuple[Shard, Any] | UserError:
            try:
                runtime_dir = self._parent.config.runtime_dir
                with DeviceClient(shard.name, runtime_dir, limit_s, silence_s=limit_s) as control:
                    return shard, ask(control)
            except UserError as error:
                return error

        shards = self._parent.shards
        if all_of_them and self._parent.stopping.is_set():
            raise UserError("it is stopping, and takes no changes; start it again first", ExitCode.FAILED)
        dead = [shard for shard in shards if not shard.runs]
        if dead and all_of_them:
            raise UserError(f"'{dead[0].name}' does not serve ({dead[0].why}); try again when it does", ExitCode.FAILED)
        if all_of_them:
            await self._answers_of_all()
        running = [shard for shard in shards if shard not in dead]
        found = await asyncio.gather(*(asyncio.to_thread(one, shard) for shard in running))
        wrong = [each for each in found if isinstance(each, UserError)]
        good = [each for each in found if not isinstance(each, UserError)]
        if wrong and (all_of_them or not good):
            raise wrong[0]
        if not good:
            whys = ", ".join(f"{shard.name}: {shard.why or shard.state}" for shard in dead)
            if self._parent.stopping.is_set():
                raise UserError(f"it is stopping, and none of its shards runs any more ({whys})", ExitCode.FAILED)
            raise UserError(f"none of its shards serves now ({whys}); each is started again and again", ExitCode.FAILED)
        return good

    async def _answers_of_all(self) -> None:
        """UserError where one of them is silent: a change would be made by the others alone, and by that one later."""

        def look(shard: Shard) -> UserError | None:
            runtime_dir, limit_s = self._parent.config.runtime_dir, ANSWER_TIMEOUT_S
            try:
                with DeviceClient(shard.name, runtime_dir, limit_s, silence_s=limit_s) as control:
                    control.get(log_api.PATH)
            except UserError as error:
                return error
            return None

        found = await asyncio.gather(*(asyncio.to_thread(look, shard) for shard in self._parent.shards))
        if wrong := [error for error in found if error is not None]:
            raise wrong[0]

    async def _statuses(self) -> list[tuple[Shard, Any]]:
        """Of those that answer, if any: what the parent itself knows can always be told."""
        try:
            return await self._ask(lambda control: control.get("/v1/status"))
        except UserError:
            return []

    async def _all(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> list[Any]:
        def ask(control: DeviceClient) -> Any:
            if method == "POST":
                return control.post(path, body)
            return control.delete(path) if method == "DELETE" else control.get(path)

        return [answer for _, answer in await self._ask(ask, all_of_them=method != "GET")]

    def _whole(self, parts: list[tuple[Shard, Any]]) -> dict[str, Any]:
        """Status of all, out of those that answered."""
        parent, config, answered = self._parent, self._parent.config, dict(parts)
        rows = []
        for shard in parent.shards:
            told = answered.get(shard, {})
            state = told.get("state") or ("silent" if shard.runs else shard.state)
            keys = ("pid", "uri", "connections", "mapped_slabs", "backup", "nbd")
            row = {"name": shard.name, "state": state, **{key: told.get(key) for key in keys}, "why": shard.why}
            rows.append({**row, "socket": str(shard_socket(config, shard.number))})
        serving = all(row["state"] == "serving" for row in rows)
        own = {
            "name": config.name,
            "pid": os.getpid(),
            "size_bytes": config.size_bytes,
            "slabs": config.slabs,
            "slab_bytes": config.slab_bytes,
            "backup": str(config.backup),
            "state_dir": str(config.device_dir),
            "config_file": self._settings.file,
            "uptime_s": round(asyncio.get_running_loop().time() - parent.begun_s, 3),
            "state": "stopping" if parent.stopping.is_set() else "serving" if serving else "failing",
            "shards": rows,
        }
        return sums.status([answer for _, answer in parts], own)

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._whole(await self._statuses()))

    async def _slabs(self, request: web.Request) -> web.Response:
        try:
            choice = SlabChoice.parse(request.query)
        except ValueError as error:
            raise web.HTTPBadRequest(reason=str(error)) from None
        each = self._parent.config.slabs // self._parent.config.shards
        found = dict(await self._ask(lambda control: control.get("/v1/slabs" + choice.as_query())))
        parts = [found.get(shard, []) for shard in self._parent.shards]
        return web.json_response(sums.slabs(parts, [each] * len(parts), choice))

    async def _peers(self, _request: web.Request) -> web.Response:
        return web.json_response(sums.peers(await self._all("GET", "/v1/peers")))

    async def _snapshots(self, cells: int) -> list[tuple[Shard, Any]]:
        each = max(1, cells // len(self._parent.shards))
        return await self._ask(lambda control: control.get(f"/v1/snapshot?cells={each}"))

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response(sums.stats([answer for _, answer in await self._snapshots(1)]))

    async def _snapshot(self, request: web.Request) -> web.Response:
        asked = request.query.get("cells", str(CELLS_DEFAULT))
        if not (asked.isascii() and asked.isdigit() and len(asked) < 8 and 1 <= int(asked) <= CELLS_MAX):
            raise web.HTTPBadRequest(reason=f"cells must be a whole number from 1 to {CELLS_MAX}")
        found = await self._snapshots(int(asked))
        whole = self._whole([(shard, answer["status"]) for shard, answer in found])
        return web.json_response(sums.snapshot([answer for _, answer in found], whole))

    async def _config(self, _request: web.Request) -> web.Response:
        part = (await self._all("GET", "/v1/config"))[0]
        return web.json_response(sums.config(part, self._settings.describe()))

    async def _scrub(self, request: web.Request) -> web.Response:
        body = await read_object(request) if request.method == "POST" else None
        answers = await self._all(request.method, "/v1/scrub", body)
        return web.json_response(sums.scrub(answers), status=202 if request.method == "POST" else 200)

    async def _change(self, request: web.Request) -> web.Response:
        found = sums.changes(await self._all("POST", request.path, await read_object(request)))
        if request.path == "/v1/reload":  # what the shards were told by their parent, no file tells them
            read = self._settings.read_again()
            rows = [each for each in self._settings.differences(read) if each.option in OWN_OPTIONS and not each.live]
            found["restart"] += [
                {"option": each.option, "before": each.before, "after": each.after, "where": each.where}
                for each in rows
            ]
        return web.json_response(found)

    async def _change_peers(self, request: web.Request) -> web.Response:
        answers = await self._all("POST", request.path, await read_object(request))
        rows = [answer["peer"] for answer in answers if answer["peer"] is not None]
        peer = sums.peers([[row] for row in rows])[0] if rows else None
        return web.json_response({"changed": any(answer["changed"] for answer in answers), "peer": peer})

    async def _log_levels(self, _request: web.Request) -> web.Response:
        return web.json_response((await self._all("GET", log_api.PATH))[0])

    async def _stop(self, _request: web.Request) -> web.Response:
        self._parent.request_stop("asked for through the control socket")
        return web.json_response({"state": "stopping"}, status=202)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return await events_api.serve_events(request, self._parent.news.hub)

    async def exposition(self) -> bytes:
        """For Prometheus: of those that answer, and of all how they are."""
        parent = self._parent
        try:
            found = await self._ask(lambda control: control.get_text("/v1/metrics"))
        except UserError:
            found = []  # that none serves is told by the rows
        answered = dict(found)
        rows = [(shard.name, shard in answered, shard.restarts) for shard in parent.shards]
        return metrics.merged([metrics.of_parent(parent.config.name, rows), *(text for _, text in found)]).encode()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=await self.exposition(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _traces(self, request: web.Request) -> web.Response:
        """The cursor has a number of each shard, with its life: one that was started again counts from 1."""
        shards, most = self._parent.shards, traces.whole_number(request, "most")
        lives = [shard.restarts for shard in shards]
        cursor = _cursor(request.query.get("after"), len(shards))
        after = {
            shard.name: number if life == restarts else 0
            for shard, restarts, (life, number) in zip(shards, lives, cursor, strict=True)
        }
        found = dict(await self._ask(lambda control: control.get(f"{traces.PATH}?after={after[control.name]}")))
        each = self._parent.config.size_bytes // len(shards)
        parts = [(shard.name, shard.number * each, answer) for shard, answer in found.items()]
        reached = [
            (restarts, sums.traced(found[shard], after[shard.name])) if shard in found else at
            for shard, restarts, at in zip(shards, lives, cursor, strict=True)
        ]
        return web.json_response(
            {
                "slower_than_us": max(answer["slower_than_us"] for answer in found.values()),
                "requests": sums.traces(parts, most),
                "next": ",".join(f"{life}.{number}" for life, number in reached),
            }
        )

    async def _remember(self, request: web.Request) -> web.Response:
        return web.json_response((await self._all("POST", traces.PATH, await read_object(request)))[0])


def _cursor(text: str | None, shards: int) -> list[tuple[int, int]]:
    """Life and number of each shard, out of what an earlier answer called next."""
    if text is None:
        return [(0, 0)] * shards
    if not re.fullmatch(f"[0-9]{{1,9}}[.][0-9]{{1,18}}(,[0-9]{{1,9}}[.][0-9]{{1,18}}){{{shards - 1}}}", text):
        raise web.HTTPBadRequest(reason="'after' must be what an earlier answer of this device called 'next'")
    return [(int(life), int(number)) for life, _, number in (each.partition(".") for each in text.split(","))]
