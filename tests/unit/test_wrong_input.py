"""Whatever stands in a configuration file, an argument or an HTTP body: one clear line, never a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infiniswap.cli import device_serve
from infiniswap.cli import main as cli_main
from infiniswap.daemon import config as daemon_config
from infiniswap.daemon import main as daemon_main
from infiniswap.daemon import options as daemon_options
from infiniswap.device import config
from infiniswap.device import options as device_options
from infiniswap.shared import toml_file
from infiniswap.shared.errors import MESSAGE_CHARACTERS_MAX, ExitCode, UserError
from infiniswap.shared.http_server import HttpServer
from tests.support.applications import daemon_application, device_application

HUGE = 10**400
# TOML reads hexadecimal numbers of any length, which Python then refuses to print.
UNPRINTABLE = 1 << 20_000
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([HUGE, -HUGE, 1 << 63, 0, -1]),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(
        ["9" * 400, "1e400", "nan", "-inf", "64MiB", "0", "a:1", "[::1]:1", "\0", "/proc/version", "x" * 5000]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
device_keys = st.sampled_from([*device_options.OPTIONS.names, "name", "peer"]) | st.text(max_size=12)
daemon_keys = st.sampled_from(daemon_options.OPTIONS.names) | st.text(max_size=12)


def one_line(error: UserError) -> None:
    """What the user reads."""
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) <= 12 * MESSAGE_CHARACTERS_MAX


LOADERS: list[Callable[[Path], object]] = [
    lambda file: config.load_config("v", {}, file),
    lambda file: daemon_config.load_config({}, file),
]


def toml_keeps(table: dict[str, Any]) -> dict[str, Any]:
    """The table as read_toml lets it through; UserError."""
    try:
        toml_file._check_integers(table)
    except ValueError as error:
        raise UserError(str(error)) from None
    return table


@given(table=st.dictionaries(device_keys, values, max_size=6))
@example(table={"size": "1MiB", "backup": "b", "hot_page_ios": HUGE})
@example(table={"size": "1MiB", "backup": "b", "backup_depth": UNPRINTABLE})
@example(table={"size": "1MiB", "backup": "b", "peers": [[HUGE]]})
@settings(deadline=None)
def test_device_table(table: dict[str, Any]) -> None:
    """Any value for any option gives a device or one line."""
    table = {"size": "8MiB", "backup": "/b", **table}
    for given_table in (table, {key: value for key, value in table.items() if key != "name"}):
        try:
            config.load_config("vol", toml_keeps(dict(given_table)))
        except UserError as error:
            one_line(error)


@given(table=st.dictionaries(daemon_keys, values, max_size=6))
@example(table={"threads": HUGE})
@example(table={"lease_ttl_s": UNPRINTABLE})
@settings(deadline=None)
def test_daemon_table(table: dict[str, Any]) -> None:
    """Any value for any option gives a daemon or one line."""
    known = {key: value for key, value in table.items() if key in daemon_options.OPTIONS.names}
    try:
        daemon_config.load_config(toml_keeps({"memory": "8MiB", **known}))
    except UserError as error:
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "size = " + "9" * 400,
        "size = 0x" + "f" * 20_000,
        "peers = " + "[" * 5000,
        "peers = " + "[" * 600 + "1" + "]" * 600,
        "a." * 3000 + "b = 1",
        "size = 99999-99-99",
        'name = "\\ud800"',
        "\0",
        "\ufeffsize = 1",
        "size",
    ],
)
@pytest.mark.parametrize(
    "load", [lambda file: config.load_config("v", {}, file), lambda file: daemon_config.load_config({}, file)]
)
def test_file(text: str, load: Callable[[Path], object], tmp_path: Path) -> None:
    """Numbers, nesting and text beyond reason are told in one line, in files of both programs."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load(file)
    one_line(caught.value)


@pytest.mark.parametrize("path", ["/", "/proc/self/mem", "/dev/zero", "/nonexistent/x", "\0"])
@pytest.mark.parametrize(
    "load", [lambda file: config.load_config("v", {}, file), lambda file: daemon_config.load_config({}, file)]
)
def test_path_of_no_file(path: str, load: Callable[[Path], object]) -> None:
    """A configuration file that is none is told in one line."""
    with pytest.raises(UserError) as caught:
        load(Path(path))
    one_line(caught.value)


async def served(*_config: object) -> int:
    """Stands in for the service: the arguments were good."""
    return ExitCode.OK


def arguments_of(names: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    """Command lines with options that exist and some that do not, and values of any kind."""
    option = st.sampled_from(["--" + name.replace("_", "-") for name in (*names, "config", "log_level", "nosuch")])
    # A null cannot be in an argument; other odd characters can.
    value = scalars.map(lambda value: str(value).replace("\0", "")) | st.text(st.characters(exclude_characters="\0"))
    return st.lists(st.tuples(option, value), max_size=5).map(lambda pairs: [text for pair in pairs for text in pair])


def check_run(run: Callable[[list[str]], int], arguments: list[str]) -> None:
    """One line at most, and a code that is documented."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    assert code in set(ExitCode)
    said = stderr.getvalue()
    assert "Traceback" not in said
    assert said.count("\n") == (0 if code == ExitCode.OK else 1), said


@given(arguments=arguments_of(device_options.OPTIONS.names))
@example(arguments=["--backup", "/proc/version", "--size", "9" * 400])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_device_arguments(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any command line gives a device or one line."""
    monkeypatch.setattr(device_serve, "_serve", served)
    monkeypatch.setattr(device_serve, "start_logging", lambda *_: None)
    check_run(cli_main.run, ["device", "serve", "vol", "--size", "8MiB", "--backup", "/b", *arguments])


@given(arguments=arguments_of(daemon_options.OPTIONS.names))
@example(arguments=["--huge-pages", "\n"])  # an argument too many, with a line end in it
@example(arguments=["9" * 3000])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_daemon_arguments(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any command line gives a daemon or one line."""
    monkeypatch.setattr("infiniswap.daemon.service.serve", served)
    monkeypatch.setattr(daemon_main, "start_logging", lambda *_: None)
    check_run(daemon_main.run, ["--memory", "8MiB", *arguments])


class Collected(logging.Handler):
    """What is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def post(make: Callable[[], web.Application], pieces: list[bytes], *, reset: bool) -> bytes:
    """Send pieces to a server and end the connection; the answer, if there was one by then."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(make(), listening)
    await server.start()
    try:
        client = socket.create_connection(listening.getsockname())
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for piece in pieces:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(client, piece)
            for _ in range(10):
                await asyncio.sleep(0)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        answer = b""
        if not reset:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.05):
                    answer = await loop.sock_recv(client, 1 << 16)
        client.close()
        for _ in range(20):
            await asyncio.sleep(0)
        return answer
    finally:
        await server.close()


JSON = json.dumps({"device": "d", "size_bytes": 1, "slab_bytes": HUGE, "rate_bytes_s": [1]}).encode()
bodies = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"[" * 50_000, b'{"rate_bytes_s": ' + b"9" * 400 + b"}", b'{"size_bytes": ' + b"9" * 5000 + b"}", JSON]
    ),
    values.map(lambda value: json.dumps(value, default=str, ensure_ascii=False).encode(errors="surrogatepass")),
)


@given(
    path=st.sampled_from(["/v1/leases", "/v1/stop", "/v1/scrub", "/v1/leases/a/heartbeat"]),
    body=bodies,
    announced=st.integers(-1, 300) | st.just(None),
    chunked=st.booleans(),
    reset=st.booleans(),
)
@example(path="/v1/leases", body=b'{"a"', announced=100, chunked=False, reset=False)
@example(path="/v1/leases", body=b'{"a"', announced=100, chunked=False, reset=True)
@example(path="/v1/scrub", body=b'{"a"', announced=100, chunked=False, reset=True)
@example(path="/v1/leases", body=b"zz\r\n{}", announced=None, chunked=True, reset=False)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("make", [daemon_application, device_application])
def test_body(
    make: Callable[[], web.Application], path: str, body: bytes, announced: int | None, chunked: bool, reset: bool
) -> None:
    """Bodies that are no request, or cut off: an answer below 500 or none, and a line in the log for what is wrong."""
    length = len(body) if announced is None else announced
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n{how}\r\n\r\n".encode()
    log, logger = Collected(), logging.getLogger()
    logger.addHandler(log)
    try:
        answer = asyncio.run(post(make, [head, body], reset=reset))
    finally:
        logger.removeHandler(log)
    assert len(log.records) <= 2  # what is left of a body may pass for another request
    assert all(re.fullmatch("(refused a POST of|a client was dropped).*", said) for said in log.records), log.records
    assert not answer.startswith(b"HTTP/1.1 5"), answer
