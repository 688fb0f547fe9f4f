"""A service can tell whether systemd stops it for good or restarts it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infiniswap.shared.manager import is_restarting, unit_of

UNIFIED = "0::/system.slice/infiniswapd.service\n"
HYBRID = (
    "5:memory:/system.slice/other.service\n"
    "1:name=systemd:/system.slice/system-x.slice/infiniswapd.service/sub\n"
    "0::/system.slice/infiniswapd.service/sub\n"
)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (UNIFIED, "infiniswapd.service"),
        (HYBRID, "infiniswapd.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/d.service\n", "d.service"),
        ("0::/user.slice/session-1.scope\n", None),
        ("5:memory:/system.slice/other.service\n0::/\n", None),
        ("", None),
    ],
)
def test_its_unit(text: str, unit: str | None) -> None:
    """The innermost service of the control group that systemd itself uses."""
    assert unit_of(text) == unit


@pytest.mark.parametrize(
    ("jobs", "restarting"),
    [
        ("123 infiniswapd.service restart running\n", True),
        ("1 other.service restart running\n123 infiniswapd.service stop running\n", False),
        ("7 infiniswapd.service try-restart waiting\n", True),
        ("123 infiniswapd.service stop running\n", False),
        ("", False),
        ("nonsense\n", False),
    ],
)
def test_what_is_about_to_happen(tmp_path: Path, jobs: str, restarting: bool) -> None:
    """Only a job of its own unit counts, and only one that starts it again."""
    (tmp_path / "cgroup").write_text(UNIFIED)
    asked = []

    def ask(unit: str) -> str:
        asked.append(unit)
        return jobs

    assert is_restarting(tmp_path / "cgroup", ask) == restarting
    assert asked == ["infiniswapd.service"]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no systemctl"), subprocess.TimeoutExpired("systemctl", 1)])
def test_nobody_answers(tmp_path: Path, error: Exception) -> None:
    """Without systemctl, or when it does not answer, the stop counts as one for good."""
    (tmp_path / "cgroup").write_text(UNIFIED)

    def ask(unit: str) -> str:
        del unit
        raise error

    assert not is_restarting(tmp_path / "cgroup", ask)
    assert not is_restarting(tmp_path / "none", ask)
