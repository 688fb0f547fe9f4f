"""Page I/O of a lease with real NBD clients: data is kept, strangers are kept out, nothing is left for the next one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import nbd
import pytest

from tests.support.daemon_api import MIB, Control, Held
from tests.support.services import Daemon, Services
from tests.support.waiting import eventually

CLIENT_TIMEOUT_S = 60
NOT_HERE = "a client asked for an export that is not here"


@pytest.fixture
def daemon(services: Services) -> Daemon:
    """A daemon of 16 MiB in a process of its own."""
    return services.daemon("16MiB")


@pytest.fixture
def borrower(daemon: Daemon, session: aiohttp.ClientSession) -> Control:
    """A client of that daemon."""
    return Control(session, daemon.url)


def connect(held: Held) -> nbd.NBD:
    """An NBD connection to the lease's export."""
    handle = nbd.NBD()
    handle.connect_uri(held.uri)
    return handle


def tool(*arguments: str, folder: Path | None = None) -> str:
    """Run a client program to its end, in folder; its output."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False, cwd=folder)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


async def lease_with(borrower: Control, slabs: int, slab_bytes: int = MIB) -> Held:
    """A lease of so many slabs with all of them mapped."""
    held = await borrower.lease(slabs * slab_bytes, slab_bytes)
    for index in range(slabs):
        assert (await borrower.map(held, index)).status == 200
    return held


async def until_stats(borrower: Control, path: str, value: int) -> None:
    """Wait until the number at path (dotted) of the daemon's stats is value."""

    async def reached() -> bool:
        found: object = await borrower.stats()
        for name in path.split("."):
            assert isinstance(found, dict)
            found = found[name]
        return found == value

    await eventually(reached, f"{path} being {value}")


async def test_a_file_goes_in_and_comes_out(borrower: Control, tmp_path: Path) -> None:
    """nbdcopy with its many requests in flight and several connections brings back every byte."""
    content = random.Random(1).randbytes(16 * MIB)
    (tmp_path / "in").write_bytes(content)
    held = await lease_with(borrower, 8, 2 * MIB)
    tool("nbdcopy", "--connections=4", str(tmp_path / "in"), held.uri)
    tool("nbdcopy", "--connections=4", held.uri, str(tmp_path / "out"))
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(content).digest()


async def test_fio_verifies(borrower: Control, tmp_path: Path) -> None:
    """Random writes of many sizes, 16 deep, read back with their checksums."""
    held = await lease_with(borrower, 16)
    output = tool(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={held.uri}", "--size=16m", "--rw=randwrite",
        "--bsrange=512-64k", "--bs_unaligned=1", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
        "--do_verify=1", "--randseed=7", folder=tmp_path,
    )  # fmt: skip
    assert "err= 0" in output


async def test_the_export_is_as_large_as_the_device(borrower: Control) -> None:
    """The device's own size is told, also where it ends inside a slab."""
    held = await borrower.lease(3 * MIB + 4096, MIB)
    info = json.loads(tool("nbdinfo", "--json", held.uri))["exports"][0]
    assert info["export-size"] == 3 * MIB + 4096
    assert info["can_multi_conn"] is True
    assert info["is_read_only"] is False


async def test_unmapped_slabs_answer_eshutdown(borrower: Control) -> None:
    """A request that touches a slab without memory fails with ESHUTDOWN; the connection and the other slabs go on."""
    held = await borrower.lease(4 * MIB, MIB)
    handle = connect(held)
    await borrower.map(held, 1)
    handle.pwrite(b"a" * 8192, MIB)
    actions: tuple[Callable[[], object], ...] = (
        lambda: handle.pread(4096, 0),
        lambda: handle.pwrite(b"x" * 4096, 3 * MIB),
        lambda: handle.pread(8192, 2 * MIB - 4096),
        lambda: handle.pread(8192, MIB - 4096),
        lambda: handle.pwrite(bytes(2 * MIB), 2 * MIB),
        lambda: handle.trim(4096, 2 * MIB),
        lambda: handle.zero(4096, 2 * MIB),
    )
    for action in actions:
        with pytest.raises(nbd.Error) as failure:
            action()
        assert failure.value.errno == "ESHUTDOWN", failure.value
    assert handle.pread(8192, MIB) == b"a" * 8192
    await borrower.unmap(held, 1)
    with pytest.raises(nbd.Error) as failure:
        handle.pread(1, MIB)
    assert failure.value.errno == "ESHUTDOWN"
    await borrower.map(held, 1)
    assert handle.pread(8192, MIB) == bytes(8192)
    handle.shutdown()


async def test_a_stranger_gets_no_export(borrower: Control, daemon: Daemon, services: Services) -> None:
    """No list, no default export, nothing by lease id, device name or half a token."""
    services.expect_log(NOT_HERE)
    held = await lease_with(borrower, 1)
    listed = json.loads(tool("nbdinfo", "--list", "--json", f"nbd://{held.host}:{held.port}"))
    assert listed["exports"] == []
    for name in (
        "",
        "lease-",
        held.lease,
        "lease-" + held.lease,
        "test",
        held.token,
        held.export[:-1],
        held.export + "x",
    ):
        handle = nbd.NBD()
        handle.set_export_name(name)
        with pytest.raises(nbd.Error, match=r"(?i)no such file|server replied with error"):
            handle.connect_tcp(held.host, str(held.port))
    assert held.token not in daemon.log
    handle = connect(held)
    handle.shutdown()


async def test_nothing_is_left_for_the_next_lease(borrower: Control, tmp_path: Path) -> None:
    """All memory written full, given back slab by slab and lease by lease, comes out as zeroes elsewhere."""
    for _ in range(2):
        first, second = await lease_with(borrower, 8), await lease_with(borrower, 4, 2 * MIB)
        for held in (first, second):
            handle = connect(held)
            for offset in range(0, 8 * MIB, MIB):
                handle.pwrite(b"\xaa" * MIB, offset)
            handle.shutdown()
        assert (await borrower.stats())["memory"]["occupied_bytes"] == 16 * MIB
        for index in range(8):
            await borrower.unmap(first, index)
        assert (await borrower.stats())["memory"]["occupied_bytes"] == 8 * MIB
        await borrower.release(second)
        assert (await borrower.stats())["memory"]["occupied_bytes"] == 0
        heir = await lease_with(borrower, 16)
        tool("nbdcopy", heir.uri, str(tmp_path / "out"))
        assert not any((tmp_path / "out").read_bytes())
        await borrower.release(heir)
        await borrower.release(first)


async def test_a_lease_ends_with_its_connections(borrower: Control, services: Services) -> None:
    """After DELETE the open connection is dead, the export unknown and the memory the host's again."""
    services.expect_log(NOT_HERE)
    held, other = await lease_with(borrower, 2), await lease_with(borrower, 2)
    handle, stays = connect(held), connect(other)
    handle.pwrite(b"x" * MIB, 0)
    stays.pwrite(b"y" * MIB, MIB)
    await borrower.release(held)
    with pytest.raises(nbd.Error):
        handle.pread(4096, 0)
    with pytest.raises(nbd.Error):
        connect(held)
    assert stays.pread(MIB, MIB) == b"y" * MIB
    assert (await borrower.stats())["memory"]["occupied_bytes"] == MIB
    stays.shutdown()


async def test_a_silent_lease_expires(services: Services, session: aiohttp.ClientSession) -> None:
    """Without heartbeat the export closes and its memory returns after ttl_s; with them a lease lives on."""
    services.expect_log(NOT_HERE, "refused a PUT of 127.0.0.1: 404")
    daemon = services.daemon("16MiB", "--lease-ttl-s", "1", "--lease-grace-s", "0")
    borrower = Control(session, daemon.url)
    silent, alive = await lease_with(borrower, 4), await lease_with(borrower, 4)
    handle, stays = connect(silent), connect(alive)
    handle.pwrite(b"x" * MIB, 0)
    stays.pwrite(b"y" * MIB, 0)

    async def one_is_left() -> bool:
        assert (await borrower.heartbeat(alive)).status == 200
        return bool((await borrower.stats())["leases"] == 1)

    await eventually(one_is_left, "the silent lease's end")
    with pytest.raises(nbd.Error):
        handle.pread(4096, 0)
    assert (await borrower.map(silent, 0)).status == 404
    with pytest.raises(nbd.Error):
        connect(silent)
    beat = (await borrower.heartbeat(alive)).content
    assert (beat["slabs"], beat["connections"]) == ([0, 1, 2, 3], 1)
    assert stays.pread(MIB, 0) == b"y" * MIB
    stats = await borrower.stats()
    assert stats["counts"]["leases_expired"] == 1
    assert stats["memory"]["occupied_bytes"] == MIB
    stays.shutdown()


WRITER = """
import nbd, sys
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
print("writing", flush=True)
while True:
    for offset in range(0, 8 << 20, 1 << 20):
        handle.pwrite(bytes([offset >> 20]) * (1 << 20), offset)
"""


def start_writer(held: Held) -> subprocess.Popen[bytes]:
    """A process that writes to the lease without end, once it has begun."""
    arguments = [sys.executable, "-c", WRITER, held.uri]
    writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    return writer


async def test_a_killed_client_leaves_its_lease(borrower: Control) -> None:
    """kill -9 in the middle of large writes: the daemon drops the connection, keeps the memory, serves on."""
    held = await lease_with(borrower, 8)
    for _ in range(3):
        with start_writer(held) as writer:
            await asyncio.sleep(random.Random(0).random() / 10)
            writer.send_signal(signal.SIGKILL)
        await until_stats(borrower, "engine.connections", 0)
    handle = connect(held)
    for index in range(8):
        assert set(handle.pread(MIB, index * MIB)) <= {0, index}
    handle.shutdown()
    assert (await borrower.heartbeat(held)).content["slabs"] == list(range(8))


async def test_as_many_leases_as_there_are_slots(services: Services, session: aiohttp.ClientSession) -> None:
    """256 leases of five hosts, each with memory and a connection: all keep their own data, the next one gets 503."""
    services.expect_log("refused a POST of 127.0.0.1: 503")
    daemon = services.daemon("256MiB")
    borrower = Control(session, daemon.url)
    held: list[Held] = []
    for host in range(2, 7):  # one alone may not ask for so many at once
        connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{host}", 0))
        async with aiohttp.ClientSession(connector=connector) as own:
            held += [await lease_with(Control(own, daemon.url), 1) for _ in range(min(60, 256 - len(held)))]
    body = {
        "device": "d",
        "device_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12,
        "size_bytes": MIB,
        "slab_bytes": MIB,
    }
    assert (await borrower.call("POST", "/v1/leases", json=body)).status == 503
    handles = [connect(lease) for lease in held]
    for number, handle in enumerate(handles):
        handle.pwrite(number.to_bytes(4, "big") * 1024, 8192)
    for number, handle in enumerate(handles):
        assert handle.pread(4096, 8192) == number.to_bytes(4, "big") * 1024
    assert (await borrower.stats())["engine"]["connections"] == 256
    for lease in held:
        await borrower.release(lease)
    stats = await borrower.stats()
    assert (stats["leases"], stats["memory"]["used_bytes"], stats["memory"]["occupied_bytes"]) == (0, 0, 0)
    await until_stats(borrower, "engine.connections", 0)


async def test_one_lease_cannot_take_all_connections(borrower: Control, daemon: Daemon, services: Services) -> None:
    """Beyond 32 connections of a lease new ones are closed; another lease connects as before."""
    services.expect_log("got no further connection: it has 32 connections")
    greedy, modest = await lease_with(borrower, 1), await lease_with(borrower, 1)
    handles = [connect(greedy) for _ in range(32)]
    handles[0].pwrite(b"x", 0)
    with pytest.raises(nbd.Error):
        connect(greedy).pread(1, 0)
    assert handles[31].pread(1, 0) == b"x"
    assert connect(modest).pread(1, 0) == b"\0"
    assert "has 32 connections" in daemon.log


async def test_slabs_come_and_go_under_load(borrower: Control) -> None:
    """Leases that map, unmap, end and write at once: each reads its own bytes or zeroes, never another's."""
    rounds = 6

    def write_and_read(handle: nbd.NBD, mark: int) -> int:
        """Write marked pages all over, read what is there; returns how often a slab was gone."""
        chooser, gone = random.Random(mark), 0
        for _ in range(200):
            offset = chooser.randrange(8 * MIB // 65536) * 65536
            try:
                handle.pwrite(bytes([mark]) * 65536, offset)
                assert set(handle.pread(65536, offset)) <= {0, mark}
            except nbd.Error as error:
                if error.errno != "ESHUTDOWN":
                    break  # the lease has ended
                gone += 1
        return gone

    async def device(mark: int) -> int:
        gone = 0
        for turn in range(rounds):
            held = await borrower.lease(8 * MIB, MIB)
            handle = await asyncio.to_thread(connect, held)
            chooser = random.Random(mark * 1000 + turn)
            client = asyncio.create_task(asyncio.to_thread(write_and_read, handle, mark))
            while not client.done():
                index = chooser.randrange(8)
                answer = await (borrower.unmap if chooser.random() < 0.3 else borrower.map)(held, index)
                assert answer.status in (200, 507)
                if chooser.random() < 0.02:
                    break
            await borrower.release(held)
            gone += await client
        return gone

    assert sum(await asyncio.gather(*(device(mark) for mark in (1, 2, 3)))) > 0
    stats = await borrower.stats()
    assert (stats["leases"], stats["memory"]["used_bytes"], stats["memory"]["occupied_bytes"]) == (0, 0, 0)


async def test_sigterm_with_everything_open(borrower: Control, daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """Idle handshakes, idle control connections and busy clients: SIGTERM still ends with exit code 0 in time."""
    held = await lease_with(borrower, 8)
    host, port = daemon.url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(held.host, held.port) for _ in range(100)]
    idle += [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    with start_writer(held) as writer:
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 9, "no handshake's time was waited for"
        assert writer.wait(20) != 0
    for _, stream in idle:
        stream.close()
    with pytest.raises(aiohttp.ClientError):
        await session.get(daemon.url + "/v1/health")
