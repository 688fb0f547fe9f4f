"""What a device with shards tells by its plain name: metrics, slow requests and news are of all of its shards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from typing import Any

import aiohttp
import pytest

from infiniswap.shared.paths import control_socket
from tests.support.services import READY_TIMEOUT_S, Device, Services
from tests.support.shards import (
    MANY,
    connect,
    free_port,
    kept_dead,
    scraped,
    serve,
    shard_pids,
    write_both,
)
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_shard_stays")
DIED = ("has died", "does not start", "the device did not stop in order; recovering")


def test_metrics(services: Services) -> None:
    """One port has those of all shards, and of each whether it serves, also while one is dead."""
    services.expect_log("no peers", *DIED)
    port = free_port()
    device = serve(services, "--metrics-listen", f"127.0.0.1:{port}")
    write_both(device)
    found = scraped(port)
    assert [found["infiniswap_size_bytes", f"vol~{number}"] for number in range(2)] == [16 << 20, 16 << 20]
    assert [found["infiniswap_shard_up", f"vol~{number}"] for number in range(2)] == [1, 1]
    with kept_dead(device, services, 1):
        found = scraped(port)
        assert [found["infiniswap_shard_up", f"vol~{number}"] for number in range(2)] == [1, 0]
        assert ("infiniswap_size_bytes", "vol~0") in found
        assert ("infiniswap_size_bytes", "vol~1") not in found
    wait_for(lambda: scraped(port)["infiniswap_shard_restarts_total", "vol~1"] == 1, what="it", timeout_s=60.0)
    assert device.stop() == 0


def read_pages(device: Device, number: int, *pages: int) -> None:
    """One request a page."""
    with connect(device, number) as client:
        for page in pages:
            client.read(page * 4096, 4096)


def test_traces(services: Services) -> None:
    """Requests of both come in one order; those that follow come once, also of a shard that has begun anew."""
    services.expect_log("no peers", *DIED)
    services.expect_log("400 'after' must be")
    device = serve(services)
    write_both(device)
    done = services.command("device", "trace", "vol", "--remember", "0us")
    assert done.returncode == 0, done.stderr
    read_pages(device, 0, 3)
    read_pages(device, 1, 5, 6)
    found = device.get("/v1/trace")
    told = [(row["shard"], row["page"]) for row in found["requests"] if row["command"] == "read"]
    each = (16 << 20) // 4096
    assert told == [("vol~0", 3), ("vol~1", each + 5), ("vol~1", each + 6)]
    done = services.command("device", "trace", "vol", "--last", "1")
    assert f" {each + 6} " in done.stdout
    assert "shard=vol~1" in done.stdout
    assert device.get(f"/v1/trace?after={found['next']}")["requests"] == []
    before = shard_pids(services)["vol~1"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: device.get("/v1/status")["state"] == "failing", what="its end to be seen", timeout_s=20.0)
    wait_for(lambda: device.get("/v1/status")["state"] == "serving", what="it to be back", timeout_s=60.0)
    assert services.command("device", "trace", "vol", "--remember", "0us").returncode == 0
    read_pages(device, 1, 7)
    read_pages(device, 0, 4)
    rows = device.get(f"/v1/trace?after={found['next']}")["requests"]
    assert [row["page"] for row in rows if row["command"] == "read"] == [each + 7, 4]
    for after in ("1", "x", "0.0", "0.0,0.0,0.0", "0.0,-1.0"):
        done = subprocess.run(
            ["curl", "-s", "--unix-socket", device.runtime_dir / "vol.control", f"http://d/v1/trace?after={after}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "must be what an earlier answer" in json.loads(done.stdout)["error"]
    assert device.stop() == 0


def test_service_manager(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of the parent alone: ready when all serve, which one does not, and the stop before the shards' end."""
    services.expect_log("no peers", *DIED)
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.bind(str(services.folder / "notify"))
        manager.settimeout(READY_TIMEOUT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(services.folder / "notify"))
        device = serve(services, ready=False)
        monkeypatch.delenv("NOTIFY_SOCKET")

        def hear(words: str) -> None:
            while not heard or words not in heard[-1]:
                content, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(12))
                ((_, _, credentials),) = ancillary
                assert int.from_bytes(credentials[:4], "little") == device.pid, content
                heard.append(content.decode())

        hear("READY=1")
        for number in range(2):
            connect(device, number).close()
        device.read_ready(READY_TIMEOUT_S)
        hear(f"STATUS=serving vol as 2 shards, parent {device.pid}")
        os.kill(shard_pids(services)["vol~1"], signal.SIGKILL)
        hear(f"STATUS=serving vol as 2 shards, without vol~1 now, parent {device.pid}")
        hear(f"STATUS=serving vol as 2 shards, parent {device.pid}")
        pids = shard_pids(services)
        os.kill(pids["vol~0"], signal.SIGSTOP)
        os.kill(device.pid, signal.SIGTERM)
        hear("STOPPING=1")
        hear("EXTEND_TIMEOUT_USEC")
        os.kill(pids["vol~0"], signal.SIGCONT)
        assert device.wait() == 0
    assert sum("READY=1" in line for line in heard) == 1
    assert shard_pids(services) == {}


async def _news(device: Device, act: Any) -> list[dict[str, Any]]:
    """What is told from act() on, until a shard has been started again."""
    found: list[dict[str, Any]] = []
    connector = aiohttp.UnixConnector(str(control_socket(device.runtime_dir, "vol")))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect("http://device/v1/events") as websocket,
    ):
        await asyncio.to_thread(act)
        async with asyncio.timeout(60.0):
            while not found or found[-1]["kind"] != "shard_restarted":
                found.append(json.loads(await websocket.receive_str()))
    return found


def test_news(services: Services) -> None:
    """One socket tells what happens to any shard, by its name, and when one dies and is back."""
    services.expect_log("no peers", *DIED)
    device = serve(services)

    def act() -> None:
        write_both(device)  # with a flush each
        read_pages(device, 0, MANY - 1)
        os.kill(shard_pids(services)["vol~1"], signal.SIGKILL)

    found = asyncio.run(_news(device, act))
    assert {row["shard"] for row in found if row["kind"] == "slab_touched"} == {"vol~0", "vol~1"}
    assert [(row["shard"], row.get("why")) for row in found if row["kind"] == "shard_died"] == [
        ("vol~1", "killed by SIGKILL")
    ]
    assert found[-1] == {"kind": "shard_restarted", "shard": "vol~1"}
    assert device.stop() == 0
