"""An HTTP answer to who gets no further than that, without a server behind it."""

from __future__ import annotations

import json
from http import HTTPStatus


def plain_answer(status: HTTPStatus, sentence: str) -> bytes:
    """An error in the shape of all others, whole; the connection is to be closed after it."""
    body = json.dumps({"error": sentence}).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
