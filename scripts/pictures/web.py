"""Takes the pictures of docs/web.md: a device and a daemon of this host under load, in headless Chromium."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from pathlib import Path
from random import Random

from tests.support.browser import Browser, browser
from tests.support.services import Device, Service, Services
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]

PAGE_BYTES = 4096
PAGES = 32_768  # of the device
LOAD_S = 35.0
WIDE, PHONE = 1120, 390
HEIGHT = 900


def load(device: Device, stop: threading.Event, seed: int) -> None:
    """Reads and writes around some places, more at some times than at others."""
    rng = Random(seed)
    centres = [rng.randrange(PAGES) for _ in range(4)]
    begun_s = time.monotonic()
    with device.connect() as client:
        while not stop.is_set():
            page = int(rng.gauss(rng.choice(centres), 700)) % PAGES
            if rng.random() < 0.35:
                client.write(page * PAGE_BYTES, bytes([rng.randrange(256)]) * PAGE_BYTES)
            else:
                client.read(page * PAGE_BYTES, PAGE_BYTES)
            time.sleep(0.004 if int(time.monotonic() - begun_s) % 20 < 8 else 0.001)


def page_of(service: Service) -> str:
    """Where its web page is."""
    found = re.search(r"web page at (\S+)", service.log)
    assert found is not None, service.log
    return found.group(1)


def take(session: Browser, url: str, path: Path, *, width: int = WIDE, dark: bool = False) -> None:
    """A picture of the page, once it shows numbers."""
    session.show_as(width=width, height=HEIGHT, dark=dark)
    session.open(url)
    wait_for(lambda: session.run("return document.documentElement.dataset.drawn"), what="numbers on the page")
    path.write_bytes(session.picture())


def main() -> None:
    """Write all pictures into docs/."""
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory(prefix="isw-") as folder, Services(Path(folder)) as services:
        options = ("--web", "127.0.0.1:0", "--log-level", "info")
        daemons = [services.daemon("48MiB", "--headroom", "1GiB", *options) for _ in range(3)]
        device = services.device("swap0", *options, size="128MiB", slab_size="1MiB", peers=daemons)
        stop = threading.Event()
        loads = [threading.Thread(target=load, args=(device, stop, seed)) for seed in (1, 2)]
        for thread in loads:
            thread.start()
        try:
            time.sleep(LOAD_S)
            with browser() as session:
                take(session, page_of(device), docs / "web-device.png")
                take(session, page_of(device), docs / "web-device-dark.png", dark=True)
                take(session, page_of(daemons[0]), docs / "web-daemon.png")
        finally:
            stop.set()
            for thread in loads:
                thread.join()


if __name__ == "__main__":
    main()
