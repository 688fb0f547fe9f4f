"""One description an option: flag, key in a TOML file, --help, check and example file follow from it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from infiniswap.shared.errors import UserError
from infiniswap.shared.sizes import exact_size, format_size
from infiniswap.shared.suggest import did_you_mean

EXAMPLE_WIDTH = 110

PATHS = ("FILE", "PATH", "DIR")  # metavars of what a shell completes by looking into folders

Command = TypeVar("Command", bound=Callable[..., Any])


DEPENDS: Any = object()  # the default depends on something else, or there is none


def _complete_path(_ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For a value that stays text, as click does it for its own paths."""
    return [CompletionItem(incomplete, type="dir" if parameter.metavar == "DIR" else "file")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """name: its key in a file and, with hyphens, its flag. field: what it becomes in the configuration.

    convert: from what the user wrote, with the words by which an error names the option; UserError. default: the
    field's value when nobody says anything. shown: what --help says of it, where the value itself does not.
    example: as the option stands in a file, where the default cannot stand there.
    """

    name: str
    field: str
    convert: Callable[[str, object], Any]
    help: str
    metavar: str | None = None
    default: Any = DEPENDS
    shown: str | None = None
    example: str | None = None
    choices: tuple[str, ...] = ()
    is_size: bool = False
    flags: tuple[str, ...] = ()  # of a name that is not made as the others are
    aliases: tuple[str, ...] = ()  # keys that a file may have instead
    many: bool = False
    switch: bool = False  # it takes no value
    needed: bool = False
    live: bool = False  # it can be changed while the program runs
    once: bool = False  # it is meant for one start, and never remembered for the next one

    @property
    def flag(self) -> str:
        """As errors name it."""
        return self.flags[0].partition("/")[0] if self.flags else "--" + self.name.replace("_", "-")

    @property
    def help_text(self) -> str:
        """What --help says."""
        default = self.default_text
        return self.help if default is None else f"{self.help} [default: {default}]"

    @property
    def default_text(self) -> str | None:
        """The default, for people."""
        if self.shown is not None or self.default in (None, DEPENDS) or self.switch or self.many:
            return self.shown
        if self.is_size:
            return format_size(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def on(self, command: Command) -> Command:
        """Add it to a command, as a parameter of its name; its value stays text, for convert() to check."""
        extra: dict[str, Any] = {}
        if self.switch:
            extra = {"default": None, "is_flag": True}
        elif self.many:
            extra = {"multiple": True, "metavar": self.metavar}
        elif self.choices:
            extra = {"type": click.Choice(self.choices)}
        else:
            extra = {"metavar": self.metavar}
        if self.metavar in PATHS:
            extra["shell_complete"] = _complete_path
        return click.option(*(self.flags or (self.flag,)), self.name, help=self.help_text, **extra)(command)

    def as_written(self, value: Any) -> Any:
        """A value that convert() has made, for JSON and so that it could be written down again; None: as it is not."""
        if self.many:
            return [str(each) for each in value]
        if self.metavar == "SIZE" and isinstance(value, int):
            return exact_size(value)
        return value if value is None or isinstance(value, bool | int | float) else str(value)

    def in_file(self) -> str:
        """Lines for the example file: what it is, and the option, commented out where it may be left out."""
        one_of = f" One of {', '.join(self.choices)}." if self.choices else ""
        live = " Can be changed at run time." if self.live else ""
        words = self.help_text.replace(self.help, self.help + one_of + live)
        text = textwrap.wrap(words, EXAMPLE_WIDTH, initial_indent="# ", subsequent_indent="# ")
        line = f"{self.name} = {self._literal()}"
        return "\n".join([*text, line if self.needed else f"#{line}"])

    def _literal(self) -> str:
        if self.example is not None:
            return self.example
        if self.switch:
            return str(self.default).lower()
        if self.is_size:
            return f'"{format_size(self.default)}"'
        return f"{self.default:g}" if isinstance(self.default, int | float) else f'"{self.default}"'


class Options:
    """The options of one program, in the order of --help."""

    def __init__(self, options: Iterable[Option]) -> None:
        """Each with a name of its own."""
        self._options = {option.name: option for option in options}
        self._aliases = {alias: option.name for option in self for alias in option.aliases}

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._options)

    def find(self, key: str, where: str = "") -> Option:
        """The option that a file or a caller calls key, with _ or -. UserError, which begins with where."""
        name = key.replace("-", "_")
        option = self._options.get(self._aliases.get(name, name))
        if option is None:
            hint = did_you_mean(name, self.names)
            raise UserError(f"{where}unknown option '{key}'{hint or ';'} known are {', '.join(self.names)}")
        return option

    def on(self, names: Collection[str]) -> Callable[[Command], Command]:
        """A decorator that adds those of these names to a command."""

        def add(command: Command) -> Command:
            for option in reversed([option for option in self if option.name in names]):
                command = option.on(command)
            return command

        return add

    def defaults(self) -> dict[str, Any]:
        """Fields of the configuration that have a value when nobody says anything."""
        return {option.field: option.default for option in self if option.default is not DEPENDS}

    def example(
        self, title: str, more: Mapping[str, str] | None = None, sections: Mapping[str, Options] | None = None
    ) -> str:
        """A whole file with every option; more: lines before them; sections: tables behind them."""
        head = [f"# {title}", *(f"{key} = {value}" for key, value in (more or {}).items())]
        parts = ["\n".join(head), *(option.in_file() for option in self)]
        for name, options in (sections or {}).items():
            parts += [f"[{name}]", *(option.in_file() for option in options)]
        return "\n\n".join(parts) + "\n"
