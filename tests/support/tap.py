"""Somebody on the wire who listens: records what is said to a server, whatever it means, and says it again later."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 16
RECORD_BYTES_MAX = 1 << 20  # of one connection
REPLAY_TIMEOUT_S = 3.0


@dataclass
class Tap:
    """Passes bytes on as they are, whatever they mean, and keeps what was sent to the target; a list a connection."""

    target: tuple[str, int]
    recorded: list[bytearray] = field(default_factory=list)

    async def serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it."""
        far_in, far_out = await asyncio.open_connection(*self.target)
        kept = bytearray()
        self.recorded.append(kept)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray | None) -> None:
            while data := await reader.read(CHUNK_BYTES):
                if record is not None and len(record) < RECORD_BYTES_MAX:
                    record += data
                writer.write(data)
                await writer.drain()

        pumps = {asyncio.create_task(pump(near_in, far_out, kept)), asyncio.create_task(pump(far_in, near_out, None))}
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in (near_out, far_out):
            writer.transport.abort()

    async def replay(self, number: int) -> str:
        """Say again what was said on that connection, on a new one; all that is answered, in hex."""
        reader, writer = await asyncio.open_connection(*self.target)
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                writer.write(bytes(self.recorded[number]))
                await writer.drain()
                while data := await reader.read(CHUNK_BYTES):
                    answer += data
        writer.transport.abort()
        return answer.hex()
