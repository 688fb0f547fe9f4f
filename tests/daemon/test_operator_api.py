"""The administrators' calls: what they tell is true, what they order is done, and who may not is told the way out."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from infiniswap.daemon.monitor import HostReader
from infiniswap.daemon.operator_api import OperatorApi
from infiniswap.daemon.operators import Operators
from infiniswap.daemon.options import MemoryAmount
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.service import MemoryService
from infiniswap.policy.headroom import HostMemory
from infiniswap.shared.operator_messages import DonorState, DonorStatus, DrainState
from tests.support.daemon_api import MIB, Control, Held, daemon_config
from tests.support.waiting import eventually

CALLS = (("GET", "status"), ("POST", "cordon"), ("POST", "uncordon"), ("POST", "drain"))


async def status(control: Control) -> DonorStatus:
    """As the command reads it."""
    return DonorStatus.parse((await control.call("GET", "/v1/status")).content)


async def order(control: Control, what: str, **content: object) -> DonorStatus:
    """POST, and the status that it answers with."""
    answer = await control.call("POST", f"/v1/{what}", json=content)
    assert answer.status == 200, answer
    return DonorStatus.parse(answer.content)


async def test_status_adds_up(control: Control) -> None:
    """What is lent is what the leases hold, by device and host; memory that is not lent is free."""
    fresh = await status(control)
    assert (fresh.state, fresh.leases, fresh.drain, fresh.evicted, fresh.evicted_by_force) == (
        DonorState.LENDING, (), None, 0, 0,
    )  # fmt: skip
    first, second = await control.lease(device="vol"), await control.lease(device="swap0", slab_bytes=2 * MIB)
    for held, slabs in ((first, (0, 1, 5)), (second, (0,))):
        for slab in slabs:
            assert (await control.map(held, slab)).status == 200
    shown = await status(control)
    assert [(lease.holding.device, lease.holding.host, lease.holding.slabs) for lease in shown.leases] == [
        ("vol", "127.0.0.1", 3),
        ("swap0", "127.0.0.1", 1),
    ]
    assert [lease.lease for lease in shown.leases] == [first.lease, second.lease]
    memory = shown.memory
    assert (memory.limit_bytes, memory.lent_bytes, memory.used_bytes) == (16 * MIB, 5 * MIB, 5 * MIB)
    assert memory.free_bytes == 11 * MIB
    assert shown.host is not None
    assert shown.host.headroom_bytes == 0
    health = (await control.call("GET", "/v1/health")).content
    assert (shown.version, shown.incarnation) == (health["version"], health["incarnation"])


async def test_no_secrets(control: Control) -> None:
    """Neither a token nor the export's name, which opens a lease's pages, stands in the status."""
    held = await control.lease()
    answer = await control.call("GET", "/v1/status")
    assert held.token not in str(answer.content)
    assert held.export not in str(answer.content)
    assert answer.headers["Cache-Control"] == "no-store"


async def test_cordon_and_uncordon(control: Control) -> None:
    """A cordoned daemon offers and maps nothing, keeps what is lent, and is as before after uncordon; twice is once."""
    held = await control.lease()
    assert (await control.map(held, 0)).status == 200
    for _ in range(2):
        assert (await order(control, "cordon")).state is DonorState.CORDONED
    assert (await control.offer())["free_bytes"] == 0
    refused = await control.map(held, 1)
    assert (refused.status, refused.content) == (503, {"error": "this daemon lends nothing more now"})
    assert (await control.map(held, 0)).status == 200  # it is there
    assert (await control.heartbeat(held)).content["slabs"] == [0]
    for _ in range(2):
        shown = await order(control, "uncordon")
        assert (shown.state, shown.memory.lent_bytes) == (DonorState.LENDING, MIB)
    assert (await control.map(held, 1)).status == 200


async def test_drain_of_a_device_that_polls(control: Control) -> None:
    """It learns of the drain by its heartbeat, gives up what it can; the rest is taken at the deadline, by name."""
    held = await control.lease(device="vol")
    for slab in range(3):
        await control.map(held, slab)
    begun = await order(control, "drain", deadline_s=600)
    assert (begun.state, begun.drain and begun.drain.slabs) == (DonorState.DRAINING, 3)

    async def leaving() -> dict[str, int]:
        told: dict[str, int] = (await control.heartbeat(held)).content["leaving"]
        return told

    await eventually(leaving, "the device being told")
    told = await leaving()
    assert set(told) == {"0", "1", "2"}
    assert all(590_000 < left_ms <= 600_000 for left_ms in told.values())
    await control.unmap(held, 1)
    assert (await status(control)).drain is not None
    await order(control, "drain", deadline_s=0)

    async def drained() -> bool:
        return (await status(control)).state is DonorState.DRAINED

    await eventually(drained, "the drain's end")
    shown = await status(control)
    assert shown.drain is not None
    assert (shown.drain.state, shown.drain.left, shown.drain.moved) == (DrainState.DONE, 0, 1)
    assert [(each.device, each.host, each.slabs) for each in shown.drain.forced] == [("vol", "127.0.0.1", 2)]
    assert (shown.evicted, shown.evicted_by_force) == (1, 2)
    assert (await control.heartbeat(held)).content["slabs"] == []
    assert (await order(control, "uncordon")).state is DonorState.LENDING
    assert (await control.map(held, 0)).status == 200


async def test_uncordon_ends_a_drain(control: Control) -> None:
    """Nothing is due any more, also not at what was the deadline."""
    held = await control.lease()
    await control.map(held, 0)
    await order(control, "drain", deadline_s=600)

    async def leaving() -> object:
        return (await control.heartbeat(held)).content["leaving"]

    await eventually(leaving)
    shown = await order(control, "uncordon")
    assert shown.drain is not None
    assert (shown.state, shown.drain.state, shown.drain.left) == (DonorState.LENDING, DrainState.ENDED, 1)
    assert await leaving() == {}
    assert (await control.heartbeat(held)).content["slabs"] == [0]


async def eight_slabs(control: Control) -> Held:
    """A lease that has all of its slabs."""
    held = await control.lease()
    for slab in range(8):
        assert (await control.map(held, slab)).status == 200
    return held


async def test_the_host_does_not_wait_for_a_drain(session: aiohttp.ClientSession) -> None:
    """Memory that the host needs while a drain has ten minutes left comes back as fast as without a drain."""
    available = 64 * MIB
    config = daemon_config(headroom=MemoryAmount(size_bytes=16 * MIB))
    service = MemoryService(config, read_host=lambda: HostMemory(64 * MIB, available))
    await service.start()
    try:
        control = Control(session, f"http://{service.http_address}")
        held = await eight_slabs(control)
        await order(control, "drain", deadline_s=600)

        async def leaving() -> bool:
            return len((await control.heartbeat(held)).content["leaving"]) == 8

        await eventually(leaving)
        available = 20 * MIB  # with 16 to be kept free

        async def taken() -> bool:
            return (await status(control)).evicted_by_force >= 4

        await eventually(taken, "the host's memory")
        shown = await status(control)
        assert shown.state is DonorState.DRAINING
        assert shown.memory.lent_bytes == 4 * MIB
    finally:
        await service.close()


async def test_what_lies_in_lists_of_processors_is_told(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon counts it when its host is near the limit, takes nothing back for it, and says how much it is."""
    available = 64 * MIB
    monkeypatch.setattr(HostReader, "__call__", lambda _: HostMemory(64 * MIB, available))
    monkeypatch.setattr(HostReader, "percpu_bytes", lambda _: 3 * MIB)
    service = MemoryService(daemon_config(headroom=MemoryAmount(size_bytes=16 * MIB)))
    await service.start()
    try:
        control = Control(session, f"http://{service.http_address}")
        await eight_slabs(control)
        assert (await control.stats())["host"]["percpu_bytes"] == 0
        available = 21 * MIB  # 24 are to be there for all slabs to be filled

        async def counted() -> bool:
            shown = (await status(control)).host
            return shown is not None and (shown.available_bytes, shown.percpu_bytes) == (24 * MIB, 3 * MIB)

        await eventually(counted, "a look at the lists")
        assert (await control.stats())["host"]["percpu_bytes"] == 3 * MIB
        assert (await control.stats())["counts"]["notices"] == 0
        assert (await status(control)).memory.lent_bytes == 8 * MIB
    finally:
        await service.close()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"deadline_s": -1}, "deadline_s must be a number of seconds from 0 to 3600"),
        ({"deadline_s": "soon"}, "deadline_s must be"),
        ({"stop": "yes"}, "stop must be true or false"),
        ([], "the body is not a JSON object"),
    ],
)
async def test_wrong_orders(control: Control, body: object, sentence: str) -> None:
    """400 with a sentence, and nothing is done."""
    answer = await control.call("POST", "/v1/drain", json=body)
    assert answer.status == 400
    assert sentence in answer.content["error"]
    assert (await status(control)).state is DonorState.LENDING


@pytest.mark.parametrize(("method", "call"), CALLS)
async def test_web_pages_are_refused(control: Control, method: str, call: str) -> None:
    """A browser on the daemon's host may be shown a page that sends orders to loopback; it says whose they are."""
    headers = {"Origin": "https://example.org"}
    async with control.session.request(method, f"{control.url}/v1/{call}", headers=headers, data=b"{}") as answer:
        assert answer.status == 403
        assert (await answer.json())["error"] == "this is for administrators' programs, not for web pages"
    assert (await status(control)).state is DonorState.LENDING


class _Connection:
    """A transport with these two ends."""

    def __init__(self, peer: str, own: str) -> None:
        self._ends = {"peername": (peer, 40000), "sockname": (own, 7401)}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ends.get(name, default)

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize(("method", "call"), CALLS)
async def test_other_hosts_are_refused(method: str, call: str) -> None:
    """Before anything is looked at, with the way out."""
    nothing: Any = None
    api = OperatorApi(nothing, nothing, lambda: 0.0, Operators.LOCAL)
    request = make_mocked_request(method, f"/v1/{call}", transport=_Connection("10.0.0.9", "10.0.0.5"))
    handler = getattr(api, call)
    with pytest.raises(RefusedError, match=r"run the command there \(ssh\), or start infiniswapd with --operators any"):
        await handler(request)
    with pytest.raises(RefusedError) as refusal:
        await handler(make_mocked_request(method, f"/v1/{call}", transport=_Connection("", "")))
    assert refusal.value.reason is Refusal.FORBIDDEN


async def test_anyone(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """With operators = anyone they are not."""
    nothing: Any = None
    api = OperatorApi(nothing, nothing, lambda: 0.0, Operators.ANYONE)
    done = web.Response()
    monkeypatch.setattr(api, "_answer", lambda: done)
    request = make_mocked_request("GET", "/v1/status", transport=_Connection("10.0.0.9", "10.0.0.5"))
    assert await api.status(request) is done
