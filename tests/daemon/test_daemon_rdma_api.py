"""The RDMA part of the control API, over a daemon with the real engine and verbs that are not."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from infiniswap.daemon.rdma import RdmaMode, RdmaOptions
from infiniswap.daemon.service import RDMA_INTERVAL_S, MemoryService, find_rdma
from infiniswap.nbd.client import NbdClient
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError
from infiniswap.shared.path_messages import parse_end
from tests.support.daemon_api import DEVICE_ID, MIB, Answer, Control, Held, daemon_config
from tests.support.fake_verbs import LOOPBACK, FakeVerbs, remote_end
from tests.support.waiting import eventually

LEASE_REQUEST = {"device": "test", "device_id": DEVICE_ID, "size_bytes": 8 << 20, "slab_bytes": 1 << 20}
ETHERNET = {"link_layer": "Ethernet"}


@pytest.fixture
def verbs() -> FakeVerbs:
    """The daemon's RDMA hardware."""
    return FakeVerbs()


@pytest_asyncio.fixture
async def rdma(verbs: FakeVerbs, session: aiohttp.ClientSession) -> AsyncIterator[Control]:
    """A client of a daemon of 16 MiB that has RDMA."""
    service = MemoryService(daemon_config(), rdma=lambda config: verbs.host(time.monotonic, config.rdma_options))
    await service.start()
    try:
        yield Control(session, f"http://{service.http_address}")
    finally:
        await service.close()
        assert verbs.open_devices == []
        assert verbs.regions == {}


async def open_path(control: Control, held: Held, path: object = None) -> Answer:
    """POST /v1/leases/{id}/rdma."""
    body = {"path": remote_end().as_json() if path is None else path}
    return await control.call("POST", f"/v1/leases/{held.lease}/rdma", token=held.token, json=body)


async def close_path(control: Control, held: Held) -> Answer:
    """DELETE /v1/leases/{id}/rdma."""
    return await control.call("DELETE", f"/v1/leases/{held.lease}/rdma", token=held.token)


async def test_the_life_of_a_path(rdma: Control, verbs: FakeVerbs) -> None:
    """Offered, opened, used for mapping, told in heartbeats, closed: each answer as documented."""
    assert (await rdma.offer())["rdma"] == ETHERNET
    body = {"device": "d", "device_id": DEVICE_ID, "size_bytes": 8 * MIB, "slab_bytes": MIB}
    assert (await rdma.call("POST", "/v1/leases", json=body)).content["rdma"] == ETHERNET
    held = await rdma.lease()
    shown = await rdma.call("GET", f"/v1/leases/{held.lease}", token=held.token)
    assert shown.content["rdma"] == ETHERNET
    plain = await rdma.lease()
    assert (await rdma.map(plain, 2)).content["rdma"] is None
    answer = await open_path(rdma, plain)
    assert (answer.status, "take a new lease" in answer.content["error"]) == (409, True)
    beat = (await rdma.heartbeat(held)).content
    assert (beat["rdma"], beat["connections"]) == (False, 0)

    answer = await open_path(rdma, held)
    assert answer.status == 200
    content: dict[str, Any] = answer.content
    assert set(content) == {"path", "probe", "slabs", "device"}
    assert content["device"] == "rxe0/1"
    end = parse_end(content["path"])
    assert [pair.number for pair in end.queue_pairs] == [pair.number for pair in verbs.pairs]
    assert content["probe"]["bytes"] == 4096
    assert content["slabs"] == []
    await rdma.map(held, 2)
    content = (await open_path(rdma, held)).content
    (slab,) = content["slabs"]
    assert slab["slab"] == 2
    assert verbs.regions[slab["rkey"]].address == slab["address"]
    mapped = (await rdma.map(held, 5)).content["rdma"]
    assert set(mapped) == {"address", "rkey"}
    assert verbs.regions[mapped["rkey"]].length == MIB
    assert (await rdma.map(held, 5)).content["rdma"] == mapped, "asked again, the same key is told"
    beat = (await rdma.heartbeat(held)).content
    assert (beat["rdma"], beat["connections"]) == (True, 2)
    verbs.pairs[0].failed = True
    beat = (await rdma.heartbeat(held)).content
    assert (beat["rdma"], beat["connections"]) == (False, 2)

    for _ in range(2):
        answer = await close_path(rdma, held)
        assert (answer.status, answer.content) == (200, {})
        assert verbs.pairs == []
    assert (await rdma.heartbeat(held)).content["connections"] == 0
    assert {slab["slab"] for slab in (await open_path(rdma, held)).content["slabs"]} == {2, 5}
    await rdma.unmap(held, 2)
    assert slab["rkey"] not in verbs.regions
    await rdma.release(held)
    assert verbs.pairs == []


async def test_the_export_and_the_keys_are_of_the_same_memory(rdma: Control, verbs: FakeVerbs) -> None:
    """Beside RDMA the lease's export works as ever; its TRIM zeroes registered memory in place."""
    held = await rdma.lease()
    await open_path(rdma, held)
    await rdma.map(held, 0)

    def look() -> None:
        with NbdClient((held.host, held.port), held.export) as export:
            export.write(0, b"tcp!" * 1024)
            assert ctypes.string_at(region["address"], 4096) == b"tcp!" * 1024
            ctypes.memset(region["address"], 0x77, 4096)
            assert export.read(0, 4096) == b"\x77" * 4096
            export.trim(0, MIB)
            assert not any(ctypes.string_at(region["address"], MIB))

    region = (await open_path(rdma, held)).content["slabs"][0]
    await asyncio.to_thread(look)


@pytest.mark.parametrize(
    "change",
    [
        {"link_layer": "Token Ring"},
        {"gid": "not an address"},
        {"mtu_bytes": 1500},
        {"mtu_bytes": True},
        {"mtu_bytes": [4096]},
        {"reads_max": -1},
        {"lid": 1 << 16},
        {"queue_pairs": []},
        {"queue_pairs": [{"number": 1, "psn": 1}] * 3},
        {"queue_pairs": [{"number": 1 << 24, "psn": 1}] * 2},
        {"queue_pairs": [{"number": 1}, 7]},
    ],
)
async def test_a_path_that_is_none(rdma: Control, verbs: FakeVerbs, change: dict[str, object]) -> None:
    """What is wrong with the other end's description is a 400 in one sentence, before anything is made or destroyed."""
    held = await rdma.lease()
    await open_path(rdma, held)
    pairs = list(verbs.pairs)
    answer = await open_path(rdma, held, remote_end().as_json() | change)
    assert answer.status == 400, answer
    assert list(answer.content) == ["error"]
    assert verbs.pairs == pairs


@pytest.mark.parametrize("body", [None, [], {}, {"path": []}, {"path": None}, {"path": "x"}])
async def test_a_body_that_is_none(rdma: Control, body: object) -> None:
    """Neither is a body without a path an internal error."""
    held = await rdma.lease()
    answer = await rdma.call("POST", f"/v1/leases/{held.lease}/rdma", token=held.token, json=body)
    assert answer.status == 400, answer


async def test_other_link_layers(rdma: Control) -> None:
    """An InfiniBand device cannot be reached from Ethernet: a conflict, in one sentence."""
    held = await rdma.lease()
    answer = await open_path(rdma, held, remote_end().as_json() | {"link_layer": "InfiniBand", "lid": 4})
    assert answer.status == 409
    assert "rxe0/1 is Ethernet, but the other end's is InfiniBand" in answer.content["error"]


async def test_a_daemon_without_rdma(control: Control) -> None:
    """Nothing is offered, POST says 501 and why, DELETE is content, and TCP goes on."""
    held = await control.lease()
    await control.map(held, 0)
    assert (await control.offer())["rdma"] is None
    granted = await control.call("POST", "/v1/leases", json=LEASE_REQUEST)
    assert granted.content["no_rdma"], "why there is none, for who looks at WHY-TCP"
    answer = await open_path(control, held)
    assert answer.status == 501
    assert answer.content["error"].startswith("this daemon has no RDMA: ")
    assert (await close_path(control, held)).status == 200
    beat = (await control.heartbeat(held)).content
    assert (beat["rdma"], beat["connections"], beat["slabs"]) == (False, 0, [0])


async def test_rdma_switched_off(session: aiohttp.ClientSession) -> None:
    """--rdma never: the same answers, and stats say that it is off."""
    service = MemoryService(daemon_config(rdma=RdmaMode.NEVER))
    await service.start()
    control = Control(session, f"http://{service.http_address}")
    answer = await open_path(control, await control.lease())
    assert answer.status == 501
    assert "--rdma never" in answer.content["error"]
    stats = (await control.stats())["rdma"]
    assert (stats["state"], stats["device"]) == ("off", None)
    await service.close()


async def test_required_without_a_device(verbs: FakeVerbs) -> None:
    """The daemon does not start, and leaves no port behind."""
    verbs.removing = True
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    listen, pages = HostPort("127.0.0.1", number), HostPort("127.0.0.1", 0)
    config = daemon_config(rdma=RdmaMode.REQUIRED, listen=listen, data_listen=pages)
    service = MemoryService(config, rdma=lambda config: verbs.host(lambda: 0.0, config.rdma_options))
    with pytest.raises(UserError, match="--rdma required: this host has no RDMA device"):
        await service.start()
    with socket.socket() as again:
        again.bind(("127.0.0.1", number))


async def test_a_device_that_goes_and_comes(rdma: Control, verbs: FakeVerbs) -> None:
    """The running daemon notices both by itself: heartbeats tell of the first, offers of the second."""
    held = await rdma.lease()
    await open_path(rdma, held)
    await rdma.map(held, 0)
    verbs.removing = True
    await eventually(lambda: verbs.open_devices == [], f"the device is let go of within {RDMA_INTERVAL_S:g} s or so")
    assert (await rdma.heartbeat(held)).content["rdma"] is False
    assert (await rdma.heartbeat(held)).content["connections"] == 0
    assert (await rdma.offer())["rdma"] is None
    assert (await open_path(rdma, held)).status == 501
    stats = (await rdma.stats())["rdma"]
    assert (stats["state"], stats["counts"]["devices_lost"]) == ("unavailable", 1)
    verbs.removing = False
    await eventually(lambda: len(verbs.open_devices) == 1, "the new device is opened")
    assert (await rdma.offer())["rdma"] == ETHERNET
    assert [slab["slab"] for slab in (await open_path(rdma, held)).content["slabs"]] == [0]


async def test_numbers_about_rdma(rdma: Control, verbs: FakeVerbs) -> None:
    """Stats and metrics tell of device, paths, regions and pools, and agree."""
    held = await rdma.lease()
    await open_path(rdma, held)
    await eventually(lambda: len(verbs.regions) == 3, "probe and pool (an eighth of 16 slabs) are registered")
    await rdma.map(held, 0)
    stats = (await rdma.stats())["rdma"]
    assert stats["state"] == "ready"
    assert stats["reason"] is None
    assert stats["device"] == "rxe0/1"
    assert ipaddress.IPv6Address(stats["gid"]) == LOOPBACK
    assert stats["mtu_bytes"] == 1024
    assert stats["queue_pairs"] == 2
    assert stats["counts"]["paths_opened"] == 1
    assert stats["counts"]["pool_hits"] == 1
    text = (await rdma.call("GET", "/v1/metrics")).content
    values = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert values["infiniswapd_rdma_ready"] == 1
    assert values["infiniswapd_rdma_queue_pairs"] == 2
    assert values["infiniswapd_rdma_paths_opened_total"] == 1
    assert values["infiniswapd_rdma_pool_hits_total"] == 1
    assert values["infiniswapd_rdma_regions"] >= 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "127.0.0.1"])
def test_which_address_decides(host: str) -> None:
    """Only a real address of --listen helps to choose a port; a wildcard or a name does no harm."""
    config = daemon_config(listen=HostPort(host, 1), rdma=RdmaMode.NEVER, rdma_device="mlx5_1", rdma_gid_index=3)
    assert find_rdma(config).options == RdmaOptions(RdmaMode.NEVER, "mlx5_1", None, 3)
