"""The systemd units are accepted by systemd itself, name commands that exist, and keep the rules of a swap service."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.kernel_shim import protection, units
from infiniswap.shared.errors import UserError
from tests.support.services import DAEMON


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A folder with both commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in units.COMMANDS:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_systemd_verifies(tmp_path: Path, bin_dir: Path) -> None:
    """Systemd-analyze verify has nothing to say about any of the units."""
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "apt-get install systemd"
    units.install(tmp_path / "units", bin_dir, tmp_path / "docs.md")
    written = [tmp_path / "units" / name for name in units.UNIT_NAMES]
    done = subprocess.run([tool, "verify", *map(str, written)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("unit", "tenths"),
    [("infiniswapd.service", 25), ("infiniswap-device@.service", 32), ("infiniswap-swap@.service", 40)],
)
def test_exposure(tmp_path: Path, bin_dir: Path, unit: str, tenths: int) -> None:
    """Systemd-analyze security rates each unit no worse than it was brought to; all are below 4."""
    assert tenths <= 40
    units.install(tmp_path, bin_dir, tmp_path / "docs.md")
    tool = shutil.which("systemd-analyze")
    assert tool is not None, "apt-get install systemd"
    command = [tool, "security", "--offline=true", f"--threshold={tenths}", "--no-pager", f"./{unit}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


@pytest.mark.parametrize("unit", units.UNIT_NAMES)
def test_each_capability_is_explained(bin_dir: Path, unit: str) -> None:
    """Whoever reads a unit finds behind each capability that it keeps what for, and so in docs/vm.md."""
    text = units.render(unit, bin_dir, Path("/docs"))
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.+)$", text, re.MULTILINE)
    documented = (Path(__file__).resolve().parents[3] / "docs/vm.md").read_text()
    for capability in kept.split():
        assert re.search(rf"^#.* ?{capability}: \w+", text, re.MULTILINE), (
            f"{unit} does not say what for {capability} is"
        )
        assert f"`{capability}`" in documented


def test_swap_is_switched_on_where_everybody_sees_it(bin_dir: Path) -> None:
    """Nothing gives the swap unit a mount namespace, or /proc/swaps names its area by a path that is none elsewhere."""
    text = units.render("infiniswap-swap@.service", bin_dir, Path("/docs"))
    settings = set(re.findall(r"^(\w+)=", text, re.MULTILINE))
    own_view = {
        name for name in settings if name.startswith(("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccess"))
    }
    assert not own_view | (settings & {"RootDirectory", "RootImage", "TemporaryFileSystem", "MountFlags", "BindPaths"})


def test_no_backup_is_deleted(bin_dir: Path) -> None:
    """A device's backup may be in /var/tmp, which PrivateTmp= would empty at the end of the service."""
    assert not re.search(
        "^PrivateTmp=", units.render("infiniswap-device@.service", bin_dir, Path("/docs")), re.MULTILINE
    )


def test_settings_stand_where_systemd_looks(tmp_path: Path, bin_dir: Path) -> None:
    """Units in DIR/systemd/system have sysusers.d and tmpfiles.d in DIR; the user that a unit names is made."""
    units.install(tmp_path / "systemd/system", bin_dir, Path("/docs"))
    assert f"\nu {units.USER} " in (tmp_path / "sysusers.d/infiniswap.conf").read_text()
    assert f"\nUser={units.USER}\n" in (tmp_path / "systemd/system/infiniswapd.service").read_text()
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", tmp_path / "sysusers.d/infiniswap.conf"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(f"^{units.USER}:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    lines = (tmp_path / "tmpfiles.d/infiniswap.conf").read_text().splitlines()
    assert [line.split()[:3] for line in lines if not line.startswith("#")] == [
        ["d", "/etc/infiniswap", "0755"],
        ["d", "/run/infiniswap", "0700"],
        ["d", "/var/lib/infiniswap", "0700"],
    ]


def test_what_the_daemons_user_cannot_reach(tmp_path: Path) -> None:
    """Programs in a home folder, or behind one that others may not enter, are said to be out of the daemon's reach."""
    assert "home folders" in (units.hidden_from_daemon(Path("/root/x/bin")) or "")
    (tmp_path / "shut/bin").mkdir(parents=True)
    (tmp_path / "shut").chmod(0o700)
    assert f"cannot enter {tmp_path}/shut" in (units.hidden_from_daemon(tmp_path / "shut/bin") or "")
    assert "has a /tmp of its own" in (units.hidden_from_daemon(Path("/tmp")) or "")
    assert units.hidden_from_daemon(Path("/usr/bin")) is None


def test_commands_in_units_exist(bin_dir: Path) -> None:
    """Every ExecStart and ExecStop is a command line that the command line parser knows."""
    for name in units.UNIT_NAMES:
        text = units.render(name, bin_dir, Path("/docs"))
        lines = re.findall(r"^Exec\w+=(\S+) (.*)$", text, re.MULTILINE)
        assert lines
        for program, arguments in lines:
            if program.lstrip("-+") in ("/bin/kill", "/bin/sh"):  # of a reload; who may read a key
                continue
            command = Path(program).name
            assert (bin_dir / command).exists()
            words = arguments.split()
            verbs = [word for word in words if not word.startswith(("-", "%", "/"))][:2]
            start = [sys.executable, "-m", "infiniswap.cli.main", *verbs] if command == "infiniswap" else DAEMON
            done = subprocess.run([*start, "--help"], capture_output=True, text=True, timeout=60, check=True)
            for option in (word for word in words if word.startswith("--")):
                assert option in re.findall(r"--[a-z-]+", done.stdout), f"{command} {verbs} has no {option}"


def test_rules_of_a_swap_service(bin_dir: Path) -> None:
    """Nothing ends the device service while pages are out: no SIGKILL, no default stop, time enough, no swapping."""
    text = units.render("infiniswap-device@.service", bin_dir, Path("/docs"))
    for line in (
        "Type=notify",
        "DefaultDependencies=no",
        "KillMode=process",
        "SendSIGKILL=no",
        "TimeoutStopSec=1800",
        "OOMScoreAdjust=-1000",
        "LimitMEMLOCK=infinity",
        "MemorySwapMax=0",
        "Restart=always",
    ):
        assert f"\n{line}\n" in text
    stops = re.findall(r"^ExecStop=.*$", text, re.MULTILINE)
    assert "detach" in stops[0]
    assert "stop" in stops[1]


def test_swap_unit_outlives_a_crash(bin_dir: Path) -> None:
    """Systemd restarts it with the device service that it requires: neither stop nor start changes anything then."""
    text = units.render("infiniswap-swap@.service", bin_dir, Path("/docs"))
    assert re.search(r"^ExecStart=\S+ device attach %i --swap --unless-attached$", text, re.MULTILINE)
    assert re.search(r"^ExecStop=\S+ device detach --if-attached --if-served %i$", text, re.MULTILINE)


def test_install_refuses(tmp_path: Path, bin_dir: Path) -> None:
    """Without the commands, or into a place that cannot be written, nothing is left behind."""
    with pytest.raises(UserError, match="does not exist"):
        units.install(tmp_path / "units", tmp_path, Path("/docs"))
    assert not (tmp_path / "units").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        units.install(tmp_path / "file", bin_dir, Path("/docs"))


def test_oom_score_adj(tmp_path: Path) -> None:
    """The score goes where the kernel reads it; a refusal is named with its way out."""
    (tmp_path / "self").mkdir()
    protection.set_oom_score_adj(-1000, tmp_path)
    assert (tmp_path / "self/oom_score_adj").read_text() == "-1000\n"
    with pytest.raises(protection.ProtectionError, match="run as root"):
        protection.set_oom_score_adj(-1000, tmp_path / "nowhere")


def test_memory_is_protected_before_numpy_is_there() -> None:
    """The command that serves loads no numpy: its linear algebra starts a thread, which would not be protected."""
    code = "import sys, infiniswap.cli.device_serve; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_lock_memory_in_a_process() -> None:
    """After lock_memory the kernel counts the process's memory as locked; a limit makes it a clear error."""
    code = (
        "import resource\n"
        "from infiniswap.kernel_shim import protection\n"
        "try:\n"
        "    protection.lock_memory()\n"
        "except protection.ProtectionError as error:\n"
        "    print('refused', 'ulimit -l' in error.strerror)\n"
        "else:\n"
        "    print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmLck')][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused True\n" or int(done.stdout) > 1024
