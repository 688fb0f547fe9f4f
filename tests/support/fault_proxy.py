"""A network between a device and its daemons that cuts, stalls, delays, lies, records and replays on command.

It is a process of its own.

The device is given the proxy's address of each daemon. The proxy learns from the daemon's answers where pages go, opens
a port of its own for them and puts it into the answer in place of the daemon's. TCP alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

from tests.support.tap import Tap

HOST = "127.0.0.1"
COMMAND_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20  # held in the proxy for a side that does not read
_PAYLOAD_BYTES_MAX = 64 << 20
_ROOT = Path(__file__).resolve().parents[2]
_PAGE_ADDRESS = re.compile(rb'("address": ?\["127\.0\.0\.1", ?)(\d{5})(\])')
_CONTROL_REQUEST = re.compile(rb"(?:GET|POST|PUT|DELETE|PATCH) /v1")
# Of the NBD protocol (doc/proto.md).
_GREETING, _OPTION, _OPTION_REPLY = struct.Struct(">QQH"), struct.Struct(">QII"), struct.Struct(">QIII")
_REQUEST, _REPLY = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_GO, _ACK, _READ, _WRITE = 7, 1, 0, 1
_NO_COOKIE = 0x7E11_7E11_7E11_7E11
_EIO = 5


@dataclass
class Faults:
    """What the network does to one daemon's connections; 0: nothing of the kind."""

    stall_up: bool = False  # nothing passes from device to daemon; what was sent is held
    stall_down: bool = False
    refuse: bool = False  # new connections end at once
    slow_every: int = 0  # one page reply of so many waits slow_ms, with all behind it
    slow_ms: int = 0
    control_ms: int = 0  # each answer of the control API waits so long
    flip_every: int = 0  # one page read of so many comes with a bit flipped
    flip_up_every: int = 0  # one page written of so many arrives with a bit flipped
    length_every: int = 0  # one page read of so many is 16 bytes too short or too long
    error_every: int = 0  # one page reply of so many says EIO
    unasked_every: int = 0  # before one reply of so many comes one that nobody asked for
    control_nth: int = 0  # the connection that carries the Nth control request from now is cut
    page_nth: int = 0  # likewise page requests


@dataclass
class _Link:
    target: tuple[str, int]
    random: Random
    faults: Faults = field(default_factory=Faults)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    servers: list[asyncio.Server] = field(default_factory=list)
    page_ports: dict[int, int] = field(default_factory=dict)  # the daemon's -> ours
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> int:
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]

    def due(self, every: int, what: str) -> bool:
        """Whether chance takes this one, one of every; counted when it does."""
        if every and self.random.randrange(every) == 0:
            self.count(what)
            return True
        return False

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def passable(self, up: bool) -> None:
        while self.faults.stall_up if up else self.faults.stall_down:
            self.changed.clear()
            await self.changed.wait()


class _Connection:
    """One connection through a link."""

    def __init__(self, link: _Link, near: tuple[Any, Any], far: tuple[Any, Any]) -> None:
        self.link = link
        self.near_in, self.near_out = near
        self.far_in, self.far_out = far
        self.reads: dict[int, int] = {}  # bytes that the reply to each READ carries, by cookie

    async def send(self, data: bytes, up: bool) -> None:
        await self.link.passable(up)
        writer = self.far_out if up else self.near_out
        writer.write(data)
        await writer.drain()

    async def control_up(self) -> None:
        while data := await self.near_in.read(_CHUNK_BYTES):
            for _ in _CONTROL_REQUEST.findall(data):
                self.link.count("control_requests")
                if self._nth("control_nth"):
                    return
            await self.send(data, True)

    async def control_down(self, page_port: Callable[[_Link, int], Any]) -> None:
        while data := await self.far_in.read(_CHUNK_BYTES):
            if self.link.faults.control_ms:
                await asyncio.sleep(self.link.faults.control_ms / 1000)
            if found := _PAGE_ADDRESS.search(data):
                port = b"%d" % await page_port(self.link, int(found[2]))
                if len(port) != len(found[2]):
                    raise OSError("this host's ephemeral ports are of different lengths")
                data = data[: found.start(2)] + port + data[found.end(2) :]
            await self.send(data, False)

    async def pages_up(self) -> None:
        await self.send(await self.near_in.readexactly(4), True)
        option = -1
        while option != _GO:
            header = await self.near_in.readexactly(_OPTION.size)
            _, option, length = _OPTION.unpack(header)
            await self.send(header + await self.near_in.readexactly(_bounded(length)), True)
        while True:
            header = await self.near_in.readexactly(_REQUEST.size)
            magic, _, kind, cookie, _, length = _REQUEST.unpack(header)
            if magic != _REQUEST_MAGIC:
                raise OSError("the device does not speak NBD")
            payload = bytearray(await self.near_in.readexactly(_bounded(length)) if kind == _WRITE else b"")
            if kind == _READ:
                self.reads[cookie] = length
            self.link.count("page_requests")
            if self._nth("page_nth"):
                return
            if payload and self.link.due(self.link.faults.flip_up_every, "flipped_up"):
                self._flip(payload)
            await self.send(header + payload, True)

    async def pages_down(self) -> None:
        await self.send(await self.far_in.readexactly(_GREETING.size), False)
        option, reply = -1, -1
        while (option, reply) != (_GO, _ACK):
            header = await self.far_in.readexactly(_OPTION_REPLY.size)
            _, option, reply, length = _OPTION_REPLY.unpack(header)
            await self.send(header + await self.far_in.readexactly(_bounded(length)), False)
        while True:
            header = await self.far_in.readexactly(_REPLY.size)
            magic, error, cookie = _REPLY.unpack(header)
            if magic != _REPLY_MAGIC:
                raise OSError("the daemon does not speak NBD")
            length = self.reads.pop(cookie, 0)
            payload = bytearray(b"" if error else await self.far_in.readexactly(_bounded(length)))
            await self._lie(error, cookie, payload)

    async def _lie(self, error: int, cookie: int, payload: bytearray) -> None:
        """Pass one reply on, with what the faults make of it."""
        link, faults = self.link, self.link.faults
        if link.due(faults.slow_every, "slowed"):
            await asyncio.sleep(faults.slow_ms / 1000)
        if link.due(faults.unasked_every, "unasked"):
            await self.send(_REPLY.pack(_REPLY_MAGIC, 0, _NO_COOKIE), False)
        if link.due(faults.error_every, "errors"):
            error, payload = _EIO, bytearray()
        if payload and link.due(faults.flip_every, "flipped"):
            self._flip(payload)
        if payload and link.due(faults.length_every, "wrong_lengths"):
            payload = payload[:-16] if link.random.random() < 0.5 else payload + bytes(16)
        await self.send(_REPLY.pack(_REPLY_MAGIC, error, cookie) + payload, False)

    def _flip(self, payload: bytearray) -> None:
        payload[self.link.random.randrange(len(payload))] ^= 1 << self.link.random.randrange(8)

    def _nth(self, name: str) -> bool:
        """Count one down; at the last one the connection ends."""
        left = getattr(self.link.faults, name)
        if left:
            setattr(self.link.faults, name, left - 1)
        if left == 1:
            self.link.count(f"{name}_cut")
            self.near_out.transport.abort()
            self.far_out.transport.abort()
        return bool(left == 1)


def _bounded(length: int) -> int:
    if length > _PAYLOAD_BYTES_MAX:
        raise OSError("a length beyond reason")
    return length


class _Proxy:
    """The process: links by name, and the commands that change them."""

    def __init__(self) -> None:
        self.links: dict[str, _Link] = {}
        self.taps: dict[str, Tap] = {}

    async def tap(self, name: str, host: str, port: int) -> int:
        """The port where a new tap listens."""
        tap = self.taps[name] = Tap((host, port))
        server = await asyncio.start_server(tap.serve, HOST, 0)
        return int(server.sockets[0].getsockname()[1])

    async def link(self, name: str, host: str, port: int, seed: int) -> int:
        """A new link, or another target for an old one; the port that the device is to be given."""
        if name in self.links:
            self.links[name].target = (host, port)
            return int(self.links[name].servers[0].sockets[0].getsockname()[1])
        link = self.links[name] = _Link((host, port), Random(seed))
        return await self._listen(link, None)

    async def page_port(self, link: _Link, port: int) -> int:
        """Our port for the daemon's port of pages."""
        if port in link.page_ports.values():
            return port
        if port not in link.page_ports:
            link.page_ports[port] = await self._listen(link, port)
        return link.page_ports[port]

    async def _listen(self, link: _Link, page_port: int | None) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._serve(link, page_port, reader, writer)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, HOST, 0, limit=_BUFFER_BYTES)
        link.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(
        self, link: _Link, page_port: int | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if link.faults.refuse:
            return
        host, port = link.target
        try:
            far = await asyncio.open_connection(host, page_port or port, limit=_BUFFER_BYTES)
        except OSError:
            return
        connection = _Connection(link, (reader, writer), far)
        link.writers |= {writer, far[1]}
        up = connection.control_up() if page_port is None else connection.pages_up()
        down = connection.control_down(self.page_port) if page_port is None else connection.pages_down()
        pumps = {asyncio.create_task(up), asyncio.create_task(down)}
        done, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # What the one side sent before it ended still reaches the other, unless the link holds it.
        for task in left:
            task.cancel()
        await asyncio.wait(pumps)
        for task in done:
            if not task.cancelled() and not isinstance(task.exception(), OSError | EOFError | None):
                sys.stderr.write(f"fault proxy: {task.exception()!r}\n")
        link.writers -= {writer, far[1]}
        with contextlib.suppress(OSError):
            far[1].close()
        writer.close()

    async def command(self, what: str, arguments: dict[str, Any]) -> Any:
        """Do what the other end of the command socket asks; the answer."""
        if what == "link":
            return await self.link(**arguments)
        if what == "tap":
            return await self.tap(**arguments)
        if what == "recorded":
            return list(map(len, self.taps[arguments["name"]].recorded))
        if what == "replay":
            return await self.taps[arguments["name"]].replay(arguments["number"])
        link = self.links[arguments.pop("name")]
        if what == "set":
            link.faults = Faults(**arguments)
            link.changed.set()
        elif what == "cut":
            link.cut()
        elif what == "remove":
            link.cut()
            for server in link.servers:
                server.close()
            self.links = {name: other for name, other in self.links.items() if other is not link}
        return link.counts

    async def run(self, sock: socket.socket) -> None:
        """Obey until the other end closes."""
        reader, writer = await asyncio.open_connection(sock=sock)
        while line := await reader.readline():
            what, arguments = json.loads(line)
            writer.write(json.dumps(await self.command(what, arguments)).encode() + b"\n")


class FaultProxy:
    """The handle of the process. Use it as a context manager."""

    def __init__(self) -> None:
        """Start it."""
        self._sock, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.support.fault_proxy", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._sock.settimeout(COMMAND_TIMEOUT_S)
        self._answers = self._sock.makefile("rb")

    def _ask(self, what: str, **arguments: object) -> Any:
        self._sock.sendall(json.dumps([what, arguments]).encode() + b"\n")
        line = self._answers.readline()
        if not line:
            raise OSError("the fault proxy has ended")
        return json.loads(line)

    def link(self, name: str, address: str, seed: int = 0) -> str:
        """HOST:PORT through which the daemon whose control API is at address is reached, also after its restart."""
        host, _, port = address.rpartition(":")
        return f"{HOST}:{self._ask('link', name=name, host=host, port=int(port), seed=seed)}"

    def tap(self, name: str, address: tuple[str, int]) -> tuple[str, int]:
        """Where to connect so that what is said to address is recorded; whatever it is, also TLS."""
        return HOST, int(self._ask("tap", name=name, host=address[0], port=address[1]))

    def recorded(self, name: str) -> list[int]:
        """Bytes recorded of each connection through a tap."""
        return list(self._ask("recorded", name=name))

    def replay(self, name: str, number: int) -> bytes:
        """Say again what was said on that connection through a tap; what is answered within REPLAY_TIMEOUT_S."""
        return bytes.fromhex(self._ask("replay", name=name, number=number))

    def set(self, name: str, faults: Faults) -> dict[str, int]:
        """From now on these faults and no others; returns how often each has struck."""
        return dict(self._ask("set", name=name, **asdict(faults)))

    def cut(self, name: str) -> None:
        """End all connections of a link, what is in them is lost; new ones are taken unless refused."""
        self._ask("cut", name=name)

    def counts(self, name: str) -> dict[str, int]:
        """How often each fault has struck, and the requests counted."""
        return dict(self._ask("counts", name=name))

    def remove(self, name: str) -> None:
        """End a link."""
        self._ask("remove", name=name)

    def close(self) -> None:
        """End the process."""
        self._answers.close()
        self._sock.close()
        self._process.wait(COMMAND_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive a test that was killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Proxy().run(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    _main()
