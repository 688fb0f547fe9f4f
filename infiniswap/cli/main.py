"""The infiniswap command: finds the verb, turns user errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import click

from infiniswap import __version__
from infiniswap.errors import ExitCode, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _ReaderGoneError(Exception):
    """Nobody reads the output any more."""


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
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb. click would answer a broken pipe with exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGoneError from None


def make_cli() -> click.Group:
    """The whole command line."""
    cli = LazyGroup(
        "infiniswap",
        {
            "device": "device",
            "slabs": "slabs",
            "peers": "peers",
            "stats": "stats",
            "demo": "demo",
            "doctor": "doctor",
            "rdma": "rdma",
            "systemd": "systemd",
        },
        "Neighbours' free memory as a block device. The memory daemon is a command of its own: infiniswapd --help.",
        'Completion in bash: eval "$(_INFINISWAP_COMPLETE=bash_source infiniswap)"; zsh_source, fish_source likewise.',
    )
    click.version_option(__version__, "-V", "--version", package_name="infiniswap", prog_name="infiniswap")(cli)
    return cli


def _say(message: str) -> None:
    click.echo(f"infiniswap: {message}", err=True)


def _drop_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not stumble over it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Only a bug makes a traceback."""
    try:
        result = make_cli().main(args=arguments, prog_name="infiniswap", standalone_mode=False)
        # Output still in the buffer may find its reader gone only now.
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return ExitCode.USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        _say(str(error))
        return error.code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (_ReaderGoneError, BrokenPipeError):
        # The reader (head, less) has seen enough.
        _drop_output()
        return ExitCode.OK
    except OSError as error:
        if error.errno not in FULL:
            raise
        _say(f"{error.filename or 'writing the output'}: {error.strerror}")
        _drop_output()
        return ExitCode.RESOURCES
    return result if isinstance(result, int) else ExitCode.OK


def main() -> None:
    """Entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
