"""The systemd units that come with the package: filled in with where this installation stands, and written."""

from __future__ import annotations

import contextlib
from importlib import resources
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

UNIT_NAMES = ("infiniswapd.service", "infiniswap-device@.service", "infiniswap-swap@.service")
DESTINATION = Path("/etc/systemd/system")
COMMANDS = ("infiniswap", "infiniswapd")


def render(name: str, bin_dir: Path, docs: Path) -> str:
    """The unit's text with the folder of the commands and the documentation filled in."""
    text = resources.files("infiniswap.kernel_shim").joinpath("systemd", name).read_text()
    return text.replace("@BIN@", str(bin_dir)).replace("@DOCS@", str(docs))


def check_commands(bin_dir: Path) -> None:
    """UserError unless both commands stand in bin_dir, in a path that a unit file can carry."""
    for command in COMMANDS:
        if not (bin_dir / command).is_file():
            raise UserError(f"{bin_dir / command} does not exist: install infiniswap first", ExitCode.NOT_FOUND)
    if any(character.isspace() or character in "%\\\"'$" for character in str(bin_dir)):
        raise UserError(f"{bin_dir}: a unit file cannot carry this path; install into another", ExitCode.REFUSED)


def install(destination: Path, bin_dir: Path, docs: Path) -> list[Path]:
    """Write all units into destination; returns the files. UserError, and none written, when that cannot be."""
    check_commands(bin_dir)
    written: list[Path] = []
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name in UNIT_NAMES:
            path = destination / name
            fresh = destination / f".{name}.new"
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
