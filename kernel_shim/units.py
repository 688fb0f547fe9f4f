"""The systemd units that come with the package: filled in with where this installation stands, and written."""

from __future__ import annotations

import contextlib
import stat
from importlib import resources
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

UNIT_NAMES = ("infiniswapd.service", "infiniswap-device@.service", "infiniswap-swap@.service")
DESTINATION = Path("/etc/systemd/system")
# The daemon's user, and the folders of devices: for systemd-sysusers and systemd-tmpfiles.
SETTINGS = {"sysusers.conf": "sysusers.d/infiniswap.conf", "tmpfiles.conf": "tmpfiles.d/infiniswap.conf"}
USER = "infiniswap"
COMMANDS = ("infiniswap", "infiniswapd")


def render(name: str, bin_dir: Path, docs: Path) -> str:
    """The text of a file of kernel_shim/systemd/ with the folder of the commands and the documentation filled in.

    docs: a path that is not absolute stands for none.
    """
    text = resources.files("infiniswap.kernel_shim").joinpath("systemd", name).read_text()
    if not docs.is_absolute():  # a wheel brings no documents along
        text = "".join(line for line in text.splitlines(keepends=True) if "@DOCS@" not in line)
    return text.replace("@BIN@", str(bin_dir)).replace("@DOCS@", str(docs))


def check_commands(bin_dir: Path) -> None:
    """UserError unless both commands stand in bin_dir, in a path that a unit file can carry."""
    for command in COMMANDS:
        if not (bin_dir / command).is_file():
            raise UserError(f"{bin_dir / command} does not exist: install infiniswap first", ExitCode.NOT_FOUND)
    if any(character.isspace() or character in "%\\\"'$" for character in str(bin_dir)):
        raise UserError(f"{bin_dir}: a unit file cannot carry this path; install into another", ExitCode.REFUSED)


def files(destination: Path) -> dict[str, Path]:
    """What is installed, by its name in kernel_shim/systemd/, and where: settings go to DIR of DIR/systemd/system."""
    base = destination.parent.parent if destination.parts[-2:] == ("systemd", "system") else destination
    units = {name: destination / name for name in UNIT_NAMES}
    return units | {name: base / place for name, place in SETTINGS.items()}


def hidden_from_daemon(bin_dir: Path) -> str | None:
    """Why infiniswapd.service, with its own user and /tmp and without homes, cannot run what is in bin_dir, or None."""
    real = bin_dir.resolve()
    if any(real.is_relative_to(home) for home in ("/home", "/root", "/run/user")):
        return f"infiniswapd.service does not see {real}: install infiniswap outside of home folders, as in /opt"
    for folder in (real, *real.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return f"user {USER} cannot enter {folder}, so infiniswapd.service cannot run what is in {real}"
    if any(real.is_relative_to(folder) for folder in ("/tmp", "/var/tmp")):
        return f"infiniswapd.service has a /tmp of its own, without {real}: install infiniswap elsewhere, as in /opt"
    return None


def install(destination: Path, bin_dir: Path, docs: Path) -> list[Path]:
    """Write all units into destination; returns the files. UserError, and none written, when that cannot be."""
    check_commands(bin_dir)
    written: list[Path] = []
    try:
        for name, path in files(destination).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            written.append(fresh)
            fresh.write_text(render(name, bin_dir, docs))
            fresh.chmod(0o644)
            fresh.replace(path)
            written[-1] = path
    except OSError as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise UserError(f"cannot write to {destination}: {error.strerror}", ExitCode.RESOURCES) from None
    return written
