"""SIGHUP: a daemon goes by its files as they are now, in what can change while it lends; a mistake changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.support.services import DAEMON, Daemon, Services
from tests.support.waiting import wait_for

MIB = 1 << 20


def offered(daemon: Daemon) -> Any:
    """What it lends in all."""
    return daemon.get("/v1/offer")["total_bytes"]


def test_files_are_read_again(services: Services, tmp_path: Path) -> None:
    """Less memory is lent, and what is lent beyond it comes back; what needs a restart is told; a mistake is logged."""
    file = tmp_path / "infiniswapd.toml"
    rest = 'listen = "127.0.0.1:0"\nheadroom = 0\nstop_timeout_s = 0\n'
    file.write_text(f'memory = "32M"\n{rest}')
    process, log_path = services._process("daemon", [*DAEMON, "--config", str(file)], {})
    daemon = services._add(Daemon("daemon", process, log_path), ready=True)
    device = services.device("vol", "--map", "eager", peers=[daemon], size="16MiB")
    with device.connect() as client:
        client.write(0, b"x" * (16 * MIB))
        wait_for(lambda: device.get("/v1/status")["mapped_slabs"] == 16, what="mapping of all")
        file.write_text(f'memory = "8M"\nthreads = 3\n{rest}')
        services.expect_log("threads is 3 by .*infiniswapd.toml:2: that needs a restart")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "infiniswapd: memory is 8MiB now, was 32MiB" in daemon.log, what="the change to be told")
        wait_for(lambda: daemon.get("/v1/offer")["used_bytes"] <= 8 * MIB, what="memory to come back")
        assert client.read(0, 16 * MIB) == b"x" * (16 * MIB)
    for text, words in (
        (f'memory = "lots"\n{rest}', "memory: size 'lots'"),
        (f'memory = "64M"\n{rest}', "is more than the 32MiB of this start: that needs a restart"),
    ):
        file.write_text(text)
        services.expect_log(f"the files are not read again, nothing has changed: .*{words}")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda words=words: words in daemon.log, what=words)  # type: ignore[misc]
        assert offered(daemon) == 8 * MIB
    file.write_text(f'memory = "16M"\nlog_level = "debug"\n{rest}')
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: offered(daemon) == 16 * MIB, what="more memory")
    assert daemon.get("/v1/log-level")["levels"][""] == "debug"
