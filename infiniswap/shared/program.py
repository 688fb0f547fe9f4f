"""How a program ends: what the user can mend is one line on stderr and an exit code, and only a bug is a traceback."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Sequence

import click

from infiniswap.shared.errors import ExitCode, UserError, one_line
from infiniswap.shared.output import STDOUT_FD, drop, say

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

log = logging.getLogger(__name__)


class ReaderGoneError(Exception):
    """Nobody reads the output any more."""


class HelpWantedError(Exception):
    """A group of verbs without a verb: what it needs is its help, on stderr, with the exit code of wrong usage."""

    def __init__(self, context: click.Context) -> None:
        """context: of the group."""
        super().__init__()
        self.context = context


def run_program(name: str, command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run the command line of program name; returns the exit code."""
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
        # Output still in the buffer may find its reader gone only now.
        sys.stdout.flush()
    except HelpWantedError as error:
        say(error.context.get_help())
        return ExitCode.USAGE
    except click.ClickException as error:
        say(f"{name}: {one_line(error.format_message())}")
        return error.exit_code
    except UserError as error:
        say(f"{name}: {error}")
        return error.code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (ReaderGoneError, BrokenPipeError):
        # The reader (head, less) has seen enough.
        drop(STDOUT_FD)
        return ExitCode.OK
    except OSError as error:
        log.debug("what follows came from here", exc_info=error)
        where = error.filename or ("writing the output" if error.errno in FULL else "the system refuses")
        say(f"{name}: {one_line(f'{where}: {error.strerror or error}')}")
        drop(STDOUT_FD)
        return ExitCode.RESOURCES
    return result if isinstance(result, int) else ExitCode.OK
