"""Infiniswap top on real devices: in a terminal, in a pipe, as JSON, and the terminal is as it was after any end."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.screen_of import COLOUR, ScreenOf
from tests.support.services import INFINISWAP, Device, Services
from tests.support.waiting import wait_for

PAGE = b"\xa5" * 4096


@contextmanager
def load(device: Device) -> Iterator[None]:
    """Pages of the first slabs are written, then read again and again."""
    over = Event()

    def run() -> None:
        with device.connect() as client:
            for page in range(512):
                client.write(page * 4096, PAGE)
            while not over.is_set():
                for page in range(512):
                    client.read(page * 4096, 4096)

    thread = Thread(target=run, name="load")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def device(services: Services) -> Device:
    """With two peers, and slabs mapped at the first write."""
    peers = [services.daemon(), services.daemon()]
    device = services.device("web1", "--map", "eager", peers=peers)
    wait_for(lambda: all(row["state"] == "up" for row in device.get("/v1/peers")), what="peers up")
    return device


def test_in_a_terminal_of_80_by_24(services: Services, device: Device) -> None:
    """Rates, sources, peers and slabs are on one screen, deeper is more of one device, and nothing overflows."""
    with load(device), ScreenOf([*INFINISWAP, "top", "--interval", "0.5"], services.environment) as screen:
        shown = screen.until(r"^web1 +serving +[0-9.]+k? +[0-9.]+ .*\n(.*\n)*Pages read from remote [0-9.]+%")
        assert shown[23].startswith("q quit")
        assert sum(1 for line in shown if re.match(r"127\.0\.0\.1:\d+ +up +tcp", line)) == 2
        assert any(line.startswith("32 slabs of 1M: ") for line in shown)
        assert screen.overflow() == []
        screen.press("\r")
        screen.until(r"^remote +[0-9.]+k? +[0-9.]+[um]s")
        assert screen.overflow() == []
        screen.press("\x1b")
        screen.until("enter deeper")
        screen.press("?")
        screen.until("choose a device")
        screen.press("x")
        screen.until("^web1 +serving")
        screen.press(" ")
        screen.until("PAUSED")
        screen.resize(120, 40)
        screen.until("REM% ")
        screen.press("q")
        assert screen.end() == ExitCode.OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_terminal_is_as_it_was(services: Services, device: Device, number: int) -> None:
    """After a signal, too: the screen, the cursor, echo and lines."""
    with ScreenOf([*INFINISWAP, "top", "web1"], services.environment) as screen:
        screen.until("^web1 +serving")
        assert screen.modes() != screen.modes_before  # or the test proves nothing
        assert screen.end(number) == 128 + number


def test_suspended_and_continued(services: Services, device: Device) -> None:
    """Ctrl-Z gives the terminal back to the shell, fg draws anew with keys answered."""
    with ScreenOf([*INFINISWAP, "top", "web1"], services.environment) as screen:
        screen.until("^web1 +serving")
        screen.process.send_signal(signal.SIGTSTP)
        stat = Path(f"/proc/{screen.process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the stop")
        assert screen.modes() == screen.modes_before
        screen.process.send_signal(signal.SIGCONT)
        wait_for(lambda: screen.modes() != screen.modes_before, what="keys without Enter again")
        screen.press("?")
        screen.until("choose a device")
        screen.press("q")
        assert screen.end() == ExitCode.OK


def test_an_exception_gives_the_terminal_back(services: Services) -> None:
    """Whatever goes wrong while the screen is shown; the traceback then stands where it can be read."""
    code = (
        "from rich.console import Console; from infiniswap.cli.top.terminal import Terminal\n"
        "with Terminal(Console()).shown(): raise RuntimeError('a bug')"
    )
    with ScreenOf([sys.executable, "-c", code], services.environment) as screen:
        assert screen.end() == 1
        assert screen.raw.rfind(b"a bug") > screen.raw.rfind(b"\x1b[?1049l")


def test_a_silent_device_holds_nothing_up(services: Services, device: Device) -> None:
    """While it does not answer, the screen says so, and keys are answered at once."""
    with ScreenOf([*INFINISWAP, "top", "--interval", "0.2"], services.environment) as screen:
        screen.until("^web1 +serving")
        with device.suspended():
            screen.until("^web1 +silent")
            screen.press("?")
            screen.until("choose a device")
        screen.press("x")
        screen.until("^web1 +serving")
        screen.press("q")
        assert screen.end() == ExitCode.OK


def test_without_colour(services: Services, device: Device) -> None:
    """NO_COLOR draws the same screen with no colour; TERM=dumb gets plain text, without a single escape."""
    with ScreenOf([*INFINISWAP, "top"], {**services.environment, "NO_COLOR": "1"}) as screen:
        screen.until("^web1 +serving")
        screen.press("q")
        screen.end()
        assert not COLOUR.search(screen.raw)
    dumb = {**services.environment, "TERM": "dumb"}
    with ScreenOf([*INFINISWAP, "top", "--count", "1", "--interval", "0.1"], dumb) as screen:
        assert screen.process.wait(30) == ExitCode.OK
        wait_for(lambda: b"web1" in screen.raw, what="the block")
        assert b"\x1b" not in screen.raw


def test_in_a_pipe(services: Services, device: Device) -> None:
    """One block an interval, and an end after --count of them; a device that is not there is said at once."""
    with load(device):
        done = services.command("top", "web1", "--interval", "0.3", "--count", "2")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    blocks = done.stdout.strip().split("\n\n")
    assert len(blocks) == 2
    assert all(re.search(r"^web1 +serving +[0-9.]+", block, re.MULTILINE) for block in blocks)
    missing = services.command("top", "web2")
    assert missing.returncode == ExitCode.NOT_FOUND
    assert missing.stderr.count("\n") == 1


def test_json_lines(services: Services, device: Device) -> None:
    """A line a device and interval, each with rates of that interval."""
    with load(device):
        wait_for(lambda: device.get("/v1/stats")["reads"]["remote"] > 0, what="reads from a peer")
        done = services.command("top", "--json", "--interval", "0.3", "--count", "2")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["web1", "web1"]
    for line in lines:
        assert line["in_iops"] > 0
        assert line["hits"]["remote"] > 0.5
        assert line["reads"]["p50_us"] > 0
        assert {peer["state"] for peer in line["peers"]} == {"up"}
