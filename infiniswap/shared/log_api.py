"""GET and POST /v1/log-level of both programs: which levels are in force, and setting them."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from infiniswap.shared import logs
from infiniswap.shared.errors import UserError
from infiniswap.shared.http_server import BodyError, read_object

PATH = "/v1/log-level"
SETTINGS_MAX = 64


async def change(request: web.Request) -> None:
    """As the body's "set" says: [MODULE=]LEVEL, or a list of them. BodyError, and then nothing has changed."""
    asked = (await read_object(request)).get("set")
    texts = asked if isinstance(asked, list) else [asked]
    wanted = [text for text in texts if isinstance(text, str)]
    if wanted != texts or len(wanted) > SETTINGS_MAX:
        sentence = f'"set" must be "[MODULE=]LEVEL" or a list of at most {SETTINGS_MAX} such'
        raise BodyError(HTTPStatus.BAD_REQUEST, sentence)
    try:
        logs.set_level(*wanted)
    except UserError as error:
        raise BodyError(HTTPStatus.BAD_REQUEST, str(error)) from None


def answer() -> web.Response:
    """The levels in force."""
    return web.json_response({"levels": logs.levels()}, headers={"Cache-Control": "no-store"})
