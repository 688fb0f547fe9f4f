"""A web page that shows one program and changes nothing: its files, one JSON view, and who may ask for them.

Whoever reaches the address may read it. A browser that is led here by another site's name (DNS rebinding) may not: the
Host header must be an IP address, or a name that this host is known by. The page needs nothing from anywhere else, and
its Content-Security-Policy forbids all but its own files, scripts in the text and text taken for HTML.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import ipaddress
import json
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

from aiohttp import web

from infiniswap.shared.address import HostPort
from infiniswap.shared.history import History, Sample
from infiniswap.shared.http_server import HttpServer

log = logging.getLogger(__name__)

INTERVAL_S = 2.0  # between two samples, and between two questions of the page
SAMPLES_MAX = 300  # ten minutes
CONNECTIONS_MAX = 64  # a browser opens up to six
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
COMMON_FILES = ("charts.js", "dom.js", "follow.js", "heat.js", "icon.svg", "style.css")
_AFTER = re.compile(r"[0-9]{1,15}", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Shown(Protocol):
    """What the page shows."""

    def sample(self) -> Sample:
        """Numbers of the interval since the last call."""

    def now(self) -> dict[str, Any]:
        """How things stand."""


def web_url(listening: socket.socket) -> str:
    """Where the page of a listening socket is."""
    return f"http://{HostPort(*listening.getsockname()[:2])}/"


def own_names(listen_host: str) -> frozenset[str]:
    """Names, in small letters, by which a browser may call this host."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, name.partition(".")[0], listen_host.lower().rstrip(".")})


def host_is_ours(header: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an IP address or one of names, with or without a port."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?", header)
    if found is None:
        return False
    host = found.group(1).lower().strip("[]").rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in names
    return True


def _error(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


class WebPage:
    """The page of one program, on one listening socket."""

    def __init__(self, kind: str, shown: Shown, listen_host: str) -> None:
        """kind: whose page, 'device' or 'donor': KIND.html, KIND.js and their common files are served."""
        folder = importlib.resources.files("infiniswap").joinpath("web")
        files = {f"/{name}": folder.joinpath(name).read_bytes() for name in (*COMMON_FILES, f"{kind}.js")}
        self._files = {"/": folder.joinpath(f"{kind}.html").read_bytes(), **files}
        self._shown = shown
        self._names = own_names(listen_host)
        self._history = History(SAMPLES_MAX)
        self._epoch = secrets.token_hex(8)  # numbers of samples are of this life of the program
        self._now: tuple[int, str] = (-1, "")  # made at most once an interval, however many look
        self._server: HttpServer | None = None
        self._sampling: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """The aiohttp application with all routes, GET and HEAD alone."""
        app = web.Application(middlewares=[self._guard], client_max_size=1)
        app.add_routes([web.get(path, self._file) for path in self._files])
        app.router.add_get("/v1/view", self._view)
        return app

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket, which is closed with the page."""
        self.take_sample()
        self._server = HttpServer(self.application(), sock, connections_max=CONNECTIONS_MAX)
        await self._server.start()
        self._sampling = asyncio.create_task(self._sample(), name="web page")

    async def close(self) -> None:
        """Stop serving."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait({self._sampling})
            self._sampling = None
        if self._server is not None:
            await self._server.close()
            self._server = None

    @property
    def samples(self) -> int:
        """How many were taken."""
        return self._history.last

    def take_sample(self) -> None:
        """Add to the history; what fails is said in the log, and the page shows the last that worked."""
        try:
            self._history.add(self._shown.sample())
        except Exception:
            log.exception("the web page's numbers cannot be taken")

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.take_sample()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn away whom another site's name led here; put the headers on every answer."""
        response = await self._answer(request, handler)
        response.headers.update(HEADERS)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not host_is_ours(hosts[0], self._names):
            return _error(421, "this host is not known by that name: open the page by its IP address or host name")
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed:
            response = _error(405, "this page is read-only")
            response.headers["Allow"] = "GET, HEAD"
            return response
        except web.HTTPException as error:
            return _error(error.status, "there is nothing at this path" if error.status == 404 else error.reason)
        except Exception:
            log.exception("%s of the web page failed", request.method)
            return _error(500, "internal error")

    async def _file(self, request: web.Request) -> web.Response:
        kind = "html" if request.path == "/" else request.path.rpartition(".")[2]
        return web.Response(body=self._files[request.path], content_type=TYPES[kind], charset="utf-8")

    async def _view(self, request: web.Request) -> web.Response:
        """GET /v1/view?after=N&epoch=E: how things stand, and the samples after number N of life E of this program."""
        after = request.query.get("after", "0")
        if _AFTER.fullmatch(after) is None:
            return _error(400, "after must be a whole number, not negative")
        known = int(after) if request.query.get("epoch") == self._epoch else 0
        if self._now[0] != self._history.last:
            self._now = (self._history.last, json.dumps(self._shown.now(), allow_nan=False))
        head = json.dumps({"epoch": self._epoch, "seq": self._history.last, "interval_s": INTERVAL_S})
        samples = json.dumps(self._history.after(known), allow_nan=False)
        text = f'{head[:-1]}, "now": {self._now[1]}, "samples": {samples}}}'
        return web.Response(text=text, content_type="application/json")


async def serve_page(
    kind: str, shown: Shown, listening: socket.socket, stack: AsyncExitStack, address: HostPort | None
) -> None:
    """Serve the page on a listening socket, as --web named it, until stack unwinds."""
    page = WebPage(kind, shown, "" if address is None else address.host)
    stack.push_async_callback(page.close)
    await page.start(listening)
    log.info("web page at %s", web_url(listening))
