"""Options come from the file and the command line, the latter wins, and each wrong one is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.daemon import amount
from infiniswap.daemon.amount import headroom_bytes_of, memory_to_lend
from infiniswap.daemon.config import load_config
from infiniswap.daemon.options import LISTEN_DEFAULT, MemoryAmount
from infiniswap.daemon.rdma import RdmaMode, RdmaOptions
from infiniswap.policy.headroom import HostMemory
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError

MIB = 1 << 20


def test_defaults() -> None:
    """Memory is all that must be said."""
    config = load_config({"memory": "512MiB"})
    assert config.memory == MemoryAmount(size_bytes=512 * MIB)
    assert config.listen == LISTEN_DEFAULT
    assert config.data_listen is None
    assert config.headroom is None
    assert config.huge_pages is False
    assert config.lease_ttl_s == 60.0
    assert 1 <= config.threads <= 4
    assert config.rdma_options == RdmaOptions(RdmaMode.AUTO, None, None, None)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    """Every option can stand in the file, with - or _, and sizes as text or numbers."""
    file = tmp_path / "daemon.toml"
    file.write_text(
        'memory = "1GiB"\nlisten = "[::1]:0"\ndata-listen = "10.0.0.1:7402"\nheadroom = 1048576\nhuge_pages = true\n'
        'lease_ttl_s = 5.5\nthreads = 3\nlog_level = "INFO"\n'
        'rdma = "required"\nrdma-device = "mlx5_0"\nrdma_port = 2\nrdma_gid_index = 3\n'
    )
    config = load_config({"memory": "2MiB", "threads": "4", "huge_pages": None, "rdma_gid_index": "0"}, file)
    assert config.memory == MemoryAmount(size_bytes=2 * MIB)
    assert config.threads == 4
    assert config.listen == HostPort("::1", 0)
    assert config.data_listen == HostPort("10.0.0.1", 7402)
    assert config.headroom == MemoryAmount(size_bytes=MIB)
    assert config.huge_pages is True
    assert config.lease_ttl_s == 5.5
    assert config.log_level == "info"
    assert config.rdma_options == RdmaOptions(RdmaMode.REQUIRED, "mlx5_0", 2, 0)


@pytest.mark.parametrize(
    ("text", "total_bytes", "headroom_bytes", "lent_bytes"),
    [
        ("auto", 64 * 1024 * MIB, 6 * 1024 * MIB, 58 * 1024 * MIB),
        (" AUTO ", 2000 * MIB, 512 * MIB, 1472 * MIB),
        ("auto", 513 * MIB, 512 * MIB, MIB),
        ("auto", 512 * MIB, 512 * MIB, 0),
        ("auto", 100 * MIB, 512 * MIB, 0),
        ("50%", 1001 * MIB, 512 * MIB, 500 * MIB),
        ("12.5 %", 64 * MIB, 0, 8 * MIB),
        ("100%", 64 * MIB, 32 * MIB, 64 * MIB),
        ("3MiB", MIB, 0, 3 * MIB),
    ],
)
def test_shares_of_memory(text: str, total_bytes: int, headroom_bytes: int, lent_bytes: int) -> None:
    """auto is all but the headroom, in default slabs where there is room for one; a share is of all memory."""
    memory = load_config({"memory": text}).memory
    assert memory.of(total_bytes, headroom_bytes) == lent_bytes
    assert load_config({"memory": str(memory)}).memory == memory


def test_hosts_that_have_nothing_to_lend() -> None:
    """A host that is no larger than its headroom cannot lend all but that; the line says how much is what."""
    host = HostMemory(total_bytes=512 * MIB, available_bytes=400 * MIB)
    with pytest.raises(UserError, match=r"--memory auto leaves nothing .* 512MiB, of which 512MiB") as failure:
        memory_to_lend(load_config({"memory": "auto"}), host)
    assert failure.value.code is ExitCode.RESOURCES
    assert memory_to_lend(load_config({"memory": "auto", "headroom": "500MiB"}), host) == 12 * MIB


@pytest.mark.parametrize(
    ("text", "wanted_bytes"), [(None, 1024 * MIB), ("2GiB", 2048 * MIB), ("25%", 2560 * MIB), ("0%", 0), ("0", 0)]
)
def test_shares_of_headroom(text: str | None, wanted_bytes: int) -> None:
    """A share is of all memory, as that of --memory is, so that one file serves hosts of all sizes."""
    host = HostMemory(total_bytes=10240 * MIB, available_bytes=9000 * MIB)
    config = load_config({"memory": "auto", "headroom": text})
    assert headroom_bytes_of(config, host.total_bytes) == wanted_bytes
    assert memory_to_lend(config, host) == 10240 * MIB - wanted_bytes
    if config.headroom is not None:
        assert load_config({"memory": "auto", "headroom": str(config.headroom)}) == config


def test_headroom_of_everything() -> None:
    """Leaves nothing, and the line says so."""
    host = HostMemory(total_bytes=512 * MIB, available_bytes=400 * MIB)
    with pytest.raises(UserError, match=r"--headroom 512MiB leaves nothing of this host's 512MiB to lend"):
        memory_to_lend(load_config({"memory": "auto", "headroom": "100%"}), host)


def test_huge_pages_are_shared_out_of_those_that_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were reserved for this, so no headroom is taken from them; what is lent are whole pages."""
    monkeypatch.setattr(amount, "free_huge_bytes", lambda: 10 * MIB)
    monkeypatch.setattr(amount, "huge_page_bytes", lambda: 2 * MIB)
    host = HostMemory(total_bytes=1024 * MIB, available_bytes=400 * MIB)
    for text, lent in (("auto", 10 * MIB), ("50%", 4 * MIB), ("6MiB", 6 * MIB)):
        assert memory_to_lend(load_config({"memory": text, "huge_pages": True}), host) == lent


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--memory is missing"),
        ({"memory": "plenty"}, "--memory: size 'plenty'"),
        ({"memory": "-5"}, "--memory: size '-5'"),
        ({"memory": "0%"}, "--memory 0% is nothing to lend"),
        ({"memory": "101%"}, "--memory 101 must be between 0 and 100"),
        ({"memory": "%"}, "--memory '' is not a number"),
        ({"memory": "nan%"}, "--memory nan must be between 0 and 100"),
        ({"memory": "automatic"}, "--memory: size 'automatic'"),
        ({"memory": "1MiB", "listen": "7401"}, "--listen '7401' is not HOST:PORT"),
        ({"memory": "1MiB", "listen": "h:70000"}, "--listen 'h:70000': the port must be between 0 and 65535"),
        ({"memory": "1MiB", "data_listen": ":1"}, "--data-listen ':1'"),
        ({"memory": "1MiB", "headroom": "half"}, "--headroom: size 'half'"),
        ({"memory": "1MiB", "headroom": "auto"}, "--headroom: size 'auto'"),
        ({"memory": "1MiB", "headroom": "-1%"}, "--headroom -1 must be between 0 and 100"),
        ({"memory": "1MiB", "lease_memory": "50%"}, "--lease-memory: size '50%'"),
        ({"memory": "1MiB", "stop_timeout_s": "3601"}, "--stop-timeout-s 3601 must be between 0 and 3600"),
        ({"memory": "1MiB", "operators": "me"}, "--operators must be one of local, anyone"),
        ({"memory": "1MiB", "lease_ttl_s": "0"}, "--lease-ttl-s 0 must be between 1 and 86400"),
        ({"memory": "1MiB", "lease_ttl_s": "nan"}, "--lease-ttl-s nan must be between"),
        ({"memory": "1MiB", "lease_ttl_s": "soon"}, "--lease-ttl-s 'soon' is not a number"),
        ({"memory": "1MiB", "threads": "0"}, "--threads 0 must be between 1 and 64"),
        ({"memory": "1MiB", "threads": "1.5"}, "--threads must be a whole number"),
        ({"memory": "1MiB", "threads": "9" * 400}, "--threads inf must be between"),
        ({"memory": "1MiB", "fuses": "65"}, "--fuses 65 must be between 0 and 64"),
        ({"memory": "1MiB", "log_level": "loud"}, "--log-level must be one of debug, info"),
        ({"memory": "1MiB", "rdma": "maybe"}, "--rdma must be one of auto, never, required"),
        ({"memory": "1MiB", "rdma_device": "/dev/infiniband/uverbs0"}, "--rdma-device must be the name of an RDMA"),
        ({"memory": "1MiB", "rdma_device": ""}, "--rdma-device must be the name of an RDMA"),
        ({"memory": "1MiB", "rdma_port": "0"}, "--rdma-port 0 must be between 1 and 255"),
        ({"memory": "1MiB", "rdma_gid_index": "256"}, "--rdma-gid-index 256 must be between 0 and 255"),
        ({"memory": "1MiB", "rdma_gid_index": "first"}, "--rdma-gid-index 'first' is not a number"),
    ],
)
def test_wrong_options(given: dict[str, object], message: str) -> None:
    """The line names the option and what it wants."""
    with pytest.raises(UserError) as failure:
        load_config(given)
    assert str(failure.value).startswith(message)
    assert "\n" not in str(failure.value)
    assert failure.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"memory = [1]\n", "memory must be a size"),
        (b"memory = true\n", "memory must be a size"),
        (b"memory = 1048576\nlisten = 7401\n", "listen must be HOST:PORT"),
        (b"memory = 1048576\nhuge_pages = 1\n", "huge_pages must be true or false"),
        (b"memory = 1048576\nlock_memory = 1\n", "lock_memory must be true or false"),
        (b"memory = 1048576\nthreads = true\n", "threads 'True' is not a number"),
        (b"memory = 1048576\nrdma = true\n", "rdma must be one of auto, never, required"),
        (b"memory = 1048576\nrdma-device = 7\n", "rdma_device must be the name"),
        (b"memori = 1\n", "unknown option 'memori'"),
        (b"memory = \n", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"#" * (1 << 20) + b"#", "is larger than 1MiB"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, message: str) -> None:
    """The line names the file and what is wrong in it."""
    file = tmp_path / "daemon.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as failure:
        load_config({}, file)
    assert message in str(failure.value)
    assert str(file) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there and one that is a folder have their own lines and exit codes."""
    with pytest.raises(UserError, match="does not exist") as failure:
        load_config({}, tmp_path / "none.toml")
    assert failure.value.code is ExitCode.NOT_FOUND
    with pytest.raises(UserError, match="cannot read configuration file") as failure:
        load_config({}, tmp_path)
    assert failure.value.code is ExitCode.RESOURCES
