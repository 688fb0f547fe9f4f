"""Starts memory daemons where every import takes seconds: imports once and forks.

daemons.py COUNT HOST PORT LOGS OPTION...: daemon i serves HOST:PORT+i and writes to LOGS/daemon<i>.out and .err; prints
their process numbers, and ends when all of them have. In an option @ is the daemon's number. One that is killed by
SIGKILL is started again at once, as a supervisor would, where an option is --keep-memory.
"""

import os
import signal
import sys

import infiniswap.daemon.service  # noqa: F401  (imported for the children's sake)
from infiniswap.daemon.main import run


def serve(number: int, host: str, port: int, logs: str, options: list[str]) -> int:
    """What a child does: all that the command does, with its own output."""
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(f"{logs}/daemon{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    own = [option.replace("@", str(number)) for option in options]
    # The next daemon has the port that would be this one's for pages.
    return run(["--listen", f"{host}:{port + number}", "--data-listen", f"{host}:0", *own])


def main() -> int:
    """Fork, tell, wait."""
    count, host, port, logs, options = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    numbers: dict[int, int] = {}
    starting = list(range(1, count + 1))
    while starting or numbers:
        for number in starting:
            child = os.fork()
            if child == 0:
                return serve(number, host, port, logs, options)
            numbers[child] = number
            print(child, flush=True)
        child, status = os.wait()
        number = numbers.pop(child)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        starting = [number] if killed and "--keep-memory" in options else []
    return 0


if __name__ == "__main__":
    sys.exit(main())
