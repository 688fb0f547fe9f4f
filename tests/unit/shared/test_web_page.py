"""The web page's server: read-only, only for who came by this host's own name, and it executes nothing foreign."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from infiniswap.nbd.sockets import open_tcp_socket
from infiniswap.shared import web_page
from infiniswap.shared.web_page import HEADERS, WebPage, host_is_ours, own_names, web_url
from tests.support.waiting import eventually

NAMES = frozenset({"localhost", "node1", "node1.example.org"})


class Counting:
    """A program that counts how often it is looked at."""

    def __init__(self) -> None:
        """Not yet."""
        self.looks = 0
        self.fails = False

    def sample(self) -> dict[str, Any]:
        if self.fails:
            raise RuntimeError("broken")
        return {"value": 1}

    def now(self) -> dict[str, Any]:
        self.looks += 1
        return {"looks": self.looks}


class Site:
    """The page of Counting, and a client of it."""

    def __init__(self, kind: str) -> None:
        """kind: as WebPage."""
        self.shown = Counting()
        self.page = WebPage(kind, self.shown, "127.0.0.1")
        listening = open_tcp_socket("127.0.0.1", 0)
        self.port = int(listening.getsockname()[1])
        self.url = web_url(listening)
        self.socket = listening

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        async with aiohttp.ClientSession() as session:
            async with session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers) as response:
                return response.status, await response.text(), dict(response.headers)

    async def view(self, query: str = "") -> dict[str, Any]:
        status, text, _ = await self.ask(f"/v1/view{query}")
        assert status == 200, text
        content = json.loads(text)
        assert isinstance(content, dict)
        return content


@pytest.fixture(params=["device", "donor"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """Both pages."""
    site = Site(request.param)
    await site.page.start(site.socket)
    yield site
    await site.page.close()


@pytest.mark.parametrize(
    "header",
    [
        "127.0.0.1",
        "127.0.0.1:7480",
        "[::1]:7480",
        "10.1.2.3:80",
        "localhost:1",
        "LOCALHOST",
        "node1",
        "Node1.example.org.:7480",
    ],
)
def test_own_hosts(header: str) -> None:
    """An address cannot be another site's name; names that are ours may be written as names may be."""
    assert host_is_ours(header, NAMES)


@pytest.mark.parametrize(
    "header",
    [
        *(
            "evil.example",
            "evil.example:7480",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "node1.evil.example",
        ),
        *(
            "",
            ":7480",
            "node1:",
            "node1:x",
            "node1:123456",
            "a@localhost",
            "localhost/",
            "local host",
            "[::1",
            "[node1]",
        ),
        *("127.0.0.1:1:2", "localhost\t", "localhost@evil.example", "127.1", "0x7f000001", "2130706433"),
    ],
)
def test_foreign_hosts(header: str) -> None:
    """What a page of another site could be called by, however it is disguised, and what is no host."""
    assert not host_is_ours(header, NAMES)


def test_names_of_this_host() -> None:
    """Its own name, long and short, and the one that it was told to listen on."""
    names = own_names("Web.Example.ORG")
    assert {"localhost", "web.example.org", socket.gethostname().lower()} <= names
    assert "" not in own_names("127.0.0.1")


async def test_another_sites_name_gets_nothing(site: Site) -> None:
    """No file and no number, where the name that was asked for is another's (DNS rebinding)."""
    for path in ("/", "/v1/view", "/style.css", "/nothing"):
        status, text, headers = await site.ask(path, Host="evil.example")
        assert (status, list(json.loads(text))) == (421, ["error"])
        assert headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    assert site.shown.looks == 0


async def test_every_answer_is_strict(site: Site) -> None:
    """Each file of the page comes with the same headers, and its type; the text itself holds no script and no style."""
    status, text, _ = await site.ask("/")
    assert status == 200
    assert "<script>" not in text
    assert "style=" not in text
    assert re.search(r"<[^>]* on[a-z]+=", text) is None
    for path in ("/", "/style.css", "/charts.js", "/icon.svg", "/v1/view", "/missing"):
        _, _, headers = await site.ask(path)
        assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    _, _, headers = await site.ask("/dom.js")
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_can_be_changed(site: Site, method: str) -> None:
    """Any other method than GET and HEAD is refused, for files as for numbers."""
    for path in ("/", "/v1/view"):
        status, text, headers = await site.ask(path, method)
        assert (status, json.loads(text)["error"], headers["Allow"]) == (405, "this page is read-only", "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/v1/stop", "/v1/metrics", "/../setup.py", "/%2e%2e/__init__.py", "/web/dom.js", "/dom.js/"]
)
async def test_nothing_else_is_served(site: Site, path: str) -> None:
    """There are the page's files and its view; a path never becomes a file's name."""
    assert (await site.ask(path))[0] == 404


async def test_only_what_is_new_travels(site: Site) -> None:
    """The second question gets what came since; after another life of the program, everything."""
    first = await site.view()
    assert (first["seq"], len(first["samples"])) == (1, 1)
    again = f"?after={first['seq']}&epoch={first['epoch']}"
    assert (await site.view(again))["samples"] == []
    site.page.take_sample()
    assert [sample["seq"] for sample in (await site.view(again))["samples"]] == [2]
    assert len((await site.view("?after=2&epoch=other"))["samples"]) == 2


@pytest.mark.parametrize("query", ["?after=-1", "?after=x", "?after=1e3", "?after=" + "9" * 30])
async def test_what_is_no_number(site: Site, query: str) -> None:
    """One sentence says what was wanted."""
    status, text, _ = await site.ask(f"/v1/view{query}")
    assert (status, json.loads(text)) == (400, {"error": "after must be a whole number, not negative"})


async def test_many_readers_cost_what_one_does(site: Site) -> None:
    """Between two samples the program is looked at once, however many ask."""
    await asyncio.gather(*(site.view() for _ in range(20)))
    assert site.shown.looks == 1
    site.page.take_sample()
    await site.view()
    assert site.shown.looks == 2


async def test_numbers_that_cannot_be_taken(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The page goes on with the last ones, and the log says why."""
    site.shown.fails = True
    site.page.take_sample()
    assert (await site.view())["seq"] == 1
    assert "the web page's numbers cannot be taken" in caplog.text


async def test_samples_come_by_themselves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to look for the history to be there."""
    monkeypatch.setattr(web_page, "INTERVAL_S", 0.01)
    other = Site("device")
    await other.page.start(other.socket)
    try:
        await eventually(lambda: other.page.samples > 5, "samples")
    finally:
        await other.page.close()


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has let go of it."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def test_connections_that_say_nothing_keep_nobody_out(site: Site) -> None:
    """At the limit the one that was idle longest gives way; there are never more than so many."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(web_page.CONNECTIONS_MAX):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", site.port))))
            held[-1].sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # and never the rest
            held[-1].setblocking(False)
        assert (await site.ask("/"))[0] == 200
        await eventually(lambda: is_closed(held[0]), "the oldest makes room")
        assert not any(is_closed(sock) for sock in held[2:])
