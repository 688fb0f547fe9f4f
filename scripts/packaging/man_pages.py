"""Man pages, from click's commands and from the one description of each option.

python3 -m scripts.packaging.man_pages FOLDER
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from infiniswap import __version__
from infiniswap.cli.main import make_cli
from infiniswap.daemon.main import command as daemon_command
from infiniswap.daemon.options import OPTIONS as DAEMON_OPTIONS
from infiniswap.device.options import OPTIONS as DEVICE_OPTIONS
from infiniswap.kernel_shim.attach_options import ATTACH_OPTIONS
from infiniswap.shared.errors import ExitCode
from infiniswap.shared.options import Options

SUMMARY_CHARACTERS_MAX = 300
VERBATIM = "\b"  # click's mark of a paragraph that is not filled

EXIT_CODES = {
    ExitCode.OK: "Done.",
    ExitCode.FAILED: "The operation itself failed, or a comparison did not hold.",
    ExitCode.USAGE: "Wrong arguments or configuration.",
    ExitCode.NOT_FOUND: "No such device, file or running service.",
    ExitCode.IN_USE: "A name, port, file or device is in use.",
    ExitCode.REFUSED: "Refused for safety: foreign data, a mounted device, a wrong size, stale state.",
    ExitCode.RESOURCES: "Out of disk space, memory or permissions.",
    ExitCode.UNREACHABLE: "No peer could be reached where one is needed.",
}
FILES = (
    ("/etc/infiniswap/infiniswapd.toml", "the memory daemon's options"),
    ("/etc/infiniswap/NAME.toml", "options of device NAME; /etc/infiniswap/NAME.toml.d/*.toml is read after it"),
    ("/run/infiniswap", "sockets of what runs"),
    ("/var/lib/infiniswap", "what devices keep over a boot"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its name, section and text in roff."""

    name: str
    section: int
    text: str

    @property
    def file_name(self) -> str:
        """As man looks for it."""
        return f"{self.name}.{self.section}"


def escaped(text: str) -> str:
    """Plain text as roff prints it unchanged."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def paragraphs(text: str | None) -> Iterator[str]:
    """Roff of a text in click's manner: blank lines between paragraphs, those with a mark as they stand."""
    parts = [part for part in re.split(r"\n\s*\n", (text or "").partition("\f")[0].strip("\n")) if part.strip()]
    for number, part in enumerate(parts):
        if number:
            yield ".PP"
        if part.lstrip().startswith(VERBATIM):
            lines = part.replace(VERBATIM, "").strip("\n").splitlines()
            yield from (".nf", *(escaped(line) or "\\&" for line in lines if line.strip()), ".fi")
        else:
            yield escaped(" ".join(part.split()))


def head(name: str, section: int, summary: str) -> list[str]:
    """Title and NAME."""
    moment = dt.datetime.now(dt.UTC)
    if given := os.environ.get("SOURCE_DATE_EPOCH"):  # a package that is built again is the same
        moment = dt.datetime.fromtimestamp(int(given), dt.UTC)
    title = f'.TH {escaped(name.upper())} {section} "{moment:%Y-%m-%d}" "infiniswap {__version__}" "Infiniswap"'
    return [title, ".SH NAME", f"{escaped(name)} \\- {escaped(summary.rstrip('.'))}"]


def terms(rows: list[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, each with what it means."""
    for term, meaning in rows:
        yield from (".TP", f"\\fB{escaped(term)}\\fR", escaped(" ".join(meaning.split())) or "\\&")


def command_page(command: click.Command, path: tuple[str, ...], section: int = 1) -> Page:
    """The page of one command; a group's names its verbs."""
    name = "-".join(path)
    context = click.Context(command, info_name=" ".join(path))
    lines = head(name, section, command.get_short_help_str(SUMMARY_CHARACTERS_MAX))
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f"\\fB{escaped(' '.join(path))}\\fR {escaped(usage)}"]
    lines += [".SH DESCRIPTION", *paragraphs(command.help)]
    if isinstance(command, click.Group):
        found = [(verb, command.get_command(context, verb)) for verb in command.list_commands(context)]
        rows = [(verb, sub.get_short_help_str(SUMMARY_CHARACTERS_MAX)) for verb, sub in found if sub is not None]
        lines += [".SH COMMANDS", *terms(rows)]
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    records = [option.get_help_record(context) for option in options]
    lines += [".SH OPTIONS", *terms([record for record in records if record is not None])]
    if command.epilog:
        lines += [".SH NOTES", *paragraphs(command.epilog)]
    lines += [".SH EXIT STATUS", *terms([(str(code.value), EXIT_CODES[code]) for code in ExitCode])]
    if len(path) == 1:
        lines += [".SH FILES", *terms(list(FILES))]
    lines += [".SH SEE ALSO", see_also(name)]
    return Page(name, section, "\n".join(lines) + "\n")


def see_also(name: str) -> str:
    """The pages where one goes on."""
    known = (("infiniswap", 1), ("infiniswap.toml", 5), ("infiniswapd", 8))
    return ",\n".join(f"\\fB{escaped(other)}\\fR({section})" for other, section in known if other != name)


def option_lines(options: Options) -> Iterator[str]:
    """Each option as a file has it."""
    for option in options:
        one_of = f" One of {', '.join(option.choices)}." if option.choices else ""
        yield from (".TP", f"\\fB{escaped(option.name)}\\fR", escaped(option.help_text + one_of))
        yield from (".br", f"Example: {escaped(option.in_file().splitlines()[-1].lstrip('#'))}")


def file_page() -> Page:
    """All that a configuration file may say."""
    name = "infiniswap.toml"
    lines = head(name, 5, "options of devices and of the memory daemon in files")
    lines += [".SH SYNOPSIS", *(line for path, _ in FILES[:2] for line in (f"\\fI{escaped(path)}\\fR", ".br"))][:-1]
    about = (
        "Files in TOML. An option that is given on the command line wins over the file; what is given nowhere has "
        "its default. A size is a number of bytes, or 64KiB, 512MiB, 1.5GiB: powers of 1024."
    )
    lines += [".SH DESCRIPTION", escaped(about)]
    lines += [".SH OPTIONS OF A DEVICE", *option_lines(DEVICE_OPTIONS)]
    lines += [".SH OPTIONS OF A DEVICE IN [ATTACH]", *option_lines(ATTACH_OPTIONS)]
    lines += [".SH OPTIONS OF THE MEMORY DAEMON", *option_lines(DAEMON_OPTIONS)]
    lines += [".SH FILES", *terms(list(FILES)), ".SH SEE ALSO", see_also(name)]
    return Page(name, 5, "\n".join(lines) + "\n")


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[Page]:
    """The pages of a command and of all its verbs."""
    yield command_page(command, path)
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=" ".join(path))
        for verb in command.list_commands(context):
            sub = command.get_command(context, verb)
            if sub is not None and not sub.hidden:
                yield from commands(sub, (*path, verb))


def pages() -> list[Page]:
    """All of them."""
    return [
        *commands(make_cli(), ("infiniswap",)),
        command_page(daemon_command, ("infiniswapd",), section=8),
        file_page(),
    ]


def main(arguments: list[str]) -> int:
    """Write them into the folder, each into that of its section."""
    for page in pages():
        folder = Path(arguments[0]) / f"man{page.section}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / page.file_name).write_text(page.text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
