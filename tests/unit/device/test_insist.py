"""`--transport rdma` insists: a host without RDMA is told so before anything is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.device.config import load_config
from infiniswap.device.insist import has_library, insist_on_rdma
from infiniswap.rdma.devices import list_ports
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_rdma_host import IPV4_GID, FakeRdmaHost


@pytest.fixture
def host(tmp_path: Path) -> FakeRdmaHost:
    """A host with one port of RDMA."""
    host = FakeRdmaHost(tmp_path)
    host.add_netdev("eth0")
    host.add_device("mlx5_0")
    host.add_port("mlx5_0", gids={1: IPV4_GID}, netdev="eth0")
    return host


def insist(transport: str, root: Path, *, library: bool = True, **more: str) -> None:
    """What a start with these options makes of the host."""
    options = {"size": "8MiB", "backup": "/b", "transport": transport, **more}
    insist_on_rdma(load_config("vol", options), root, lambda: library)


def test_a_host_with_rdma(host: FakeRdmaHost) -> None:
    """Nothing to say."""
    insist("rdma", host.root)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_who_does_not_insist(transport: str, tmp_path: Path) -> None:
    """Without RDMA the others start as ever."""
    insist(transport, tmp_path, library=False)


def test_a_host_without(tmp_path: Path, host: FakeRdmaHost) -> None:
    """No port, another port than the one asked for, no library: each is one line with the code for resources."""
    for root, library, more, reason in (
        (tmp_path / "none", True, {}, "this host has no RDMA device"),
        (host.root, True, {"rdma_device": "mlx5_9"}, "mlx5_9"),
        (host.root, False, {}, "libibverbs.so.1 is not installed"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            insist("rdma", root, library=library, **more)
        assert caught.value.code is ExitCode.RESOURCES
        assert str(caught.value).startswith("--transport rdma: ")


def test_the_command(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """device serve --transport rdma ends at once here, and makes neither backup nor state."""
    if list_ports() and has_library():
        pytest.skip("this host has RDMA")
    folder = short_path / "work"
    arguments = ["device", "serve", "vol", "--size", "8MiB", "--backup", str(folder / "b"), "--transport", "rdma",
                 "--state-dir", str(folder / "s"), "--runtime-dir", str(folder / "r")]  # fmt: skip
    folder.mkdir()
    assert cli_main.run(arguments) == ExitCode.RESOURCES
    assert "infiniswap: --transport rdma: " in capsys.readouterr().err
    assert list(folder.iterdir()) == []
