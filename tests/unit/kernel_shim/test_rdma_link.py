"""Setup makes a link that can be used or leaves none; teardown removes soft-RoCE only, and keeps its deadline."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from infiniswap.kernel_shim import kernel_call, rdma_link
from infiniswap.kernel_shim.commands import Done
from infiniswap.kernel_shim.kernel_call import NoAnswerError
from infiniswap.kernel_shim.rdma_link import Made
from infiniswap.kernel_shim.rdma_sysfs import SoftLink
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_rdma_host import EMPTY_GID, IPV4_GID, LINK_LOCAL_GID, FakeRdmaHost


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRdmaHost:
    """A host with soft-RoCE, interface eth0 up with an address, and no link."""
    host = FakeRdmaHost(tmp_path)
    host.install(monkeypatch)
    host.add_netdev("eth0")
    return host


def modprobe(
    host: FakeRdmaHost, *, known: tuple[str, ...] = ("rdma_rxe", "crc32_generic"), timed_out: bool = False
) -> Any:
    """Stands in for commands.run."""

    def run(command: list[str], timeout_s: float) -> Done:
        assert 0 < timeout_s < 600
        host.commands.append(command)
        if timed_out:
            return Done(-1, "", "", timed_out=True)
        if command[-1] not in known:
            return Done(1, "", f"modprobe: FATAL: Module {command[-1]} not found.\n")
        (host.root / "sys/module" / command[-1]).mkdir()
        return Done(0, "", "")

    return run


def setup(host: FakeRdmaHost, netdev: str = "eth0", **options: Any) -> Made:
    """Setup, with an address on every interface unless told otherwise."""
    options.setdefault("addresses", lambda _: ("10.99.0.1",))
    options.setdefault("run", modprobe(host))
    options.setdefault("timeout_s", 0.0)
    return rdma_link.setup(netdev, root=host.root, **options)


def refused(host: FakeRdmaHost, code: ExitCode, text: str, netdev: str = "eth0", **options: Any) -> None:
    """Setup ends with that code and one line, and neither the kernel nor modprobe was asked for anything."""
    before = host.names()
    with pytest.raises(UserError, match=text) as caught:
        setup(host, netdev, **options)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert host.calls == []
    assert host.commands == []
    assert host.names() == before


# ---- setup ----


def test_setup(host: FakeRdmaHost) -> None:
    """Both modules are loaded, the kernel makes rxe0, and the GID of the IP address is named, not the first one."""
    made = setup(host)
    assert (str(made.port), made.gid.index, made.netdev, made.new) == ("rxe0/1", 1, "eth0", True)
    assert host.calls == [{"operation": "rdma-add", "name": "rxe0", "netdev": "eth0"}]
    assert host.commands == [["modprobe", "rdma_rxe"], ["modprobe", "--quiet", "crc32_generic"]]


def test_setup_again(host: FakeRdmaHost) -> None:
    """A second setup finds the link and makes nothing; so does one that asks for it by name."""
    setup(host, name="mine")
    for options in ({}, {"name": "mine"}):
        made = setup(host, **options)
        assert (made.port.device, made.new) == ("mine", False)
    assert len(host.calls) == 1


def test_setup_again_under_another_name(host: FakeRdmaHost) -> None:
    """An interface has one link: asking for another name is refused, and says how to get rid of the first."""
    host.add_link("rxe0", "eth0")
    refused(host, ExitCode.IN_USE, "has soft-RoCE link rxe0 already.*infiniswap rdma teardown rxe0", name="other")


def test_names(host: FakeRdmaHost) -> None:
    """The first free name is taken, that of a link being removed is not; a name in use or impossible is refused."""
    host.add_netdev("eth1")
    host.add_link("rxe0", "eth1")
    host.close("rxe0")
    host.add_device("rxe1")
    refused(host, ExitCode.IN_USE, "'rxe1' is there already", name="rxe1")
    for name in ("", "a%d", "../x", "1", "a" * 64, "a b"):
        refused(host, ExitCode.USAGE, "must be a letter", name=name)
    assert setup(host).port.device == "rxe2"


def test_all_names_in_use(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for a name ends."""
    monkeypatch.setattr(rdma_link, "LINKS_MAX", 2)
    host.add_device("rxe0")
    host.add_device("rxe1")
    refused(host, ExitCode.IN_USE, "rxe0 to rxe1 are in use: choose a --name")


def test_not_root(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root nothing is tried."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused(host, ExitCode.RESOURCES, "needs root: run it with sudo")
    host.add_link("rxe0", "eth0")
    with pytest.raises(UserError, match="needs root") as caught:
        rdma_link.teardown(root=host.root)
    assert caught.value.code == ExitCode.RESOURCES
    assert host.calls == []


@pytest.mark.parametrize("name", ["eth9", "", ".", "../net/eth0", "bonding_masters"])
def test_no_such_netdev(host: FakeRdmaHost, name: str) -> None:
    """An interface that does not exist: the line lists those that do, and no path is made of the name."""
    host.add_netdev("lo")
    (host.root / "sys/class/net/bonding_masters").touch()
    refused(host, ExitCode.NOT_FOUND, re.escape(f"no network interface '{name}'; there are eth0, lo"), name)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"flags": 0x1002}, ExitCode.FAILED, "^eth0 is down: ip link set eth0 up$"),
        ({"carrier": "0"}, ExitCode.FAILED, "^eth0 has no carrier"),
        ({"vlan": True}, ExitCode.REFUSED, "^eth0 is a VLAN: name the interface under it"),
    ],
)
def test_netdev_that_will_not_do(host: FakeRdmaHost, change: dict[str, Any], code: ExitCode, text: str) -> None:
    """An interface that could carry nothing is refused with the command that mends it."""
    host.add_netdev("eth0", **change)
    refused(host, code, text)


def test_netdev_without_address(host: FakeRdmaHost) -> None:
    """Without an IP address the port would have no GID that anything is routed to."""
    refused(host, ExitCode.FAILED, "ip address add ADDRESS/PREFIX dev eth0", addresses=lambda _: ())


def test_netdev_with_rdma_in_hardware(host: FakeRdmaHost) -> None:
    """Where the card itself does RDMA, soft-RoCE on it is refused."""
    host.add_device("mlx5_0")
    host.add_port("mlx5_0", gids={0: LINK_LOCAL_GID}, netdev="eth0")
    refused(host, ExitCode.REFUSED, "RDMA in hardware, port mlx5_0/1")
    host.add_netdev("eth1")
    assert setup(host, "eth1").port.device == "rxe0"


def test_link_that_is_still_being_removed(host: FakeRdmaHost) -> None:
    """The kernel gives an interface no second link before the first has gone; who holds it is named."""
    host.add_link("rxe0", "eth0")
    host.close("rxe0")
    host.add_process(71, "infiniswapd", "/dev/null", "/dev/infiniband/uverbs0 (deleted)")
    refused(host, ExitCode.IN_USE, r"rxe0 on eth0 goes when it is closed by infiniswapd \(pid 71\); then try again")


def test_no_module(host: FakeRdmaHost) -> None:
    """A kernel without soft-RoCE is told apart, and never asked for a link."""
    with pytest.raises(UserError, match=r"no soft-RoCE, module rdma_rxe \(modprobe: FATAL.*kernel image") as caught:
        setup(host, run=modprobe(host, known=()))
    assert caught.value.code == ExitCode.NOT_FOUND
    with pytest.raises(UserError, match="has not ended after"):
        setup(host, run=modprobe(host, timed_out=True))
    assert host.calls == []


def test_modules_that_are_there(host: FakeRdmaHost) -> None:
    """Loaded modules are not loaded again, and crc32_generic may be missing: it is built in, or not needed any more."""
    (host.root / "sys/module/rdma_rxe").mkdir()
    setup(host, run=modprobe(host, known=()))
    assert host.commands == [["modprobe", "--quiet", "crc32_generic"]]
    (host.root / "sys/module/crc32_generic").mkdir()
    host.add_netdev("eth1")
    setup(host, "eth1")
    assert len(host.commands) == 1


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (errno.ENODEV, ExitCode.NOT_FOUND, "eth0 is gone"),
        (errno.ENFILE, ExitCode.IN_USE, "'rxe0' is there already"),
        (errno.EPERM, ExitCode.RESOURCES, "CAP_NET_ADMIN"),
        (errno.ENOENT, ExitCode.NOT_FOUND, "modprobe crc32_generic"),
        (errno.EPROTONOSUPPORT, ExitCode.NOT_FOUND, "cannot make soft-RoCE links: Protocol not supported"),
        (errno.EEXIST, ExitCode.FAILED, "refused rxe0 on eth0: File exists; see `dmesg"),
        (errno.ENOMEM, ExitCode.FAILED, "refused rxe0 on eth0: Cannot allocate memory; see `dmesg"),
    ],
)
def test_kernel_refuses(host: FakeRdmaHost, number: int, code: ExitCode, text: str) -> None:
    """Each refusal of the kernel becomes a line that says what to do, and nothing is deleted that was not made."""
    host.refuse = number
    with pytest.raises(UserError, match=text) as caught:
        setup(host)
    assert caught.value.code == code
    assert [call["operation"] for call in host.calls] == ["rdma-add"]


def test_another_setup_comes_first(host: FakeRdmaHost) -> None:
    """Two at once: the one that the kernel refuses finds the other's link, and leaves it alone."""
    host.before_add = lambda: host.add_link("rxe0", "eth0")
    host.refuse = errno.EEXIST
    made = setup(host)
    assert (made.port.device, made.new) == ("rxe0", False)
    assert host.names() == ["rxe0"]


@pytest.mark.parametrize(
    ("state", "gids", "text"),
    [
        ("1: DOWN", {1: IPV4_GID}, "port rxe0/1 is DOWN"),
        ("4: ACTIVE", {0: LINK_LOCAL_GID}, "no RoCE v2 GID of an IP address"),
        ("4: ACTIVE", {0: EMPTY_GID}, "no RoCE v2 GID of an IP address"),
    ],
)
def test_link_that_cannot_be_used(host: FakeRdmaHost, state: str, gids: dict[int, str], text: str) -> None:
    """A link whose port does not come up, or gets no GID, is removed again, and the line says what was missing."""
    host.new_state, host.new_gids = state, gids
    with pytest.raises(UserError, match=f"rxe0 cannot be used after 0.1 s: .*{text}"):
        setup(host, timeout_s=0.1)
    assert host.names() == []
    assert host.calls[-1] == {"operation": "rdma-delete", "name": "rxe0"}


def test_old_link_that_cannot_be_used(host: FakeRdmaHost) -> None:
    """A link that somebody else made is never removed for not being ready."""
    host.new_state = "1: DOWN"
    host.add_link("rxe0", "eth0")
    with pytest.raises(UserError, match="is DOWN"):
        setup(host)
    assert host.names() == ["rxe0"]
    assert host.calls == []


def test_no_device_node(host: FakeRdmaHost) -> None:
    """A container without the node of the new device: told, and the link removed again."""
    host.nodes = False
    with pytest.raises(UserError, match=r"there is no /dev/infiniband/uverbs0 \("):
        setup(host)
    assert host.names() == []


def test_interrupted(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the port comes up leaves no link behind."""
    host.new_state = "1: DOWN"

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        setup(host, timeout_s=60)
    assert host.names() == []


def test_kernel_does_not_answer(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that does not come back is told as such; a link that it has made all the same is removed."""

    def call(request: dict[str, Any], timeout_s: float, **options: Any) -> dict[str, Any]:
        host.call(request, timeout_s, **options)
        if request["operation"] == "rdma-add":
            raise NoAnswerError("no answer in time", timed_out=True)
        return {}

    monkeypatch.setattr(kernel_call, "call", call)
    with pytest.raises(UserError, match="did not answer: no answer in time; see `dmesg") as caught:
        setup(host)
    assert caught.value.code == ExitCode.FAILED
    assert host.names() == []


def test_port_comes_up_later(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setup waits for the condition: each look may find more, and the last one ends it."""
    host.new_state, host.new_gids = "1: DOWN", {2: EMPTY_GID}
    port = host.root / "sys/class/infiniband/rxe0/ports/1"
    steps = iter([("state", "4: ACTIVE"), ("gids/2", IPV4_GID), ("gid_attrs/types/2", "RoCE v2")])

    def step(_seconds: float) -> None:
        file, content = next(steps)
        (port / file).write_text(content + "\n")

    monkeypatch.setattr(time, "sleep", step)
    assert setup(host, timeout_s=60).gid.index == 2


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses that others can use count, under alias names too; link-local and hardware addresses do not."""

    class Entry:
        def __init__(self, address: str) -> None:
            self.address = address

    table = {
        "eth0": [Entry("fe80::1%eth0"), Entry("52:54:00:12:34:56"), Entry("169.254.7.7")],
        "eth1": [Entry("2001:db8::1"), Entry("fe80::2%eth1")],
        "eth1:1": [Entry("10.0.0.1")],
        "eth10": [Entry("10.0.0.2")],
        "lo": [Entry("127.0.0.1")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: table)
    assert rdma_link.addresses_of("eth0") == ()
    assert rdma_link.addresses_of("eth1") == ("2001:db8::1", "10.0.0.1")
    assert rdma_link.addresses_of("lo") == ("127.0.0.1",)
    assert rdma_link.addresses_of("eth9") == ()


# ---- teardown ----


def test_teardown(host: FakeRdmaHost) -> None:
    """The only link is removed without being named; by name and by interface it is found as well."""
    ways: list[dict[str, Any]] = [{}, {"name": "rxe0"}, {"netdev": "eth0"}, {"name": "rxe0", "netdev": "eth0"}]
    for arguments in ways:
        host.add_link("rxe0", "eth0")
        link = rdma_link.teardown(root=host.root, timeout_s=0, **arguments)
        assert link == SoftLink("rxe0", "eth0", present=True)
        assert host.names() == []
    assert {call["operation"] for call in host.calls} == {"rdma-delete"}


def test_teardown_of_nothing(host: FakeRdmaHost) -> None:
    """A link that is not there is NOT_FOUND and the others are listed; --if-present makes that a success."""
    host.add_link("rxe0", "eth0")
    ways: list[dict[str, Any]] = [{"name": "rxe1"}, {"netdev": "eth1"}, {"name": "rxe0", "netdev": "eth1"}]
    for arguments in ways:
        with pytest.raises(UserError, match=r"no soft-RoCE link .*; there are rxe0$") as caught:
            rdma_link.teardown(root=host.root, **arguments)
        assert caught.value.code == ExitCode.NOT_FOUND
        assert rdma_link.teardown(root=host.root, if_present=True, **arguments) is None
    assert host.calls == []
    assert host.names() == ["rxe0"]


def test_teardown_of_several(host: FakeRdmaHost) -> None:
    """With several links one must be named."""
    host.add_link("rxe0", "eth0")
    host.add_link("rxe1", "eth1")
    with pytest.raises(UserError, match="several soft-RoCE links: rxe0 on eth0, rxe1 on eth1; name one") as caught:
        rdma_link.teardown(root=host.root, if_present=True)
    assert caught.value.code == ExitCode.USAGE
    assert host.calls == []
    rdma_link.teardown(netdev="eth1", root=host.root)
    assert host.names() == ["rxe0"]


def test_teardown_of_hardware(host: FakeRdmaHost) -> None:
    """A real device is never removed, not even as the only one there is."""
    host.add_device("mlx5_0")
    host.add_port("mlx5_0", gids={1: IPV4_GID}, netdev="eth0")
    for if_present in (False, True):
        with pytest.raises(UserError, match="mlx5_0 is no soft-RoCE link") as caught:
            rdma_link.teardown("mlx5_0", root=host.root, if_present=if_present)
        assert caught.value.code == ExitCode.REFUSED
    assert rdma_link.teardown(netdev="eth0", root=host.root, if_present=True) is None
    assert rdma_link.teardown(root=host.root, if_present=True) is None
    assert host.calls == []


def test_teardown_while_open(host: FakeRdmaHost) -> None:
    """At the deadline the line says that it goes by itself, and names who has it open, and nobody else."""
    host.add_link("rxe0", "eth0")
    host.add_link("rxe1", "eth1")
    host.add_process(71, "infiniswapd", "/dev/infiniband/uverbs0 (deleted)", "socket:[7]")
    host.add_process(72, "other", "/dev/infiniband/uverbs1")
    host.add_process(73, "gone")
    host.silent = True
    said: list[str] = []
    with pytest.raises(UserError, match=r"rxe0 is still open after 5 s;.*closed by infiniswapd \(pid 71\)$") as caught:
        rdma_link.teardown("rxe0", timeout_s=5, say=said.append, root=host.root)
    assert caught.value.code == ExitCode.IN_USE
    assert said == ["waiting for infiniswapd (pid 71) to close rxe0"]


def test_teardown_while_another_removes_it(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is being removed already is only waited for: until it is gone, or to the deadline."""
    host.add_link("rxe0", "eth0")
    host.close("rxe0")
    with pytest.raises(UserError, match="rxe0 is still open after 0 s"):
        rdma_link.teardown("rxe0", timeout_s=0, root=host.root)
    folder = host.root / "sys/class/infiniband/rxe0"
    monkeypatch.setattr(time, "sleep", lambda _seconds: folder.rename(host.root / "gone"))
    assert rdma_link.teardown("rxe0", timeout_s=60, root=host.root) == SoftLink("rxe0", "eth0", present=False)
    assert host.calls == []


def test_teardown_that_comes_second(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once: the one whose link the kernel no longer knows waits for its end like the other."""
    host.add_link("rxe0", "eth0")

    def call(*_: Any, **__: Any) -> dict[str, Any]:
        raise kernel_call.KernelError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(kernel_call, "call", call)
    monkeypatch.setattr(time, "sleep", lambda _seconds: host.remove("rxe0"))
    assert rdma_link.teardown("rxe0", timeout_s=60, root=host.root) is not None


def test_teardown_that_was_never_asked_for(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline too short to reach the kernel is not told as a link in use."""
    host.add_link("rxe0", "eth0")

    def call(*_: Any, **__: Any) -> dict[str, Any]:
        raise NoAnswerError("no answer in time", timed_out=True)

    monkeypatch.setattr(kernel_call, "call", call)
    with pytest.raises(UserError, match=r"rxe0 was not removed: not asked within 0\.1 s: choose a longer --timeout"):
        rdma_link.teardown("rxe0", timeout_s=0.1, root=host.root)


@pytest.mark.parametrize(("number", "code"), [(errno.EPERM, ExitCode.RESOURCES), (errno.EINVAL, ExitCode.FAILED)])
def test_teardown_refused(host: FakeRdmaHost, monkeypatch: pytest.MonkeyPatch, number: int, code: ExitCode) -> None:
    """A refusal of the kernel is one line."""
    host.add_link("rxe0", "eth0")

    def call(*_: Any, **__: Any) -> dict[str, Any]:
        raise kernel_call.KernelError(number, os.strerror(number))

    monkeypatch.setattr(kernel_call, "call", call)
    with pytest.raises(UserError, match="the kernel refuse") as caught:
        rdma_link.teardown(root=host.root)
    assert caught.value.code == code
