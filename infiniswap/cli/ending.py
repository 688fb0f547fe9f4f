"""Signals that end a command while something of it lies on a disk that is of no use to anybody yet."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_BY_SIGNAL = 128  # added to its number, as shells have it


class _EndedError(BaseException):
    """No OSError or UserError: nothing on the way takes it for its own."""


@contextmanager
def cleared_up() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is within as SIGINT does, so that what it made on its way goes with it.

    The first one does; more change nothing. One that is ignored (nohup) stays so.
    """

    def end(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise _EndedError(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, end)
        yield
    except _EndedError as ended:
        raise click.exceptions.Exit(_BY_SIGNAL + int(ended.args[0])) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
