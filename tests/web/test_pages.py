"""Both web pages in a real browser: live numbers, no complaint of the browser, desk and phone, light and dark."""

from __future__ import annotations

import json
import re
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, browser
from tests.support.services import Daemon, Device, Services
from tests.support.waiting import wait_for

PAGE = 4096
PHONE = 360


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One for all tests here: it takes seconds to start."""
    with browser() as session:
        yield session


def served(services: Services) -> tuple[Daemon, Device]:
    """A daemon and a device with a page each, and some pages in remote memory."""
    daemon = services.daemon("32MiB", "--web", "127.0.0.1:0", "--log-level", "info")
    device = services.device("vol", "--web", "127.0.0.1:0", "--map", "eager", size="16MiB", peers=[daemon])
    with device.connect() as client:
        for page in range(512):
            client.write(page * PAGE, bytes([page % 251]) * PAGE)
            client.read(page * PAGE, PAGE)
    return daemon, device


def page_of(service: Daemon | Device) -> str:
    """Where its page is, as its log says."""
    found = re.search(r"web page at (\S+)", service.log)
    assert found is not None
    return found.group(1)


def drawn(chromium: Browser) -> int:
    """Number of the sample that the page shows; 0: none yet."""
    return int(chromium.run("return document.documentElement.dataset.drawn || 0"))


def opened(chromium: Browser, url: str) -> None:
    """Go there, until numbers are shown; what was complained of before is forgotten."""
    chromium.open("about:blank")  # the page before may belong to a program that has ended
    chromium.complaints()
    chromium.open(url)
    wait_for(lambda: drawn(chromium), what="numbers on the page")


def text(chromium: Browser, selector: str) -> str:
    """What the first such element says."""
    return str(chromium.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def test_a_device(services: Services, chromium: Browser) -> None:
    """The page shows the device, its slabs and its peer, and goes on by itself; the browser complains of nothing."""
    daemon, device = served(services)
    chromium.show_as(width=1200)
    opened(chromium, page_of(device))
    assert text(chromium, "h1") == "vol"
    assert daemon.address in text(chromium, "#peers")
    assert chromium.run("return document.querySelectorAll('#heat rect').length") == 16
    mapped = device.get("/v1/status")["mapped_slabs"]
    assert mapped > 0
    assert text(chromium, "#heat-summary").startswith(f"{mapped} of 16 slabs have remote memory")
    assert "remote memory" in chromium.run("return document.querySelector('#ins svg').getAttribute('aria-label')")
    first = drawn(chromium)
    wait_for(lambda: drawn(chromium) > first, what="newer numbers")
    assert text(chromium, "#link") == "live"
    assert chromium.complaints() == []


def test_slabs_by_keyboard(services: Services, chromium: Browser) -> None:
    """The picture of the slabs can be read without a pointer and without colours."""
    daemon, device = served(services)
    opened(chromium, page_of(device))
    chromium.run("document.querySelector('#heat svg').focus()")
    chromium.key("ArrowRight")
    chromium.key("ArrowRight")
    assert text(chromium, "#heat-cell").startswith(f"Slab 1: mapped to {daemon.address}; ")
    chromium.key("End")
    assert text(chromium, "#heat-cell").startswith("Slab 15: no remote memory; 0 page I/O a second")


def test_a_daemon(services: Services, chromium: Browser) -> None:
    """The page shows what is lent, of what, and to which device."""
    daemon, device = served(services)
    chromium.show_as(width=1200)
    opened(chromium, page_of(daemon))
    lent = device.get("/v1/status")["mapped_slabs"]
    wait_for(lambda: f"{lent} MiB of 32 MiB" in " ".join(text(chromium, "#tiles").split()), what="the memory lent")
    assert "vol" in text(chromium, "#leases")
    assert "programs of this host" in text(chromium, "#memory")
    assert chromium.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone(services: Services, chromium: Browser, dark: bool) -> None:
    """Nothing of either page is wider than a small phone, and light and dark differ."""
    daemon, device = served(services)
    chromium.show_as(width=PHONE, height=640, dark=dark)
    for url in (page_of(device), page_of(daemon)):
        opened(chromium, url)
        assert chromium.run("return document.documentElement.scrollWidth") <= PHONE
        red, green, blue = map(
            int, re.findall(r"\d+", chromium.run("return getComputedStyle(document.body).backgroundColor"))[:3]
        )
        assert (red + green + blue < 3 * 64) is dark


def test_a_device_that_goes_away(services: Services, chromium: Browser) -> None:
    """Old numbers are not taken for new ones: the page says how long there was no news; it comes back by itself."""
    daemon = services.daemon()
    device = services.device("vol", "--web", "127.0.0.1:0", peers=[daemon])
    url = page_of(device)
    opened(chromium, url)
    device.stop()
    wait_for(lambda: text(chromium, "#link").startswith("no news for"), what="a word that nobody answers")
    assert chromium.run("return document.querySelector('#link').className") == "link stale"
    address = url.removeprefix("http://").rstrip("/")
    services.device("vol", "--web", address, peers=[daemon])
    wait_for(lambda: text(chromium, "#link") == "live", 40, what="the page comes back")


def test_what_is_wrong(services: Services, chromium: Browser) -> None:
    """The page says it in words, under the code that infiniswap status has for it."""
    daemon, device = served(services)
    services.expect_log(r"page I/O failed", r"cannot connect|no answer|refused", r"peer \S+")
    daemon.kill()
    opened(chromium, page_of(device))
    wait_for(lambda: f"PEER_DOWN {daemon.address}" in text(chromium, "#notices"), what="the word for it")


def test_a_daemon_that_is_cordoned(services: Services, chromium: Browser) -> None:
    """The daemon's page says it, too."""
    daemon, _ = served(services)
    assert services.command("donor", "cordon", daemon.address).returncode == 0
    opened(chromium, page_of(daemon))
    wait_for(lambda: "DONOR_CORDONED" in text(chromium, "#notices"), what="the word for it")


def test_names_are_text(services: Services, chromium: Browser) -> None:
    """A lease may be of a device that is called like HTML; it is shown, and is none."""
    daemon = services.daemon("16MiB", "--web", "127.0.0.1:0", "--log-level", "info")
    name = "<img src=x onerror=alert(1)>"
    body = {"device": name, "device_id": str(uuid.uuid4()), "size_bytes": 1 << 20, "slab_bytes": 1 << 20}
    request = urllib.request.Request(f"{daemon.url}/v1/leases", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
    opened(chromium, page_of(daemon))
    wait_for(lambda: name in text(chromium, "#leases"), what="the lease")
    assert chromium.run("return document.querySelectorAll('img').length") == 0
    assert chromium.complaints() == []
