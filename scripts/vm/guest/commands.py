"""Runs `infiniswap` where every import takes seconds: imports once, and forks for each command.

commands.py ORDERS: reads numbers of processes from the FIFO ORDERS, one a line. Each is one of guest/infiniswap, in
whose place a child runs the command: with its words (ORDERS.NUMBER.words, with a zero byte behind each), environment,
folder, control group, and standard input, output and errors. The exit code goes to the FIFO ORDERS.NUMBER.
"""

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path

import infiniswap.cli
import infiniswap.device
import infiniswap.kernel_shim
from infiniswap.cli.main import run
from infiniswap.shared.output import hold_standard_streams

PACKAGES = (infiniswap.cli, infiniswap.device, infiniswap.kernel_shim)


def import_all() -> None:
    """All that a command may need."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def become(number: int) -> None:
    """Take the place of that process."""
    caller = Path(f"/proc/{number}")
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_APPEND), (2, os.O_WRONLY | os.O_APPEND)):
        file = os.open(caller / f"fd/{descriptor}", flags)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (it lives as long as this process)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(os.readlink(caller / "cwd"))  # noqa: PTH115  (a link of /proc, which is not to be resolved further)
    os.environ.clear()
    for setting in (caller / "environ").read_bytes().split(b"\0"):
        name, _, value = setting.partition(b"=")
        if name:
            os.environb[name] = value
    group = (caller / "cgroup").read_text().strip().rpartition("::")[2]
    Path(f"/sys/fs/cgroup{group}/cgroup.procs").write_text(str(os.getpid()))


def serve(orders: Path, number: int) -> int:
    """In a child: run the command in a child of its own, and hand its exit code to who waits for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words = Path(f"{orders}.{number}.words").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    command = os.fork()
    if command == 0:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background jobs ignore
        become(number)
        hold_standard_streams()
        return run(words)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(OSError):  # nobody waits any more
        answer = os.open(f"{orders}.{number}", os.O_WRONLY | os.O_NONBLOCK)
        os.write(answer, b"%d\n" % (code if code >= 0 else 128 - code))
    return 0


def main() -> int:
    """Import, then obey for ever."""
    orders = Path(sys.argv[1])
    import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children go by themselves
    with open(os.open(orders, os.O_RDWR)) as lines:  # noqa: PTH123  (for writing too: so its end never comes)
        for line in lines:
            if os.fork() == 0:
                code = serve(orders, int(line))
                sys.stdout.flush()
                os._exit(code)
    return 1


if __name__ == "__main__":
    sys.exit(main())
