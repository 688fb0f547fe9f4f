"""The daemon's RDMA device: used when it is there, let go of when it goes, found again, and never a reason to fail."""

from __future__ import annotations

import logging

import pytest

from infiniswap.daemon.libibverbs import load_verbs
from infiniswap.daemon.rdma import REOPEN_INTERVAL_S, RdmaHost, RdmaMode, RdmaOptions
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.daemon.verbs import Verbs
from infiniswap.rdma.devices import Port
from infiniswap.rdma.path import RdmaUnavailableError
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.clock import FakeClock
from tests.support.fake_verbs import LOOPBACK, OTHER_HOST, FakeVerbs, port


@pytest.fixture
def verbs() -> FakeVerbs:
    """A host with rxe0."""
    return FakeVerbs()


def missing() -> Verbs:
    """An import of pyverbs where it is not installed."""
    raise RdmaUnavailableError("pyverbs cannot be imported: install the package python3-pyverbs")


def test_a_device_that_is_there_is_opened(verbs: FakeVerbs) -> None:
    """By default the first active port is used, and the offer tells its link layer."""
    host = verbs.host(FakeClock())
    assert (host.opened, host.link_layer) == (None, None)
    host.start()
    assert verbs.journal == ["open rxe0"]
    assert host.state == "ready"
    assert host.link_layer == "Ethernet"
    opened = host.require()
    assert str(opened.port) == "rxe0/1"
    assert opened.gid.address == LOOPBACK
    assert opened.mtu_bytes == 1024


def test_never_looks_at_nothing(verbs: FakeVerbs) -> None:
    """--rdma never: neither sysfs nor libibverbs is touched, not even later, and a device is told why."""

    def forbidden() -> tuple[Port, ...]:
        raise AssertionError("looked for devices")

    clock = FakeClock()
    host = RdmaHost(RdmaOptions(RdmaMode.NEVER), load=missing, ports=forbidden, names=frozenset, clock=clock)
    host.start()
    clock.now_s += 100
    assert not host.try_open()
    assert not host.vanished()
    assert host.state == "off"
    with pytest.raises(RefusedError, match="--rdma never") as refusal:
        host.require()
    assert refusal.value.reason is Refusal.NO_RDMA


@pytest.mark.parametrize(
    ("ports", "options", "reason"),
    [
        ((), RdmaOptions(RdmaMode.REQUIRED), "this host has no RDMA device"),
        ((port(state="DOWN"),), RdmaOptions(RdmaMode.REQUIRED), "RDMA port rxe0/1 is DOWN"),
        (
            (port(),),
            RdmaOptions(RdmaMode.REQUIRED, device="mlx5_0"),
            "there is no RDMA port mlx5_0/PORT; there are rxe0/1",
        ),
        ((port(),), RdmaOptions(RdmaMode.REQUIRED, port=2), "there is no RDMA port DEVICE/2"),
        ((port(),), RdmaOptions(RdmaMode.REQUIRED, gid_index=7), "RDMA port rxe0/1 has no GID 7; it has 0, 1"),
    ],
)
def test_required_says_what_is_missing(ports: tuple[Port, ...], options: RdmaOptions, reason: str) -> None:
    """--rdma required ends the daemon with the reason; auto remembers it and goes on without."""
    with pytest.raises(UserError) as error:
        FakeVerbs(ports=ports).host(FakeClock(), options).start()
    assert str(error.value).startswith(f"--rdma required: {reason}")
    assert error.value.code == ExitCode.RESOURCES
    relaxed = RdmaOptions(RdmaMode.AUTO, options.device, options.port, options.gid_index)
    host = FakeVerbs(ports=ports).host(FakeClock(), relaxed)
    host.start()
    assert host.state == "unavailable"
    with pytest.raises(RefusedError) as refusal:
        host.require()
    assert refusal.value.reason is Refusal.NO_RDMA
    assert reason in str(refusal.value)


def test_without_pyverbs(caplog: pytest.LogCaptureFixture) -> None:
    """A device but no pyverbs: auto says so once and never tries again; required names the package."""
    imports = 0

    def load() -> Verbs:
        nonlocal imports
        imports += 1
        return missing()

    def host(mode: RdmaMode) -> RdmaHost:
        return RdmaHost(
            RdmaOptions(mode), load=load, ports=lambda: (port(),), names=lambda: frozenset({"rxe0"}), clock=clock
        )

    clock = FakeClock()
    with caplog.at_level(logging.INFO):
        relaxed = host(RdmaMode.AUTO)
        relaxed.start()
        for _ in range(10):
            clock.now_s += 10
            assert not relaxed.try_open()
    assert imports == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "python3-pyverbs" in caplog.text
    with pytest.raises(UserError, match="python3-pyverbs"):
        host(RdmaMode.REQUIRED).start()


def test_pyverbs_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real import: what is not there is one sentence, whichever of its modules it is."""
    import sys

    monkeypatch.setitem(sys.modules, "pyverbs.qp", None)
    with pytest.raises(RdmaUnavailableError, match="install the package python3-pyverbs"):
        load_verbs()


def test_a_device_that_vanishes_and_comes_back(verbs: FakeVerbs) -> None:
    """It is gone when sysfs has forgotten it, though its handle works; what comes later is opened, at a gentle pace."""
    clock = FakeClock()
    host = verbs.host(clock)
    host.start()
    assert not host.vanished()
    verbs.removing = True
    assert host.vanished()
    host.close("its RDMA device has gone")
    assert verbs.open_devices == []
    assert not host.vanished()
    assert host.state == "unavailable"
    assert host.link_layer is None
    clock.now_s += REOPEN_INTERVAL_S
    assert not host.try_open()
    assert host.reason == "this host has no RDMA device"
    verbs.removing = False
    assert not host.try_open(), "too soon after the last look"
    clock.now_s += REOPEN_INTERVAL_S
    assert host.try_open()
    assert host.state == "ready"
    assert verbs.journal == ["open rxe0", "close device", "open rxe0"]
    assert not host.try_open(), "it is open already"


def test_a_device_that_was_unplugged(verbs: FakeVerbs) -> None:
    """One of the same name is there again, but the handle is of the one that went: it must be opened anew."""
    host = verbs.host(FakeClock())
    host.start()
    verbs.open_devices[0].answers = False
    assert host.vanished()


def test_a_device_that_cannot_be_opened(verbs: FakeVerbs) -> None:
    """No permission, for instance: a reason like any other, tried again later."""
    clock = FakeClock()
    verbs.refuse_open = True
    host = verbs.host(clock)
    host.start()
    assert host.reason == "RDMA device rxe0 cannot be opened: Permission denied"
    verbs.refuse_open = False
    clock.now_s += REOPEN_INTERVAL_S
    assert host.try_open()


def test_a_device_whose_port_cannot_be_asked(verbs: FakeVerbs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was opened only to find that it does not answer is closed again."""
    from infiniswap.daemon.verbs import VerbsError
    from tests.support.fake_verbs import FakeDevice

    def fail(_device: FakeDevice, _port: int) -> int:
        raise VerbsError("RDMA port 1 cannot be asked: Input/output error", 5)

    monkeypatch.setattr(FakeDevice, "mtu_bytes", fail)
    host = verbs.host(FakeClock())
    host.start()
    assert host.reason == "RDMA port 1 cannot be asked: Input/output error"
    assert verbs.open_devices == []


def test_the_end_of_a_path(verbs: FakeVerbs) -> None:
    """Port and GID are chosen for each path: of the other end's family, of the address that was asked at."""
    host = verbs.host(FakeClock())
    host.start()
    assert host.end(OTHER_HOST, None)[1].address == LOOPBACK
    from ipaddress import IPv6Address

    assert host.end(IPv6Address("fd00::7"), None)[1].index == 0
    verbs.ports = (port(state="DOWN"),)
    with pytest.raises(RdmaUnavailableError, match="is DOWN"):
        host.end(OTHER_HOST, None)


def test_an_asked_gid_is_kept_to(verbs: FakeVerbs) -> None:
    """--rdma-gid-index decides, whatever would fit better."""
    host = verbs.host(FakeClock(), RdmaOptions(gid_index=0))
    host.start()
    assert host.require().gid.index == 0
    assert host.end(OTHER_HOST, None)[1].index == 0
