"""The infiniswap command: finds the verb, turns user errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import click

from infiniswap import __version__
from infiniswap.shared.output import hold_standard_streams
from infiniswap.shared.program import HelpWantedError, ReaderGoneError, run_program
from infiniswap.shared.suggest import did_you_mean


def completion_wanted() -> bool:
    """Whether a shell started this process to complete a word."""
    return "_INFINISWAP_COMPLETE" in os.environ


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are asked for, so that each command loads only what it needs."""

    def __init__(self, name: str, modules: Mapping[str, str], help_text: str, epilog: str | None = None) -> None:
        """modules: verb -> module of infiniswap.cli, whose attribute command it is."""
        super().__init__(name, help=help_text, epilog=epilog, context_settings={"help_option_names": ["-h", "--help"]})
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which --help lists them."""
        del ctx
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None where there is no such verb."""
        del ctx
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(f"infiniswap.cli.{module}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"infiniswap.cli.{module}.command is no click command")
        if completion_wanted():
            from infiniswap.cli.completion import furnish

            furnish(command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; without any argument 8.1 would print the help as if that had been asked for."""
        if not args and not ctx.resilient_parsing:
            raise HelpWantedError(ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that args begin with; a usage error that says which one may have been meant."""
        word = args[0]
        if word.startswith("-") or self.get_command(ctx, word) is not None:
            return super().resolve_command(ctx, args)
        hint = (
            did_you_mean(word, self._modules) or self._elsewhere(ctx, word) or f"; there are {', '.join(self._modules)}"
        )
        raise click.UsageError(f"no command '{word}' in '{ctx.command_path}'{hint}", ctx)

    def _elsewhere(self, ctx: click.Context, word: str) -> str:
        """Which other group has that verb, as the end of a sentence."""
        root = ctx.find_root()
        if not isinstance(root.command, LazyGroup):
            return ""
        whole = [f"'{root.command_path} {word}'"] if word in root.command.list_commands(root) else []
        for name in root.command.list_commands(root):
            group = root.command.get_command(root, name)
            if isinstance(group, LazyGroup) and word in group.list_commands(root):
                whole.append(f"'{root.command_path} {name} {word}'")
        return f"; did you mean {' or '.join(whole)}?" if whole else ""

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb. click would answer a broken pipe with exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGoneError from None


def make_cli() -> click.Group:
    """The whole command line."""
    cli = LazyGroup(
        "infiniswap",
        {
            "device": "device",
            "status": "status",
            "top": "top.command",
            "wait": "wait",
            "slabs": "slabs",
            "peers": "peers",
            "peer": "peer",
            "stats": "stats",
            "bench": "bench",
            "log-level": "log_level",
            "donor": "donor",
            "cluster": "cluster",
            "demo": "demo.command",
            "simulate": "simulate",
            "config": "config",
            "set": "set",
            "reload": "reload",
            "doctor": "doctor",
            "rdma": "rdma",
            "systemd": "systemd",
        },
        "Neighbours' free memory as a block device. The memory daemon is a command of its own: infiniswapd --help.",
        'Completion in bash: eval "$(_INFINISWAP_COMPLETE=bash_source infiniswap)"; zsh_source, fish_source likewise.',
    )
    click.version_option(__version__, "-V", "--version", package_name="infiniswap", prog_name="infiniswap")(cli)
    return cli


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_program("infiniswap", make_cli(), arguments)


def main() -> None:
    """Entry point."""
    hold_standard_streams()
    sys.exit(run())


if __name__ == "__main__":
    main()
