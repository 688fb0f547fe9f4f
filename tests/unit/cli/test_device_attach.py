"""device attach --unless-attached: what the kernel has counts, whether all of it is served just now or not."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from infiniswap.cli import device_attach
from infiniswap.kernel_shim import shards
from infiniswap.shared.errors import ExitCode, UserError

ROWS = [
    {"name": "vol~0", "socket": "/run/vol~0.sock", "state": "serving", "why": ""},
    {"name": "vol~1", "socket": "/run/vol~1.sock", "state": "dead", "why": "killed"},
]


@pytest.mark.parametrize("nodes", [["/dev/nbd0", "/dev/nbd1"], []])
def test_a_dead_shard_that_is_attached(monkeypatch: pytest.MonkeyPatch, nodes: list[str]) -> None:
    """The swap unit is well when the kernel has all; what is not attached yet waits until all serve."""

    def fetch(*_: object, **__: object) -> dict[str, Any]:
        return {"name": "vol", "shards": ROWS}

    def attached_nodes(whole: str, parts: list[shards.Part]) -> list[str]:
        assert (whole, [part.request.name for part in parts]) == ("vol", ["vol~0", "vol~1"])
        return nodes

    monkeypatch.setattr(device_attach, "fetch", fetch)
    monkeypatch.setattr(shards, "attached_nodes", attached_nodes)
    done = CliRunner().invoke(
        device_attach.command, ["vol", "--swap", "--unless-attached", "--runtime-dir", "/nowhere"]
    )
    if nodes:
        assert (done.exception, done.output) == (None, "/dev/nbd0\n/dev/nbd1\n")
    else:
        assert isinstance(done.exception, UserError)
        assert done.exception.code == ExitCode.FAILED
