"""The VM harness understands its scenarios, never asks for hardware virtualization, and reports every kind of end."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import pytest
from harness import machine
from harness import main as main_module
from harness.errors import HarnessError
from harness.kernel import Kernel
from harness.machine import Machine, Plan, command_line
from harness.main import main
from harness.scenario import Disk, Scenario, find, parse
from harness.tsc import tsc_khz


def test_header() -> None:
    """Values, disks with throttling and packages come from the first lines; the rest of the file does not count."""
    text = (
        "#!/bin/bash\n# vm: machines=2 memory=512 cores=2\n# vm: disk=1G disk=64M,iops=100,bps_write=1M deadline=90\n"
        "# needs: redis-server jq:jq-bin\n" + "echo\n" * 30 + "# vm: memory=4096\n"
    )
    scenario = parse(Path("/x/name.sh"), text)
    assert scenario == Scenario(
        path=Path("/x/name.sh"),
        machines=2,
        cores=2,
        memory_mib=512,
        deadline_s=90,
        disks=(Disk(1 << 30), Disk(64 << 20, (("iops-total", 100), ("bps-write", 1 << 20)))),
        packages=(("redis-server", "redis-server"), ("jq", "jq-bin")),
    )
    assert scenario.name == "name"


@pytest.mark.parametrize(
    "line",
    ["memory=9", "memory=512M", "machines=3", "deadline=0", "colour=red", "disk=big", "disk=1G,speed=3", "cores=two"],
)
def test_bad_header(line: str) -> None:
    """What is not understood is an error of the scenario, not a default."""
    with pytest.raises(HarnessError) as caught:
        parse(Path("x.sh"), f"# vm: {line}\n")
    assert caught.value.code == 2


def test_find(tmp_path: Path) -> None:
    """By name from the folder, by path from anywhere; an unknown name lists those that exist."""
    (tmp_path / "one.sh").write_text("# vm: memory=300\n")
    assert find("one", tmp_path).memory_mib == 300
    assert find(str(tmp_path / "one.sh"), Path("/nowhere")).name == "one"
    with pytest.raises(HarnessError, match="there are one"):
        find("two", tmp_path)
    with pytest.raises(HarnessError, match="cannot read"):
        find(str(tmp_path / "three.sh"), tmp_path)


def plan(tmp_path: Path, machines: int = 1) -> Plan:
    """A plan that names no real kernel."""
    scenario = Scenario(tmp_path / "s.sh", machines=machines, disks=(Disk(1 << 20, (("iops-total", 5),)),))
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "kernel", "6.12")
    return Plan(scenario, kernel, tmp_path / "initrd", tmp_path / "checkout", tmp_path, (5001, 5002))


def test_the_counter_s_speed() -> None:
    """Measured twice it is the same, as near as the guest's kernel needs it to measure on from there (1 %)."""
    first, second = tsc_khz(), tsc_khz()
    if platform.machine() == "x86_64":
        assert first is not None
        assert second is not None
        assert first > 100_000
        assert abs(first - second) < first / 200


@pytest.mark.parametrize("machines", [1, 2])
def test_command_line(tmp_path: Path, machines: int) -> None:
    """Emulation only, the host's root read-only, no network but UDP on loopback between two machines."""
    line = command_line(plan(tmp_path, machines), 1)
    text = " ".join(line)
    assert line[line.index("-accel") + 1] == "tcg,thread=multi"
    assert "kvm" not in text
    assert line.count("-accel") == 1
    assert "path=/,security_model=none,readonly=on" in text
    assert "throttling.iops-total=5" in text
    networks = [line[i + 1] for i, word in enumerate(line) if word == "-netdev"]
    if machines == 1:
        assert networks == []
    else:
        (network,) = networks
        assert network.count("127.0.0.1") == 2
        assert "local.port=5001" in network
        assert "remote.port=5002" in network


def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> Machine:
    """A machine whose QEMU is a shell script; it finds the exit code's file in $CODE."""
    monkeypatch.setenv("CODE", str(tmp_path / "code1"))
    monkeypatch.setattr(machine, "command_line", lambda *_: ["/bin/sh", "-c", shell])
    return Machine(plan(tmp_path), 1)


def lines_of(vm: Machine, timeout_s: float = 10) -> list[str]:
    """Everything it says."""
    lines: list[str] = []
    limit = time.monotonic() + timeout_s
    while not vm.closed:
        assert time.monotonic() < limit
        vm.read(lines.append)
        time.sleep(0.01)
    return lines


def test_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code comes through its own file: what the scenario prints cannot be taken for it."""
    vm = fake_machine(tmp_path, monkeypatch, 'printf "exit 0\\r\\n0\\nlast"; echo 7 > "$CODE"')
    assert lines_of(vm) == ["exit 0", "0", "last"]
    assert vm.exit_code() == 7
    vm.end()


@pytest.mark.parametrize("shell", ["exit 0", 'echo nonsense > "$CODE"'])
def test_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    """A machine that ends without its word (a panic) is not a success."""
    vm = fake_machine(tmp_path, monkeypatch, shell)
    lines_of(vm)
    assert vm.exit_code() is None
    vm.end()


@pytest.mark.parametrize(
    ("line", "panicked"),
    [
        ("[   76.18] Kernel panic - not syncing: Fatal exception in interrupt", True),
        ("a program says: [   76.18] Kernel panic - not syncing", False),
        ("[   76.18] Oops: double fault", False),
    ],
)
def test_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, panicked: bool) -> None:
    """The kernel's own last words are known from what a program prints, whatever exit code the scenario left."""
    vm = fake_machine(tmp_path, monkeypatch, f'echo "{line}"; echo 0 > "$CODE"')
    lines_of(vm)
    assert vm.panicked is panicked
    vm.end()


def test_panic_of_the_partner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second machine whose kernel panics ends the run at once, with the code of a machine that said nothing."""
    shells = {1: "exec sleep 60", 2: 'echo init: begins; echo "[    1.00] Kernel panic - not syncing: x"'}
    monkeypatch.setattr(machine, "command_line", lambda _plan, number: ["/bin/sh", "-c", shells[number]])
    made = plan(tmp_path, 2)
    begun_s = time.monotonic()
    assert main_module.run(made.scenario, made.kernel, made.initrd, None, 50) == main_module.NO_CODE
    assert time.monotonic() - begun_s < 30
    assert "the kernel of machine 2 panicked" in capsys.readouterr().out


@pytest.mark.parametrize("panics", [1, main_module.BOOTS_MAX])
def test_panic_of_a_kernel_that_is_not_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], panics: int
) -> None:
    """Before its first program runs it is the emulator's doing: the machine is started again, a few times."""
    panic = f'echo x >> {tmp_path}/boots; echo "[    4.13] Kernel panic - not syncing: x"'
    right = f'echo init: begins; echo 0 > "{tmp_path}/code1"'
    shell = f'if [ "$(cat {tmp_path}/boots 2> /dev/null | wc -l)" -lt {panics} ]; then {panic}; else {right}; fi'
    monkeypatch.setattr(
        machine,
        "command_line",
        lambda plan, _: ["/bin/sh", "-c", shell.replace(str(tmp_path) + "/code1", str(plan.folder / "code1"))],
    )
    made = plan(tmp_path)
    code = main_module.run(made.scenario, made.kernel, made.initrd, None, 50)
    assert code == (0 if panics < main_module.BOOTS_MAX else main_module.NO_CODE)
    assert capsys.readouterr().out.count("it is started again") == min(panics, main_module.BOOTS_MAX - 1)


def test_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that ignores SIGTERM is ended all the same, and its process is gone."""
    monkeypatch.setattr(machine, "_END_GRACE_S", 0.3)
    vm = fake_machine(tmp_path, monkeypatch, "trap '' TERM; echo $$; exec sleep 60")
    lines: list[str] = []
    limit = time.monotonic() + 10
    while not lines and time.monotonic() < limit:
        vm.read(lines.append)
    vm.end()
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]), 0)


def test_a_machine_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any processor time for so long it is ended, as the emulator's doing; one that computes is not."""
    monkeypatch.setattr(machine, "STANDSTILL_S", 1.5)
    monkeypatch.setattr(machine, "STANDSTILL_PROCESSOR_S", 0.0)  # one tick of the clock is enough on a busy host
    computes = "while :; do :; done"
    monkeypatch.setattr(machine, "command_line", lambda *_: ["/bin/sh", "-c", computes])
    made = plan(tmp_path)
    assert main_module.run(made.scenario, made.kernel, made.initrd, None, 2.5) == main_module.DEADLINE_CODE
    monkeypatch.setattr(machine, "command_line", lambda *_: ["/bin/sh", "-c", "exec sleep 60"])
    assert main_module.run(made.scenario, made.kernel, made.initrd, None, 50) == main_module.NO_CODE
    assert "machine 1 stood still" in capsys.readouterr().out


def test_as_many_runs_as_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run takes whichever slot is free; with none free it says that it waits, and gives up at its limit."""
    paths = [tmp_path / "slot0", tmp_path / "slot1"]
    monkeypatch.setattr(main_module, "LOCK_TIMEOUT_S", 0.2)
    with main_module.held(paths), main_module.held(paths):
        with pytest.raises(HarnessError, match="other runs have held"):
            with main_module.held(paths):
                pass
        assert capsys.readouterr().out == "waiting for another run to end\n"
    with main_module.held(paths):
        pass
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert len(main_module.slots(tmp_path)) == main_module.SLOTS_MAX


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """No scenario, or an unknown one: one line and exit code 2."""
    assert main([]) == 2
    assert main(["no-such-scenario"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert main(["--list"]) == 0
    assert "attach" in capsys.readouterr().out.split()


def test_what_any_scenario_needs_is_there_before_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run installs nothing under a machine that has the host's root, and looks into its packages."""
    asked_for: list[tuple[str, str]] = []

    def install(wanted: list[tuple[str, str]]) -> None:
        asked_for.extend(wanted)
        raise HarnessError("no more than that", 77)

    monkeypatch.setenv("INFINISWAP_VM_CACHE", str(tmp_path))
    monkeypatch.setattr(main_module, "install", install)
    assert main(["package"]) == 77
    assert {("redis-server", "redis-server"), ("dbus-daemon", "dbus")} <= set(asked_for)
