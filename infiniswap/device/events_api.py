"""GET /v1/events: news of a device, or of one with shards, to whoever listens on a WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging

from aiohttp import WSMsgType, web

from infiniswap.device.events import EventHub, News, TooManyListenersError
from infiniswap.shared.http_server import opened, require_websocket

log = logging.getLogger(__name__)

PATH = "/v1/events"
SEND_TIMEOUT_S = 10.0
MESSAGE_BYTES_MAX = 4096  # nothing is expected from a subscriber
CLOSE_TIMEOUT_S = 1.0
HEARTBEAT_S = 30.0


async def serve_events(request: web.Request, events: EventHub) -> web.StreamResponse:
    """Tell until either side has enough."""
    require_websocket(request)
    try:
        with events.subscribe() as queue:
            return await _tell(request, queue)
    except TooManyListenersError as error:
        raise web.HTTPServiceUnavailable(reason=str(error)) from None


async def _tell(request: web.Request, queue: asyncio.Queue[News | None]) -> web.StreamResponse:
    websocket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES_MAX, timeout=CLOSE_TIMEOUT_S)
    if not await opened(websocket, request):
        return web.Response()  # that nobody reads
    listening = asyncio.create_task(_listen(websocket, queue))
    try:
        while (news := await queue.get()) is not None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await websocket.send_str(json.dumps(news))
    except (TimeoutError, ConnectionError):
        log.info("a listener for events takes nothing or is gone")
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await websocket.close()
    return websocket


async def _listen(websocket: web.WebSocketResponse, queue: asyncio.Queue[News | None]) -> None:
    """Notice when the other side closes; whatever it says is ignored."""
    async for message in websocket:
        if message.type == WSMsgType.ERROR:
            break
    while queue.full():
        queue.get_nowait()
    queue.put_nowait(None)
