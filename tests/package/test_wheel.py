"""One wheel for every Python from 3.11 on, with liburing in it, and an sdist: both work in a fresh environment."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from infiniswap import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
TIMEOUT_S = 1200


def run(*command: str | Path) -> str:
    """What it says; a failure of the test when it fails."""
    words = list(map(str, command))
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(Path.home()), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """Both, by the end of their names."""
    root = Path(__file__).resolve().parents[2]
    files = [Path(line) for line in run(root / "scripts/package", "wheel", "sdist").split()]
    ours = {path.suffix: path for path in files if path.name.startswith(f"infiniswap-{__version__}")}
    assert set(ours) == {".whl", ".gz"}
    return ours


@pytest.fixture(scope="module")
def commands(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment with the wheel."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run("/usr/bin/python3", "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--no-input", built[".whl"])
    return folder / "bin"


def test_wheel(built: dict[str, Path], commands: Path, tmp_path: Path, short_path: Path) -> None:
    """Its name says what it is; the demo runs with it; the units that it writes start it."""
    wheel = built[".whl"]
    assert re.search(r"-cp311-abi3-manylinux_2_\d+_\w+\.whl$", wheel.name)
    assert [name for name in zipfile.ZipFile(wheel).namelist() if "liburing" in name]
    assert "Everything was right" in run(commands / "infiniswap", "demo", "--dir", short_path)
    run(commands / "infiniswap", "systemd", "install", "--destination", tmp_path / "units")
    for unit in (tmp_path / "units").glob("*.service"):
        text = unit.read_text()
        assert f"ExecStart={commands}/infiniswap" in text
        for document in re.findall(r"^Documentation=file:(.*)$", text, re.MULTILINE):
            assert Path(document).exists()


def test_sdist(built: dict[str, Path], commands: Path) -> None:
    """It holds what a build needs, the engine's sources among it; what it is built to takes the wheel's place."""
    run(commands / "python", "-m", "pip", "uninstall", "--no-input", "--yes", "infiniswap")
    assert not (commands / "infiniswapd").exists()
    run(commands / "python", "-m", "pip", "install", "--no-input", "--no-deps", built[".gz"])
    assert __version__ in run(commands / "infiniswapd", "--version")
    run(
        commands / "python",
        "-c",
        "import infiniswap.engine._engine, infiniswap.daemon.service, infiniswap.device.serve",
    )
