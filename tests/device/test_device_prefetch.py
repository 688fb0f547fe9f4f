"""What a device reads before it is asked for (--prefetch auto) is what it is asked for then, and never old."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from typing import Self

import pytest

from infiniswap.nbd.client import NbdClient
from tests.support.fault_proxy import FaultProxy, Faults
from tests.support.services import Device, Services
from tests.support.waiting import wait_for

PAGE_BYTES = 4096
PAGES = 2048
SIZE = "8MiB"


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A network that can be slow."""
    with FaultProxy() as proxy:
        yield proxy


def counts(device: Device) -> dict[str, int]:
    """The engine's counters."""
    found: dict[str, int] = device.get("/v1/stats")["counters"]
    return found


class Versions:
    """Each page holds its number and a version; a writer makes new ones, a reader knows which it may meet."""

    def __init__(self, device: Device) -> None:
        """All pages are written once, and in remote memory."""
        self.sent, self.acknowledged = [1] * PAGES, [1] * PAGES
        self.written, self._over = 0, threading.Event()
        self._writer = device.connect()
        for _ in range(5):
            for first in range(0, PAGES, 256):
                data = b"".join(self.content(page, 1) for page in range(first, first + 256))
                self._writer.write(first * PAGE_BYTES, data)
            wait_for(lambda: not device.get("/v1/stats")["pending_bytes"], what="an empty pending buffer")
            if sum(slab["remote_pages"] for slab in device.get("/v1/slabs")) == PAGES:
                break
        self._thread = threading.Thread(target=self._write)

    @staticmethod
    def content(page: int, version: int) -> bytes:
        """Of a page."""
        return struct.pack("<QQ", page, version) * (PAGE_BYTES // 16)

    def _write(self) -> None:
        rng = random.Random(7)
        while not self._over.is_set():
            page = rng.randrange(PAGES)
            version = self.sent[page] = self.sent[page] + 1
            self._writer.write(page * PAGE_BYTES, self.content(page, version))
            self.acknowledged[page] = version
            self.written += 1

    def read(self, client: NbdClient, page: int) -> None:
        """Neither older than what was acknowledged before, nor anything that nobody wrote."""
        least = self.acknowledged[page]
        got = client.read(page * PAGE_BYTES, PAGE_BYTES)
        _, version = struct.unpack_from("<QQ", got)
        assert got == self.content(page, version), f"page {page} is of no version"
        assert least <= version <= self.sent[page], f"page {page} is of version {version}, not {least} or later"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60.0)
        self.close()

    def close(self) -> None:
        """The writer's connection."""
        self._writer.close()


def test_a_reader_in_sequence_beside_a_writer(proxy: FaultProxy, services: Services) -> None:
    """Over a slow network most pages are there before they are asked for, each of a version that it may have."""
    daemon = services.daemon("64MiB")
    near = proxy.link("near", daemon.address)
    device = services.device("vol", "--map", "eager", "--prefetch", "auto", size=SIZE, peers=[near])
    versions = Versions(device)
    proxy.set("near", Faults(slow_every=1, slow_ms=1))
    with versions, device.connect() as client:
        for page in [*range(PAGES), *range(0, PAGES, 7)]:
            versions.read(client, page)
    found = counts(device)
    assert versions.written > 0
    assert found["prefetch_hits"] > PAGES // 2, found
    assert found["checksum_mismatches"] == 0
    assert found["prefetch_guesses"] >= found["prefetch_hits"] + found["prefetch_wasted"] + found["prefetch_dropped"]


def test_nothing_is_guessed_unless_asked_for(proxy: FaultProxy, services: Services) -> None:
    """By itself a device reads what it is asked for."""
    near = proxy.link("near", services.daemon("64MiB").address)
    device = services.device("vol", "--map", "eager", size=SIZE, peers=[near])
    versions = Versions(device)
    proxy.set("near", Faults(slow_every=1, slow_ms=1))
    with device.connect() as client:
        for page in range(200):
            versions.read(client, page)
    versions.close()
    assert counts(device)["prefetch_guesses"] == 0
