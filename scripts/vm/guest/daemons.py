"""Starts memory daemons where every import takes seconds: imports once and forks.

daemons.py COUNT HOST PORT LOGS OPTION...: daemon i serves HOST:PORT+i and writes to LOGS/daemon<i>.out and .err; prints
their process numbers, and ends when all of them have.
"""

import os
import sys

import infiniswap.daemon.service  # noqa: F401  (imported for the children's sake)
from infiniswap.daemon.main import run


def serve(number: int, host: str, port: int, logs: str, options: list[str]) -> int:
    """What a child does: all that the command does, with its own output."""
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(f"{logs}/daemon{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    # The next daemon has the port that would be this one's for pages.
    return run(["--listen", f"{host}:{port + number}", "--data-listen", f"{host}:0", *options])


def main() -> int:
    """Fork, tell, wait."""
    count, host, port, logs = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    for number in range(1, count + 1):
        child = os.fork()
        if child == 0:
            return serve(number, host, port, logs, sys.argv[5:])
        print(child, flush=True)
    for _ in range(count):
        os.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
