"""How scripts/bench takes turns, starts and ends programs, and what it says to wrong options."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infiniswap.shared.errors import UserError
from scripts.benchmark import machine
from scripts.benchmark.__main__ import main
from scripts.benchmark.contenders import Contender, Disk, Floor, Nbdkit, QemuNbd, Setting
from scripts.benchmark.kinds import memory_needed_bytes
from scripts.benchmark.measure import turns
from scripts.benchmark.processes import Programs
from scripts.benchmark.swap.cgroup import Cgroup
from scripts.benchmark.swap.jobs import Touch
from scripts.benchmark.terms import chosen
from scripts.benchmark.workload import WORKLOADS


def contenders(folder: Path) -> list[Contender]:
    """Three that are not started."""
    setting = Setting(Programs(folder, {}), folder, folder, 1 << 30, 1 << 24, 1 << 26)
    return [Nbdkit(setting), Floor(setting), Disk(setting)]


def test_each_round_begins_with_another(tmp_path: Path) -> None:
    """In as many rounds as there are contenders each is first once, and all are there in each."""
    some = contenders(tmp_path)
    orders = [turns(some, number) for number in range(3)]
    assert {order[0].name for order in orders} == {"nbdkit", "floor", "disk"}
    assert all(set(order) == set(some) for order in orders)
    assert turns([], 1) == []


def test_the_disk_is_only_written(tmp_path: Path) -> None:
    """The disk takes the write workloads alone, the others take all."""
    nbdkit, _, disk = contenders(tmp_path)
    assert [w.name for w in WORKLOADS if disk.takes(w)] == [w.name for w in WORKLOADS if w.writes]
    assert all(nbdkit.takes(w) for w in WORKLOADS)


def test_memory_needed_grows_with_those_that_hold_data(tmp_path: Path) -> None:
    """Files need none of it."""
    setting = Setting(Programs(tmp_path, {}), tmp_path, tmp_path, 1 << 30, 1 << 24, 1 << 26)
    files = memory_needed_bytes([Disk(setting), QemuNbd(setting)], 1 << 30)
    assert files < 1 << 30 < memory_needed_bytes([Nbdkit(setting)], 1 << 30)


def test_chosen() -> None:
    """The order is the known one; what is unknown is named."""
    assert chosen(None, ["a", "b"], ["a"], "thing") == ["a"]
    assert chosen("b, a", ["a", "b", "c"], [], "thing") == ["a", "b"]
    with pytest.raises(UserError, match=r"no thing 'x'.*a, b"):
        chosen("a,x", ["a", "b"], [], "thing")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "nothing"], "no contender 'nothing'"),
        (["--workloads", "swim"], "no workload 'swim'"),
        (["--size", "100MiB"], "multiple of 16MiB"),
        (["--size", "12 apples"], "not a size"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--directory", "/nowhere"], "does not exist"),
        (["--only", "disk", "--size", "1024TiB"], "choose a smaller --size"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    """Nothing is started, nothing is written, and the line says what is wrong."""
    if "--directory" not in options:
        options = [*options, "--directory", str(tmp_path)]
    result = CliRunner().invoke(main, [*options, "--output", str(tmp_path / "out")])
    assert result.exit_code in (2, 5, 6)
    assert said in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_memory_and_disk_must_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for more than there is, or for a disk that is memory, the answer says what to change."""
    with pytest.raises(UserError, match="--only"):
        machine.need_memory(1 << 60)
    machine.need_memory(1)
    with pytest.raises(UserError, match="--directory"):
        machine.need_disk(tmp_path, 1 << 60)
    monkeypatch.setattr(machine, "file_system", lambda *_: "tmpfs")
    with pytest.raises(UserError, match="is in memory"):
        machine.need_disk(tmp_path, 1)


def python(code: str) -> list[str]:
    """A program."""
    return [sys.executable, "-c", code]


def test_programs_are_ended_with_the_context(tmp_path: Path) -> None:
    """What said that it is ready is gone afterwards, the last started first."""
    with Programs(tmp_path, {"GREETING": "hello"}) as programs:
        code = "import os, time; print('ready', os.environ['GREETING'], flush=True); time.sleep(60)"
        program = programs.start("sleeper", python(code))
        assert programs.ready_line(program) == "hello"
        assert program.process.poll() is None
    assert program.process.poll() is not None


def test_a_signal_in_the_middle_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts when the program is known to who ends it: nothing is left in a control group, nor as an orphan."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    class Group(Cgroup):
        def __init__(self) -> None: ...

        def command(self, command: list[str]) -> list[str]:
            return ["sleep", "60"]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with Programs(tmp_path, {}) as programs:
            job = Touch(programs, tmp_path, 1 << 20)
            with pytest.raises(SystemExit):
                job.start(Group())
            job.stop()
            assert started[0].returncode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_program_that_does_not_get_ready_shows_its_log(tmp_path: Path) -> None:
    """The error names the program and says why it ended; so does one that says something else or is not there."""
    with Programs(tmp_path, {}) as programs:
        program = programs.start("liar", python("import sys; sys.exit('no memory left')"))
        with pytest.raises(UserError, match=r"liar has said nothing(.|\n)*no memory left"):
            programs.ready_line(program)
        other = programs.start("other", python("print('hello')"))
        with pytest.raises(UserError, match="other said 'hello'"):
            programs.ready_line(other)
        with pytest.raises(UserError, match="cannot be started"):
            programs.start("none", [str(tmp_path / "none")])


def test_waiting_ends_with_the_program_or_the_time(tmp_path: Path) -> None:
    """Nobody waits for a condition of a program that has ended, nor for ever."""
    with Programs(tmp_path, {}) as programs:
        short = programs.start("short", python("pass"))
        with pytest.raises(UserError, match="short ended with exit code 0"):
            programs.wait_until(lambda: False, short, "never", timeout_s=60)
        long = programs.start("long", python("import time; time.sleep(60)"))
        with pytest.raises(UserError, match="long has not done it"):
            programs.wait_until(lambda: False, long, "has not done it", timeout_s=0.01)
        programs.wait_until(lambda: True, long, "", timeout_s=1)
