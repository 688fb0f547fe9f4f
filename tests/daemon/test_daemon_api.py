"""The control API does what its table says, and answers everything else with a clear 4xx in JSON, without secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import infiniswap
from infiniswap.daemon import page_door, quotas
from infiniswap.daemon import service as service_module
from infiniswap.daemon.api import BODY_BYTES_MAX
from infiniswap.daemon.arena import Arena
from infiniswap.daemon.leases import LeaseTable
from infiniswap.daemon.lender import Lender
from infiniswap.daemon.options import MemoryAmount
from infiniswap.daemon.service import MemoryService
from infiniswap.daemon.tickets import Tickets
from infiniswap.nbd.handshake import Negotiated
from infiniswap.policy.headroom import HostMemory
from infiniswap.shared import http_server as http_server_module
from infiniswap.shared.address import HostPort
from infiniswap.shared.complaints import Complaints
from infiniswap.shared.http_server import CONNECTIONS_MAX
from tests.support.clock import FakeClock
from tests.support.daemon_api import DEVICE_ID, MIB, Answer, Control, daemon_config
from tests.support.fake_memory_engine import FakeEngine

STANDING = {"version": infiniswap.__version__, "lending": True, "draining": False}
GOOD = {"device": "swap0", "device_id": DEVICE_ID, "size_bytes": 8 * MIB, "slab_bytes": MIB}


def refused(answer: Answer, status: int) -> str:
    """The sentence of an error answer, which has nothing but it."""
    assert answer.status == status, answer
    assert list(answer.content) == ["error"], answer
    message = answer.content["error"]
    assert isinstance(message, str)
    assert message
    return message


async def test_the_life_of_a_lease(control: Control) -> None:
    """Lease, map, see, heartbeat, unmap, release: each answer as documented, and the memory counted at every step."""
    health = (await control.call("GET", "/v1/health")).content
    assert health["status"] == "ok"
    assert set(health) == {"status", "version", "incarnation", "uptime_s"}
    answer = await control.call("POST", "/v1/leases", json=GOOD)
    assert answer.status == 201
    lease = answer.content
    assert set(lease) == {
        "lease", "token", "export", "address", "incarnation", "ttl_s", "expires_in_s", "rdma", "no_rdma",
    }  # fmt: skip
    assert lease["export"] == "lease-" + lease["token"]
    assert lease["incarnation"] == health["incarnation"]
    assert lease["ttl_s"] == 60.0
    held = await control.lease(size_bytes=4 * MIB, slab_bytes=2 * MIB)
    assert (await control.map(held, 1)).content == {"slab": 1, "free_bytes": 14 * MIB, "rdma": None}
    assert (await control.map(held, 1)).content == {"slab": 1, "free_bytes": 14 * MIB, "rdma": None}
    assert (await control.map(held, 0)).content == {"slab": 0, "free_bytes": 12 * MIB, "rdma": None}
    assert await control.offer("?slab_bytes=1048576") == {
        "incarnation": health["incarnation"],
        "total_bytes": 16 * MIB,
        "free_bytes": 12 * MIB,
        "used_bytes": 4 * MIB,
        "leases": 2,
        "rdma": None,
        **STANDING,
    }
    beat = (await control.heartbeat(held)).content
    assert beat["slabs"] == [0, 1]
    assert beat["free_bytes"] == 12 * MIB
    assert beat["ttl_s"] == 60.0
    shown = (await control.call("GET", f"/v1/leases/{held.lease}", token=held.token)).content
    assert shown["device"] == "test"
    assert shown["device_id"] == DEVICE_ID
    assert shown["size_bytes"] == 4 * MIB
    assert shown["slab_bytes"] == 2 * MIB
    assert shown["slabs"] == [0, 1]
    assert "token" not in json.dumps(shown)
    for _ in range(2):
        assert (await control.unmap(held, 0)).content == {"slab": 0, "free_bytes": 14 * MIB}
    assert (await control.release(held)).content == {"lease": held.lease}
    assert (await control.offer())["free_bytes"] == 16 * MIB
    refused(await control.release(held), 404)


async def test_memory_runs_out_with_507(control: Control) -> None:
    """Not a byte beyond --memory is promised; what one lease gives back another can have."""
    first, second = await control.lease(16 * MIB, 8 * MIB), await control.lease(16 * MIB, MIB)
    assert (await control.map(first, 0)).status == 200
    for index in range(8):
        assert (await control.map(second, index)).status == 200
    refused(await control.map(first, 1), 507)
    refused(await control.map(second, 8), 507)
    await control.release(second)
    assert (await control.map(first, 1)).status == 200


@pytest.mark.parametrize("path", ["", "/slabs/0", "/slabs/99999", "/slabs/-1", "/slabs/zero", "/heartbeat", "/rdma"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_a_stranger_learns_nothing(control: Control, method: str, path: str) -> None:
    """A wrong id and a wrong token get the same answer to the byte, and no token gets none, whatever else is asked."""
    held = await control.lease()
    await control.map(held, 0)
    real, unreal = f"/v1/leases/{held.lease}{path}", "/v1/leases/0123456789abcdef" + path
    wrong = held.token[:-1] + ("A" if held.token[-1] != "A" else "B")
    answers = [
        await control.call(method, real, token=wrong),
        await control.call(method, unreal, token=held.token),
        await control.call(method, unreal, token=wrong),
    ]
    if answers[0].status == 405:
        return
    contents = {json.dumps(answer.content) for answer in answers}
    assert [answer.status for answer in answers] == [404, 404, 404]
    assert len(contents) == 1
    assert {frozenset(answer.headers) for answer in answers} == {frozenset(answers[0].headers)}
    for target in (real, unreal):
        answer = await control.call(method, target)
        refused(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for header in ("Bearer", "Bearer ", f"Basic {held.token}", held.token, "Bearer \u00e9\u2028"):
        async with control.session.request(method, control.url + real, headers={"Authorization": header}) as response:
            assert response.status in (401, 404)
    assert (await control.heartbeat(held)).content["slabs"] == [0]


async def test_public_answers_name_no_lease(control: Control) -> None:
    """Offer, stats, metrics and health say how much, never whose."""
    held = await control.lease(device="very-private-name")
    await control.map(held, 3)
    for path in ("/v1/offer", "/v1/stats", "/v1/metrics", "/v1/health"):
        content = str((await control.call("GET", path)).content)
        for secret in (held.token, held.lease, "very-private-name", DEVICE_ID):
            assert secret not in content


async def test_tokens_are_never_logged(caplog: pytest.LogCaptureFixture, session: aiohttp.ClientSession) -> None:
    """At the most talkative log level, through a whole life with mistakes, no token comes up."""
    with caplog.at_level(logging.DEBUG):
        service = MemoryService(daemon_config(log_level="debug"))
        await service.start()
        control = Control(session, f"http://{service.http_address}")
        held = await control.lease()
        await control.map(held, 0)
        await control.heartbeat(held)
        await control.call("GET", "/v1/leases/none", token=held.token)
        with socket.create_connection((held.host, held.port)) as client:
            client.sendall(b"\0\0\0\3IHAVEOPT\0\0\0\1" + len(held.export).to_bytes(4, "big") + held.export.encode())
            client.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(client.recv, 4096)
        await control.release(held)
        await service.close()
    assert "lease" in caplog.text
    assert held.token not in caplog.text
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["refused a GET of 127.0.0.1: 404 there is no lease with this id and token"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"device": ""}, "device"),
        ({"device": None}, "device"),
        ({"device": 5}, "device"),
        ({"device": "x" * 256}, "device"),
        ({"device": "two\nlines"}, "device"),
        ({"device": "\x1b[2J"}, "device"),
        ({"device_id": "not-a-uuid"}, "device_id"),
        ({"device_id": "{" + DEVICE_ID + "}"}, "device_id"),
        ({"device_id": None}, "device_id"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"size_bytes": 4095}, "size_bytes"),
        ({"size_bytes": -MIB}, "size_bytes"),
        ({"size_bytes": 1.5 * MIB}, "size_bytes"),
        ({"size_bytes": "1MiB"}, "size_bytes"),
        ({"size_bytes": True}, "size_bytes"),
        ({"size_bytes": None}, "size_bytes"),
        ({"size_bytes": 1 << 63}, "size_bytes"),
        ({"size_bytes": 10**400}, "size_bytes"),
        ({"size_bytes": 1 << 62}, "slabs"),
        ({"slab_bytes": 3 * MIB}, "slab_bytes"),
        ({"slab_bytes": MIB // 2}, "slab_bytes"),
        ({"slab_bytes": 2 << 30}, "slab_bytes"),
        ({"slab_bytes": 0}, "slab_bytes"),
        ({"slab_bytes": [MIB]}, "slab_bytes"),
    ],
)
async def test_leases_that_make_no_sense(control: Control, changes: dict[str, Any], word: str) -> None:
    """Each bad field is 400 with its name, and no lease slot is taken."""
    message = refused(await control.call("POST", "/v1/leases", json={**GOOD, **changes}), 400)
    assert word in message
    assert (await control.offer())["leases"] == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 60000, 400),
        (b'{"a":' * 10000, 400),
        (b'{"size_bytes":' + b"9" * 60000 + b"}", 400),
        (b'{"size_bytes":NaN}', 400),
        (b"x" * (BODY_BYTES_MAX + 1), 413),
        (b" " * (4 * BODY_BYTES_MAX), 413),
    ],
)
async def test_bodies_that_are_no_request(control: Control, body: bytes, status: int) -> None:
    """Garbage, nesting without end and too much of it are refused, and the daemon goes on."""
    refused(await control.call("POST", "/v1/leases", data=body), status)
    held = await control.lease()
    if status == 400 and body:
        refused(await control.call("POST", f"/v1/leases/{held.lease}/heartbeat", token=held.token, data=body), 400)
    assert (await control.heartbeat(held)).status == 200


@pytest.mark.parametrize(
    "index", ["-1", "8", "99999999999999999999999", "18446744073709551616", "0x0", "1.0", "%20", "zero", "+1", "٣"]
)
async def test_indices_that_are_no_slab(control: Control, index: str) -> None:
    """Negative, too large, not a number: 400 for map and unmap alike."""
    held = await control.lease()
    for method in ("PUT", "DELETE"):
        refused(await control.call(method, f"/v1/leases/{held.lease}/slabs/{index}", token=held.token), 400)
    assert (await control.stats())["slabs"] == 0


@pytest.mark.parametrize("query", ["?slab_bytes=", "?slab_bytes=-1", "?slab_bytes=3145728", "?slab_bytes=1e6"])
async def test_offers_for_no_slab_size(control: Control, query: str) -> None:
    """A slab size that cannot be is refused."""
    refused(await control.call("GET", "/v1/offer" + query), 400)


async def test_paths_and_methods_that_are_not_there(control: Control) -> None:
    """404 and 405 are JSON too, and 405 says what is allowed."""
    for path in ("/", "/v1", "/v2/offer", "/v1/leases/", "/v1/offer/", "/v1/leases/a/slabs/0/1"):
        refused(await control.call("GET", path), 404)
    answer = await control.call("DELETE", "/v1/offer")
    assert "GET" in refused(answer, 405)
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
        b"POST /v1/leases HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/leases HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    ],
)
async def test_garbage_is_no_traceback(
    control: Control, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no HTTP at all is answered with 400 or closed, with one line in the log at the most, and no traceback."""
    host, port = control.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_bytes)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert not answer or b" 400 " in answer.splitlines()[0], answer
    assert "Traceback" not in answer.decode(errors="replace")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) <= 1, caplog.text
    assert not any(record.exc_info or "\n" in record.message for record in warnings)
    assert (await control.call("GET", "/v1/health")).status == 200


async def test_metrics_are_prometheus_text(control: Control) -> None:
    """Every number of /v1/stats is a metric, and they agree."""
    held = await control.lease()
    await control.map(held, 0)
    text = (await control.call("GET", "/v1/metrics")).content
    values = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    stats = await control.stats()
    assert values["infiniswapd_leases"] == stats["leases"] == 1
    assert values["infiniswapd_memory_used_bytes"] == stats["memory"]["used_bytes"] == MIB
    assert values["infiniswapd_slabs_mapped_total"] == stats["counts"]["slabs_mapped"] == 1
    assert values["infiniswapd_host_available_bytes"] > 0
    assert values["infiniswapd_connections"] == 0
    assert values["infiniswapd_refused_requests_total"] == 0


async def test_lease_slots_run_out(session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease beyond the last slot gets 503, and a slot given back is free again."""
    monkeypatch.setattr(service_module, "LEASES_MAX", 3)
    monkeypatch.setattr(quotas, "ADDRESS_SHARE", 1)  # all come from here
    service = MemoryService(daemon_config())
    await service.start()
    control = Control(session, f"http://{service.http_address}")
    leases = [await control.lease() for _ in range(3)]
    refused(await control.call("POST", "/v1/leases", json=GOOD), 503)
    await control.release(leases[1])
    await control.lease()
    await service.close()


async def test_the_offer_follows_the_host(session: aiohttp.ClientSession) -> None:
    """When the host needs its memory the offer shrinks and mapping stops; slabs that are out stay."""
    available = 100 * MIB
    service = MemoryService(
        daemon_config(headroom=MemoryAmount(size_bytes=50 * MIB)),
        read_host=lambda: HostMemory(1 << 30, available, None),
    )
    await service.start()
    control = Control(session, f"http://{service.http_address}")
    held = await control.lease(16 * MIB)
    for index in range(4):
        await control.map(held, index)
    assert await control.offer() | {"incarnation": ""} == {
        "incarnation": "", "total_bytes": 16 * MIB, "free_bytes": 12 * MIB, "used_bytes": 4 * MIB, "leases": 1,
        "rdma": None, **STANDING,
    }  # fmt: skip
    available = 63 * MIB  # new slabs leave an eighth of the headroom beside it
    assert (await control.map(held, 4)).content["free_bytes"] == MIB
    assert (await control.map(held, 5)).content["free_bytes"] == 0
    refused(await control.map(held, 6), 507)
    available = 10 * MIB
    refused(await control.map(held, 6), 507)
    offer = await control.offer()
    assert (offer["total_bytes"], offer["free_bytes"], offer["used_bytes"]) == (6 * MIB, 0, 6 * MIB)
    assert (await control.heartbeat(held)).content["slabs"] == [0, 1, 2, 3, 4, 5]
    await service.close()


async def test_a_lease_without_heartbeat_ends(session: aiohttp.ClientSession) -> None:
    """After ttl_s the memory is free, the token opens nothing, and only the one that was silent is gone."""
    clock = FakeClock()
    service = MemoryService(daemon_config(lease_grace_s=0.0), clock=clock)
    await service.start()
    control = Control(session, f"http://{service.http_address}")
    silent, alive = await control.lease(), await control.lease()
    await control.map(silent, 0)
    await control.map(alive, 0)
    for _ in range(61):
        clock.now_s += 1.0
        # Slower than the daemon's own loop would be, which would take the fake time for a stall.
        await service.expire()
        assert (await control.heartbeat(alive)).status == 200
    refused(await control.map(silent, 1), 404)
    refused(await control.heartbeat(silent), 404)
    stats = await control.stats()
    assert (stats["leases"], stats["slabs"], stats["counts"]["leases_expired"]) == (1, 1, 1)
    await service.close()


async def test_a_daemon_that_stood_still_forgives(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour without CPU does not cost the devices their leases; the time after it counts again."""
    clock = FakeClock()
    service = MemoryService(daemon_config(), clock=clock)
    await service.start()
    control = Control(session, f"http://{service.http_address}")
    held = await control.lease()
    clock.now_s += 3600.0
    await service.expire()
    assert "stood still" in caplog.text
    assert (await control.heartbeat(held)).status == 200
    await service.close()


async def test_a_wildcard_address_is_told_as_the_client_reached_it(session: aiohttp.ClientSession) -> None:
    """A daemon on 0.0.0.0 tells the device an address that it can use."""
    service = MemoryService(daemon_config(listen=HostPort("0.0.0.0", 0), insecure=True))
    await service.start()
    for host in ("127.0.0.1", "127.0.0.2"):
        held = await Control(session, f"http://{host}:{service.http_address.port}").lease()
        assert held.host == host
        with socket.create_connection((held.host, held.port), timeout=20) as client:
            assert (await asyncio.to_thread(client.recv, 8)) == b"NBDMAGIC"
    await service.close()


async def test_a_body_that_never_comes(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who announces a body and does not send it is told so at the deadline."""
    monkeypatch.setattr(http_server_module, "BODY_TIMEOUT_S", 0.1)
    host, port = control.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/leases HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
    head = await asyncio.wait_for(reader.readline(), 20)
    assert b" 408 " in head
    writer.close()


async def test_a_client_whose_lease_has_just_ended_is_turned_away() -> None:
    """A negotiation that was under way when the lease ended gets no connection to what has its export number now."""
    clock, engine = FakeClock(), FakeEngine()
    arena = Arena(MIB)
    lender = Lender(arena=arena, leases=LeaseTable(clock, ttl_s=60.0), engine=engine, monitor=None)
    old, token = lender.grant(device="d", device_id="i", size_bytes=MIB, slab_bytes=MIB)
    tickets = Tickets(clock, lender.leases.is_live)
    export = page_door.export_info(lender.leases, tickets, "lease-" + token, secured=False)
    assert export is not None
    complaints = Complaints(logging.getLogger("test"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lender.leases.remove(old)
        page_door.hand_over(lender, engine, complaints, ours, Negotiated(export, structured=True, allocation=False))
        assert ours.fileno() == -1
        assert engine.counter("connections") == 0
    arena.close()


async def test_connections_beyond_the_limit_make_room(control: Control) -> None:
    """A flood of silent connections shuts nobody out: those that were silent longest end for new ones."""
    host, port = control.url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS_MAX + 5)]
    for reader, _ in idle[:5]:
        assert await asyncio.wait_for(reader.read(), 20) == b"", "it made room"
    async with aiohttp.ClientSession() as fresh, fresh.get(control.url + "/v1/health") as response:
        assert response.status == 200
    for _, writer in idle:
        writer.close()
    assert (await control.stats())["connections"]["gave_way"] >= 5
