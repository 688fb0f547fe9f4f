"""The rdma verbs hand on what they are given and print what was done; rdma list shows every address of every port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.cli import rdma_list
from infiniswap.kernel_shim import rdma_link
from infiniswap.shared.errors import ExitCode
from tests.support.fake_rdma_host import IPV4_GID, LINK_LOCAL_GID, FakeRdmaHost


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRdmaHost:
    """A host with soft-RoCE, whose tree the commands look at."""
    host = FakeRdmaHost(tmp_path)
    host.install(monkeypatch)
    host.add_netdev("eth0")
    (tmp_path / "sys/module/rdma_rxe").mkdir()
    (tmp_path / "sys/module/crc32_generic").mkdir()
    setup, teardown, rows = rdma_link.setup, rdma_link.teardown, rdma_list.list_rows

    def on_tree(function: Any, **always: Any) -> Any:
        return lambda *arguments, **options: function(*arguments, **options, **always, root=tmp_path)

    monkeypatch.setattr(rdma_link, "setup", on_tree(setup, addresses=lambda _: ("10.99.0.1",)))
    monkeypatch.setattr(rdma_link, "teardown", on_tree(teardown))
    monkeypatch.setattr(rdma_list, "list_rows", on_tree(rows))
    return host


def run(*arguments: str) -> int:
    """The command's exit code."""
    return cli_main.run(["rdma", *arguments])


def test_setup_and_teardown(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each says what was made and what was removed; a second setup says that it is there."""
    assert run("setup", "--netdev", "eth0") == ExitCode.OK
    assert capsys.readouterr() == ("rxe0/1: soft-RoCE on eth0, GID 1 ::ffff:10.99.0.1\n", "")
    assert run("setup", "--netdev", "eth0", "--name", "rxe0") == ExitCode.OK
    assert capsys.readouterr().out == "rxe0/1: soft-RoCE on eth0, GID 1 ::ffff:10.99.0.1, there already\n"
    assert run("teardown") == ExitCode.OK
    assert capsys.readouterr().out == "rxe0 on eth0 removed\n"
    assert run("teardown", "--if-present") == ExitCode.OK
    assert capsys.readouterr() == ("", "")


def test_named(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """--name, --netdev and NAME choose."""
    assert run("setup", "--netdev", "eth0", "--name", "mine") == ExitCode.OK
    assert run("teardown", "--netdev", "eth1") == ExitCode.NOT_FOUND
    assert run("teardown", "rxe0") == ExitCode.NOT_FOUND
    assert capsys.readouterr().err.splitlines() == [
        "infiniswap: no soft-RoCE link on eth1; there are mine",
        "infiniswap: no soft-RoCE link 'rxe0'; there are mine",
    ]
    assert run("teardown", "mine") == ExitCode.OK
    assert host.names() == []


def test_deadline(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """--timeout is the teardown's deadline; who is waited for is told on the way."""
    host.add_link("rxe0", "eth0")
    host.add_process(71, "python3", "/dev/infiniband/uverbs0 (deleted)")
    host.silent = True
    assert run("teardown", "--timeout", "7") == ExitCode.IN_USE
    first, second = capsys.readouterr().err.splitlines()
    assert first == "infiniswap: waiting for python3 (pid 71) to close rxe0"
    assert second.startswith("infiniswap: rxe0 is still open after 7 s; ")


def test_usage(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """An interface must be named, and time-outs are no less than 0."""
    assert run() == ExitCode.USAGE
    assert run("setup") == ExitCode.USAGE
    assert run("teardown", "--timeout", "-1") == ExitCode.USAGE
    assert host.calls == []


def test_list(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each GID, with IPv4 addresses readable; ports without any, and without an interface, have one too."""
    host.add_link("rxe0", "eth0")
    host.add_netdev("eth1", mtu=9000)
    host.add_device("rxe1", parent="eth1")
    host.add_port("rxe1", state="1: DOWN")
    host.add_device("mlx5_0")
    host.add_port("mlx5_0", link_layer="InfiniBand", lid="0x1f", gids={0: LINK_LOCAL_GID}, kinds={0: "IB/RoCE v1"})
    assert run("list") == ExitCode.OK
    assert [line.split(maxsplit=7) for line in capsys.readouterr().out.splitlines()] == [
        ["PORT", "STATE", "LINK", "NETDEV", "MTU", "INDEX", "GID", "TYPE"],
        ["mlx5_0/1", "ACTIVE", "InfiniBand", "-", "-", "0", "fe80::5054:ff:fe12:3456", "IB/RoCE v1"],
        ["rxe0/1", "ACTIVE", "Ethernet", "eth0", "1500", "0", "fe80::5054:ff:fe12:3456", "RoCE v2"],
        ["rxe0/1", "ACTIVE", "Ethernet", "eth0", "1500", "1", "::ffff:10.99.0.1", "RoCE v2"],
        ["rxe1/1", "DOWN", "Ethernet", "eth1", "9000", "-", "-", "-"],
    ]
    assert run("list", "-n", "-o", "port,driver,lid") == ExitCode.OK
    assert capsys.readouterr().out.splitlines()[:2] == ["mlx5_0/1  -          31", "rxe0/1    soft-RoCE   -"]


def test_list_json(host: FakeRdmaHost, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has every key of a row; a host without ports has an empty list, and says so on stderr."""
    assert run("list") == ExitCode.OK
    out, told = capsys.readouterr()
    assert out == ""
    assert told == "this host has no RDMA port; 'infiniswap rdma setup --netdev NAME' makes one in software\n"
    assert run("list", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == []
    host.new_gids = {3: IPV4_GID}
    host.add_link("rxe0", "eth0")
    assert run("list", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == [
        {
            "port": "rxe0/1",
            "state": "ACTIVE",
            "link_layer": "Ethernet",
            "driver": "soft-RoCE",
            "netdev": "eth0",
            "mtu_bytes": 1500,
            "lid": None,
            "gid_index": 3,
            "gid": "::ffff:10.99.0.1",
            "gid_type": "RoCE v2",
        }
    ]
