"""scripts/lib.sh installs only what is missing, asks for root only when it must, and does not repeat itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

COPIED = (
    "scripts",
    "setup.py",
    "pyproject.toml",
    "requirements-test.txt",
    "infiniswap/__init__.py",
    "infiniswap/engine",
)


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A copy of what the set-up depends on."""
    target = tmp_path / "checkout"
    for name in COPIED:
        source = root / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=shutil.ignore_patterns("*.so", "*.o", "vm"))
        else:
            shutil.copy(source, target / name)
    return target


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder at the head of PATH with stand-ins that write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub(folder, "dpkg-query", 'case "$*" in *gcc*) printf installed ;; *) exit 1 ;; esac')
    stub(folder, "apt-get", 'echo "apt-get $*" >>"$CALLS"')
    stub(folder, "sudo", 'echo "sudo" >>"$CALLS"; exec "$@"')
    stub(folder, "id", "echo 0")
    return folder


def stub(folder: Path, name: str, body: str) -> None:
    """Make a command."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def shell(checkout: Path, commands: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run script after lib.sh, with the stand-ins first in PATH; what they did stands in $CALLS."""
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "CALLS": str(commands.parent / "calls")}
    return subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f". scripts/lib.sh\n{script}"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(commands: Path) -> list[str]:
    """What the stand-ins did so far."""
    path = commands.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


STAND_INS = """
need_packages() { :; }
make_venv() { mkdir -p "$VENV"; }
pip_install() { echo "pip $*" >>"$CALLS"; }
"""


def test_a_second_run_does_nothing(checkout: Path, commands: Path) -> None:
    """What was set up is not set up again, until something that it depends on has changed."""
    assert shell(checkout, commands, STAND_INS + "set_up build").returncode == 0
    assert calls(commands) == [f"pip -e {checkout}"]
    again = shell(checkout, commands, STAND_INS + "set_up build")
    assert (again.returncode, again.stderr) == (0, "")
    assert len(calls(commands)) == 1
    header = checkout / "infiniswap" / "engine" / "include" / "infiniswap_engine.h"
    header.write_text(header.read_text() + "\n/* changed */\n")
    assert shell(checkout, commands, STAND_INS + "set_up build").returncode == 0
    assert len(calls(commands)) == 2


def test_tests_set_up_the_demo_too(checkout: Path, commands: Path) -> None:
    """After the set-up of the tests the demo has nothing left to do, but not the other way round."""
    shell(checkout, commands, STAND_INS + "set_up test; set_up build")
    assert calls(commands) == [
        f"pip --upgrade --upgrade-strategy eager -e {checkout} -r {checkout}/requirements-test.txt"
    ]
    shutil.rmtree(checkout / ".venv")
    shell(checkout, commands, STAND_INS + "set_up build; set_up test")
    assert len(calls(commands)) == 3


def test_a_failed_set_up_is_tried_again(checkout: Path, commands: Path) -> None:
    """A set-up that failed half-way counts as none."""
    failing = STAND_INS + "pip_install() { die 'no network'; }\n"
    failed = shell(checkout, commands, failing + "set_up build")
    assert failed.returncode == 1
    assert "no network" in failed.stderr
    assert shell(checkout, commands, STAND_INS + "set_up build").returncode == 0
    assert len(calls(commands)) == 1


def test_only_missing_packages_are_installed(checkout: Path, commands: Path) -> None:
    """Packages that are there are left alone, and new package lists are not fetched when the old ones do."""
    done = shell(checkout, commands, "need_packages gcc fio nbdkit")
    assert done.returncode == 0
    assert re.fullmatch(r"apt-get install .*--no-install-recommends .* fio nbdkit", calls(commands)[0])
    assert len(calls(commands)) == 1
    shell(checkout, commands, "need_packages gcc")
    assert len(calls(commands)) == 1


def test_package_lists_are_fetched_when_needed(checkout: Path, commands: Path) -> None:
    """Where the first try fails, as on a fresh machine, package lists are fetched and it is tried once more."""
    stub(
        commands,
        "apt-get",
        'echo "$1" >>"$CALLS"; case $1 in update) touch "$CALLS.lists" ;; install) [ -e "$CALLS.lists" ] ;; esac',
    )
    assert shell(checkout, commands, "need_packages fio").returncode == 0
    assert calls(commands) == ["install", "update", "install"]


def test_a_failed_installation_is_told(checkout: Path, commands: Path) -> None:
    """What apt-get said is shown when it fails for good."""
    stub(commands, "apt-get", "echo E: no such package; exit 100")
    done = shell(checkout, commands, "need_packages fio")
    assert done.returncode == 1
    assert "E: no such package" in done.stderr
    assert "installing fio failed" in done.stderr


def test_sudo_when_not_root(checkout: Path, commands: Path) -> None:
    """Somebody who is not root installs with sudo, and only then."""
    shell(checkout, commands, "need_packages fio")
    assert "sudo" not in calls(commands)
    stub(commands, "id", "echo 1000")
    assert shell(checkout, commands, "need_packages fio").returncode == 0
    assert "sudo" in calls(commands)


def test_neither_root_nor_sudo(checkout: Path, commands: Path) -> None:
    """Without any way to install, the message says what root has to run; with nothing missing, nothing is said."""
    stub(commands, "id", "echo 1000")
    (commands / "sudo").unlink()
    only = f"PATH={commands}\n"  # Debian's own sudo, should it be there, is out of reach
    for name in ("cat", "mktemp", "rm", "env", "basename"):
        (commands / name).symlink_to(shutil.which(name) or name)
    done = shell(checkout, commands, only + "need_packages gcc fio")
    assert done.returncode == 1
    assert "run as root: apt-get install fio" in done.stderr
    assert shell(checkout, commands, only + "need_packages gcc").returncode == 0


def test_venv_is_made_from_debians_python(checkout: Path, commands: Path) -> None:
    """Another python3 that comes first in PATH is not used; Debian's modules are seen; a good venv is left alone."""
    stub(commands, "python3", 'echo "wrong python" >>"$CALLS"; exit 1')
    script = 'make_venv; "$VENV/bin/python" -c "import sys; print(sys.base_prefix)"; touch "$VENV/mark"; make_venv'
    done = shell(checkout, commands, script)
    assert (done.returncode, done.stdout) == (0, "/usr\n"), done.stderr
    assert (checkout / ".venv" / "mark").exists()
    assert "include-system-site-packages = true" in (checkout / ".venv" / "pyvenv.cfg").read_text()
    assert calls(commands) == []


@pytest.mark.parametrize(
    ("command", "good"),
    [
        ("{python} -m venv --system-site-packages {venv}", True),
        ("/opt/other/python3 -m venv --system-site-packages {venv}", False),  # another Python's
        ("{python} -m venv {venv}", False),  # without Debian's modules
        (
            "{python} -m venv --system-site-packages /elsewhere/.venv",
            False,
        ),  # moved: its scripts point to the old place
    ],
)
def test_wrong_venvs_are_made_anew(checkout: Path, commands: Path, command: str, good: bool) -> None:
    """A venv that is not the one that the set-up would make is replaced, a good one kept."""
    venv, python = checkout / ".venv", commands / "debian-python"
    stub(commands, python.name, 'echo "$*" >>"$CALLS"')
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/usr/bin/python3")
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\ncommand = {command.format(python=python, venv=venv)}\n")
    assert shell(checkout, commands, f"PYTHON={python}; make_venv").returncode == 0
    assert (venv / "bin").exists() == good
    assert calls(commands) == ([] if good else [f"-m venv --system-site-packages {venv}"])
