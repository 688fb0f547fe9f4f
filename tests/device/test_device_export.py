"""`infiniswap device export` as a command: what it leaves, and says, when its way to the image ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infiniswap.cli.ending import cleared_up
from infiniswap.shared.errors import ExitCode
from tests.device.support import pattern
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Services

SIZE = 8 << 20


@pytest.fixture
def stopped(services: Services) -> Services:
    """With a device 'vol' that was stopped in order."""
    device = services.device("vol", size="8MiB")
    with device.connect() as client:
        client.write(0, pattern(256))
    assert device.stop() == ExitCode.OK
    return services


def by_shell(services: Services, script: str) -> subprocess.CompletedProcess[str]:
    """Run script, where "$@" is the program."""
    command = ["bash", "-c", script, "bash", *INFINISWAP]
    environment = services.environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_nobody_reads_the_image(stopped: Services) -> None:
    """An image that is not whole is a failure and said: where its reader goes, and where there is no output."""
    done = by_shell(stopped, '"$@" device export vol - | head -c 100 >/dev/null; exit ${PIPESTATUS[0]}')
    assert (done.returncode, done.stderr) == (1, "infiniswap: the image is not whole: who read it has gone\n")
    done = by_shell(stopped, '"$@" device export vol - >&-')
    words = "infiniswap: the image would go nowhere: standard output is closed; redirect it\n"
    assert (done.returncode, done.stderr) == (1, words)
    listed = by_shell(stopped, '"$@" device list --all | true; exit ${PIPESTATUS[0]}')
    assert (listed.returncode, listed.stderr) == (0, ""), "of a list the reader may have seen enough"


# Runs the command, and ends itself in the middle of a copy.
SIGNALLED = """
import os, signal, sys
from infiniswap.cli.main import main
number = int(sys.argv.pop())
def compare(*_):
    os.kill(os.getpid(), number)
    raise SystemExit("it went on")
import infiniswap.device.convert, infiniswap.device.export
infiniswap.device.convert.compare = infiniswap.device.export.compare = compare
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("verb", [("export", "vol", "out"), ("convert", "vol", "--to", "log", "--sparse")])
def test_ended_by_a_signal(stopped: Services, verb: tuple[str, ...], number: signal.Signals) -> None:
    """Nothing of the copy is left, and the exit code says which signal it was."""
    before = sorted(stopped.folder.rglob("*"))
    command = [sys.executable, "-c", SIGNALLED, "device", *verb, str(int(number))]
    done = subprocess.run(
        command, cwd=stopped.folder, env=stopped.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 128 + number, done.stderr
    assert sorted(stopped.folder.rglob("*")) == before


def test_a_signal_that_is_ignored() -> None:
    """Under nohup the end of a terminal ends no export."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleared_up():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_names_that_are_no_text(stopped: Services) -> None:
    """A backup and an image whose names are not UTF-8 are made, told, served and converted as any others."""
    folder, env = os.fsencode(stopped.folder), {**stopped.environment, "PYTHONIOENCODING": "utf-8:strict"}
    content = (stopped.folder / "vol.img").read_bytes()

    def run(*arguments: str | bytes) -> bytes:
        command = [*INFINISWAP, "device", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        return done.stdout

    assert run("export", "vol", folder + b"/\xff.img") == b"vol: its content is in %s/\xff.img\n" % folder
    assert Path(os.fsdecode(folder + b"/\xff.img")).read_bytes() == content
    assert b"/\xff.bk is log now" in run("convert", "vol", "--to", "log", "--sparse", "--backup", folder + b"/\xff.bk")
    again = stopped.spawn("again", [*INFINISWAP, "device", "serve", "vol"])
    again.read_ready(READY_TIMEOUT_S)
    assert b"vol" in run("list")
    assert again.stop() == ExitCode.OK
    assert b"/\xff.bk was closed in order" in run("check", "vol")
    run("export", "vol", "--force", folder + b"/\xff.img")
    assert Path(os.fsdecode(folder + b"/\xff.img")).read_bytes() == content


def test_where_no_file_can_be(stopped: Services) -> None:
    """The line names the image as it was given, and calls it what it is."""
    done = stopped.command("device", "export", "vol", "/proc/image")
    assert (done.returncode, done.stderr) == (
        6,
        "infiniswap: cannot create image /proc/image: No such file or directory\n",
    )
