"""Fixtures of the daemon's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from infiniswap.daemon.service import MemoryService
from tests.support.daemon_api import Control, daemon_config


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as opened:
        yield opened


@pytest_asyncio.fixture
async def control(session: aiohttp.ClientSession) -> AsyncIterator[Control]:
    """A client of a daemon of 16 MiB that runs in this process with the real engine."""
    service = MemoryService(daemon_config())
    await service.start()
    try:
        yield Control(session, f"http://{service.http_address}")
    finally:
        await service.close()
