"""What the commands of all benchmarks share: how they end, progress, and names chosen in an option."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

from infiniswap.shared.errors import UserError


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Around a command: an error is one line and an exit code, and SIGTERM ends it in order, with all it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(int(error.code))
    except KeyboardInterrupt:
        sys.exit(130)


def say(line: str) -> None:
    """A line of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def chosen(text: str | None, known: Sequence[str], usual: Sequence[str], what: str) -> list[str]:
    """Names in a comma-separated option, in the order of known; UserError when one is unknown."""
    if text is None:
        return list(usual)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"no {what} '{', '.join(unknown)}': there are {', '.join(known)}")
    return [name for name in known if name in names]
