"""Helpers for tests of a running device: random data, a writer under load that knows what must be read back."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path
from typing import Self

from infiniswap.nbd.client import NbdClient
from tests.support.services import Device

PAGE_BYTES = 4096
SLAB_BYTES = 1 << 20


def pattern(pages: int, seed: int = 1) -> bytes:
    """Pages that all differ."""
    return random.Random(seed).randbytes(pages * PAGE_BYTES)


def resize(disk: Path, size: str) -> None:
    """Give a small disk (fixture disk) another size, as mount takes it."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], timeout=30, check=True)


def slab_states(device: Device) -> dict[int, str]:
    """State by slab."""
    return {slab["index"]: slab["state"] for slab in device.get("/v1/slabs")}


def mapped(device: Device) -> set[int]:
    """Slabs that have remote memory."""
    return {index for index, state in slab_states(device).items() if state == "mapped"}


def pending_pages(device: Device) -> int:
    """Pages that are not on the backup yet."""
    return int(device.get("/v1/stats")["pending_bytes"]) // PAGE_BYTES


class PageModel:
    """What each page may hold: the last version acknowledged, and those sent after it."""

    def __init__(self, data: bytes) -> None:
        """data was written and acknowledged, from page 0 on."""
        self.pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
        self.unsure: dict[int, list[bytes]] = {}

    def verify(self, client: NbdClient) -> list[int]:
        """Read all pages; AssertionError for a wrong one. Returns those that cannot be read."""
        unreadable = []
        for page, expected in enumerate(self.pages):
            try:
                got = client.read(page * PAGE_BYTES, PAGE_BYTES)
            except OSError:
                unreadable.append(page)
                continue
            assert got == expected or got in self.unsure.get(page, []), f"page {page} is wrong"
            self.pages[page] = got
            self.unsure.pop(page, None)
        return unreadable


class Load:
    """Threads that rewrite random pages of a device until it dies or they are stopped. Use it as a context manager."""

    def __init__(self, device: Device, model: PageModel, *, threads: int = 3, seed: int = 1) -> None:
        """Each thread has pages of its own, so that the model knows the order of writes."""
        self._model = model
        self._over = threading.Event()
        self._clients = [device.connect() for _ in range(threads)]
        self.written = 0
        self.errors: list[OSError] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(seed * 100 + number)))
            for number in range(threads)
        ]

    def _run(self, number: int, rng: random.Random) -> None:
        client, model = self._clients[number], self._model
        mine = range(number, len(model.pages), len(self._clients))
        try:
            while not self._over.is_set():
                page, content = rng.choice(mine), rng.randbytes(PAGE_BYTES)
                model.unsure.setdefault(page, []).append(content)
                client.write(page * PAGE_BYTES, content)
                model.pages[page] = content
                del model.unsure[page]
                self.written += 1
        except OSError as error:
            self.errors.append(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60.0)
            assert not thread.is_alive(), "a client waits for an answer that does not come"
        for client in self._clients:
            client.close()
