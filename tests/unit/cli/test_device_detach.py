"""Device detach takes nothing away that a service manager is about to serve again."""

from __future__ import annotations

from pathlib import Path

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.kernel_shim import detach, shards
from infiniswap.shared.errors import ExitCode


@pytest.mark.parametrize("parts", [[], ["vol~0", "vol~1"]])
def test_what_is_not_served_stays(
    parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nobody answers by the device's name it stays attached, shards that serve without a parent included."""
    arguments = ["device", "detach", "--if-attached", "--if-served", "vol", "--runtime-dir", str(tmp_path)]

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("it was to be left alone")

    monkeypatch.setattr(detach, "detach", touched)
    monkeypatch.setattr(shards, "detach_all", touched)
    monkeypatch.setattr(detach, "is_attached", lambda *_: True)
    monkeypatch.setattr(shards, "attached_names", lambda *_: parts)
    assert cli_main.run(arguments) == ExitCode.FAILED
    assert "device 'vol' does not answer, and stays attached" in capsys.readouterr().err
    monkeypatch.setattr(detach, "is_attached", lambda *_: False)
    monkeypatch.setattr(shards, "attached_names", lambda *_: [])
    assert cli_main.run(arguments) == ExitCode.OK
