"""infiniswap config check: whether a file, with its drop-ins, describes a device or a daemon."""

from __future__ import annotations

from pathlib import Path

import click

from infiniswap.daemon import config as daemon_config
from infiniswap.device import config as device_config
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.layers import DROP_IN_SUFFIX, files_of
from infiniswap.shared.output import say
from infiniswap.shared.sizes import format_size
from infiniswap.shared.toml_file import read_toml

KINDS = ("device", "daemon")
DAEMON_FILE = "infiniswapd.toml"


def whole(file: Path) -> Path:
    """The file that a drop-in belongs to, or file itself."""
    folder = file.absolute().parent
    if folder.name.endswith(f"{DROP_IN_SUFFIX}.d"):
        return folder.with_name(folder.name.removesuffix(".d"))
    return file


def kind_of(file: Path) -> str:
    """What file seems to describe: a daemon by its name or by the memory that it lends, else a device. UserError."""
    if file.name == DAEMON_FILE:
        return "daemon"
    keys = {key for path in files_of(file) for key in read_toml(path)}
    return "daemon" if "memory" in keys and not keys & {"size", "backup"} else "device"


def described(file: Path, kind: str, mistakes: list[str]) -> str:
    """In a few words what file describes. UserError; mistakes gets all of them that were found."""
    if kind == "daemon":
        daemon = daemon_config.load({}, file, mistakes=mistakes).config
        return f"a memory daemon at {daemon.listen} that lends {daemon.memory}"
    stated = device_config.read_file(file)
    name = None if "name" in stated else file.stem
    device = device_config.load(name, {}, file, mistakes=mistakes).config
    return f"device '{device.name}' of {format_size(device.size_bytes)} with {len(device.peers)} peers"


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--kind", type=click.Choice(KINDS), help="What FILE describes [default: seen by its name and keys].")
def command(file: Path, kind: str | None) -> None:
    """Check a configuration file, and say what it describes.

    Its drop-ins (FILE.d/*.toml) are read with it; nothing is started or changed. Exit code 0: they are good. 2: a
    mistake, each on a line of its own with file and line. 3: there is no such file.
    """
    file = whole(file)
    mistakes: list[str] = []
    try:
        what = described(file, kind or kind_of(file), mistakes)
    except UserError as error:
        for mistake in mistakes[1:]:
            say(f"infiniswap: {mistake}")
        message = str(error)
        named = message.startswith(str(file)) or error.code != ExitCode.USAGE or ".toml" in message
        raise UserError(message if named else f"{file}: {message}", error.code) from None
    more = len(files_of(file)) - 1
    click.echo(f"{file}: {what}" + (f", with {more} drop-ins" if more > 0 else ""))
