"""Names of peers: an unknown one is a warning with a hint, a hanging lookup holds up nobody, and twins are told."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infiniswap.shared import host_names
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError
from infiniswap.shared.host_names import check_peers, is_address, look_up, suggestion


@pytest.fixture
def name_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A name service that answers nothing until the event is set."""
    answers = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        answers.wait(30.0)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(host_names.socket, "getaddrinfo", hang)  # type: ignore[attr-defined]
    yield answers
    answers.set()


async def test_peers_that_are_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Two names of one daemon would be two choices that are one; after a kill that is no reason to lose pages."""
    twins = (HostPort("127.0.0.1", 5), HostPort("localhost", 5))
    with pytest.raises(UserError, match="are the same daemon"):
        await check_peers(twins, recovering=False)
    await check_peers((HostPort("127.0.0.1", 5), HostPort("127.0.0.1", 6)), recovering=False)
    assert "same daemon" not in caplog.text
    await check_peers(twins, recovering=True)
    assert "are the same daemon" in caplog.text


async def test_unknown_peer(caplog: pytest.LogCaptureFixture) -> None:
    """A warning, whether it is a mistake or a network that comes later, with what may have been meant."""
    peers = (HostPort("localhosst", 5), HostPort("127.0.0.1", 5))
    await check_peers(peers, recovering=False)
    assert "peer localhosst:5: unknown host (did you mean localhost, as in /etc/hosts?)" in caplog.text


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("nodee2", " (did you mean node2, as in another --peer?)"),
        ("Donor-1", " (did you mean donor-1, as in {hosts}?)"),
        ("elsewhere", ""),
        ("donor-1", ""),
        ("10.0.0.256", ""),
    ],
)
def test_suggestion(host: str, hint: str, tmp_path: Path) -> None:
    """From other peers first, then from the hosts file; none where nothing is alike."""
    hosts = tmp_path / "hosts"
    hosts.write_bytes(b"10.0.0.1 donor-1 # node9\n\xff\n#10.0.0.2 node2x\n10.0.0.25\n")
    assert suggestion(host, ["node2", "10.0.0.25"], hosts) == hint.format(hosts=hosts)
    assert suggestion(host, [], tmp_path / "none") == ""


async def test_lookup_that_hangs(
    name_service: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Costs a warning and a bounded time, and no thread of the event loop."""
    monkeypatch.setattr(host_names, "LOOKUP_TIMEOUT_S", 0.05)
    async with asyncio.timeout(10.0):
        await check_peers(tuple(HostPort(f"slow{number}", 5) for number in range(40)), recovering=False)
        await asyncio.to_thread(int)
    assert caplog.text.count("cannot be looked up") == 40


async def test_lookups_are_bounded(name_service: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of threads a name counts as unknown."""
    for thread in threading.enumerate():  # those that an earlier test left behind are about to end
        if thread.name.startswith("look up"):
            await asyncio.to_thread(thread.join, 30.0)
    monkeypatch.setattr(host_names, "THREADS_MAX", threading.active_count() + 2)
    waiting = [asyncio.create_task(look_up("slow", 5)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="too many names"):
        await look_up("slow", 5)
    name_service.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [socket.gaierror] * 2


async def test_names_that_cannot_be() -> None:
    """What the name service does not even take is an OSError too."""
    with pytest.raises(OSError):
        await look_up("x" * 70 + ".y", 5)
    assert is_address("fe80::1%eth0")
    assert not is_address("node1")


def test_exit_waits_for_no_lookup() -> None:
    """A program ends while the name service does not answer."""
    script = (
        "import asyncio, socket, time; from infiniswap.shared import host_names\n"
        "socket.getaddrinfo = lambda *_: time.sleep(60)\n"
        "async def main():\n"
        "    try:\n"
        "        async with asyncio.timeout(0.1): await host_names.look_up('slow', 5)\n"
        "    except TimeoutError: print('over')\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"over\n", b"")
