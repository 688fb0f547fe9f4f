"""The Debian package is built from the checkout, has no errors for lintian, and works with Debian's own libraries."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from infiniswap import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PYTHON = "/usr/bin/python3"
BUILD_TIMEOUT_S = 1200
TIMEOUT_S = 300
# Imports everything that the programs may need, whichever library has it.
IMPORT_ALL = """
import importlib, pkgutil, infiniswap
for module in pkgutil.walk_packages(infiniswap.__path__, "infiniswap."):
    if not module.name.endswith("__main__") and module.name != "infiniswap.engine.build":
        importlib.import_module(module.name)
import aiohttp, click, infiniswap.engine._engine
print(aiohttp.__file__, click.__file__, infiniswap.__file__)
"""


def run(*command: str | Path, environment: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """What it says; a failure of the test when it fails."""
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """The built package."""
    root = Path(__file__).resolve().parents[2]
    built = run(root / "scripts/package", "deb", timeout_s=BUILD_TIMEOUT_S).split()
    found = [Path(line) for line in built if re.search(rf"/infiniswap_{re.escape(__version__)}_\w+\.deb$", line)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it holds."""
    folder = tmp_path_factory.mktemp("debian")
    run("dpkg-deb", "-x", package, folder)
    return folder


@pytest.fixture
def environment(unpacked: Path, tmp_path: Path) -> dict[str, str]:
    """Debian's Python finds the package where it was unpacked, and nothing of this checkout's environment."""
    kept = {name: os.environ[name] for name in ("HOME", "INFINISWAP_BACKUPS_DIR") if name in os.environ}
    found = {"PATH": f"{unpacked}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return {**kept, **found, "PYTHONPATH": f"{unpacked}/usr/lib/python3/dist-packages"}


def test_lintian(package: Path) -> None:
    """It knows no error of the package."""
    run("lintian", "--allow-root", "--fail-on", "error", package)


def test_every_module_with_debians_libraries(unpacked: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Each one can be imported, and the libraries are Debian's."""
    said = run(PYTHON, "-P", "-c", IMPORT_ALL, environment=environment).split()
    assert [word.startswith("/usr/lib/python3/dist-packages/") for word in said] == [True, True, False]
    assert said[2].startswith(str(unpacked))


@pytest.mark.parametrize("program", ["infiniswap", "infiniswapd"])
def test_programs(unpacked: Path, environment: dict[str, str], program: str) -> None:
    """Both say which version they are."""
    assert __version__ in run(PYTHON, unpacked / "usr/bin" / program, "--version", environment=environment)


def test_demo(unpacked: Path, environment: dict[str, str], short_path: Path) -> None:
    """Three daemons and a device with Debian's libraries: a daemon is killed, and every byte is right."""
    demo = ("demo", "--dir", short_path)
    said = run(PYTHON, unpacked / "usr/bin/infiniswap", *demo, environment=environment, timeout_s=2 * TIMEOUT_S)
    assert "Everything was right" in said


def test_units_and_configuration(unpacked: Path) -> None:
    """Units start the installed programs; the memory daemon's configuration says nothing that is not the default."""
    units = unpacked / "lib/systemd/system"
    for name in ("infiniswapd.service", "infiniswap-device@.service", "infiniswap-swap@.service"):
        text = (units / name).read_text()
        assert re.search(r"^ExecStart=/usr/bin/infiniswapd? ", text, re.MULTILINE)
        assert "@BIN@" not in text
        assert "@DOCS@" not in text
    assert re.search(r"^u infiniswap ", (unpacked / "usr/lib/sysusers.d/infiniswap.conf").read_text(), re.MULTILINE)
    assert "/var/lib/infiniswap" in (unpacked / "usr/lib/tmpfiles.d/infiniswap.conf").read_text()
    lines = (unpacked / "etc/infiniswap/infiniswapd.toml").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ['memory = "auto"']
