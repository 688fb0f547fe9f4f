"""What the service manager is about to do with this service: SIGTERM alone does not tell a restart from a stop."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
OWN_CGROUP = Path("/proc/self/cgroup")


def unit_of(cgroup: str) -> str | None:
    """The service in whose control group a process is, by the text of its /proc/PID/cgroup (cgroups(7))."""
    found = re.findall(r"^(?:0:|\d+:name=systemd):.*/([^/\n]+\.service)(?:/|$)", cgroup, re.MULTILINE)
    return found[-1] if found else None


def _jobs(unit: str) -> str:
    """What systemd is doing about unit, one job a line: number, unit, type, state."""
    command = ["systemctl", "list-jobs", "--no-legend", "--no-pager", "--plain", unit]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    return done.stdout


def is_restarting(cgroup: Path = OWN_CGROUP, jobs: Callable[[str], str] = _jobs) -> bool:
    """Whether the manager stops this service in order to start it again; False also where it cannot be asked."""
    try:
        unit = unit_of(cgroup.read_text())
        lines = [] if unit is None else jobs(unit).splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("systemd does not tell why this service stops: %s", error)
        return False
    return any(words[1] == unit and words[2].endswith("restart") for line in lines if len(words := line.split()) > 2)
