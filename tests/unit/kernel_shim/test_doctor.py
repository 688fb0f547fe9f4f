"""Every check of the doctor comes out right on both sides of its threshold, and facts are read from real formats."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infiniswap.cli import doctor as command
from infiniswap.kernel_shim import doctor, doctor_facts, reserve
from infiniswap.kernel_shim.doctor_model import DeviceFacts, HostFacts, Level, PeerFacts
from infiniswap.kernel_shim.protection import IO_FLUSHER_FLAGS
from infiniswap.kernel_shim.sysfs import SwapArea
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.fake_kernel import FakeKernel

GIB = 1 << 30
HOST = HostFacts(
    root=True,
    kernel_release="6.12.0",
    nbd_loaded=True,
    nbds_max=0,
    max_part=0,
    io_uring_disabled=0,
    memory_total_bytes=8 * GIB,
    min_free_bytes=128 << 20,
    zswap={"enabled": "Y", "compressor": "zstd", "max_pool_percent": "20", "shrinker_enabled": "Y"},
)
SWAP = SwapArea("/dev/nbd0", "partition", GIB, 0, 5)
DEVICE = DeviceFacts(
    name="a",
    pid=1,
    size_bytes=GIB,
    mapped_bytes=GIB // 2,
    backup="/var/a.img",
    node="/dev/nbd0",
    swap=SWAP,
    locked_bytes=100 << 20,
    resident_bytes=100 << 20,
    thread_flags=(IO_FLUSHER_FLAGS, IO_FLUSHER_FLAGS | 0x40),
    thread_policies=(os.SCHED_RR, os.SCHED_OTHER),
    oom_score_adj=-1000,
    cgroup="/system.slice/a.service",
    cgroup_swap_max="0",
    backup_devices=("sda1", "sda"),
    state_dir="/run/infiniswap/state/a",
    state_file_system="tmpfs",
    peers=(PeerFacts("p:1", True, GIB // 2), PeerFacts("p:2", False, GIB)),
)


def levels(host: HostFacts = HOST, device: DeviceFacts = DEVICE) -> dict[str, Level]:
    """Level of every check by its name."""
    return {check.name: check.level for check in doctor.examine(host, (device,))}


def test_all_well() -> None:
    """A host and a device as they should be: no check complains, and none names a command."""
    checks = doctor.examine(HOST, (DEVICE,))
    assert {check.level for check in checks} == {Level.OK}
    assert all(check.command is None for check in checks)
    assert doctor.worst(checks) is Level.OK


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({"root": False}, "root", Level.WARNING),
        ({"kernel_release": "5.13.9"}, "kernel", Level.FAILURE),
        ({"nbd_loaded": False}, "nbd module", Level.WARNING),
        ({"nbds_max": 16}, "nbd module", Level.WARNING),
        ({"max_part": 31}, "nbd module", Level.WARNING),
        ({"foreign_nbd": ("/dev/nbd3",)}, "nbd devices", Level.WARNING),
        ({"io_uring_works": False, "io_uring_disabled": 2}, "io_uring", Level.WARNING),
        ({"io_uring_works": False, "io_uring_disabled": None}, "io_uring", Level.WARNING),
        ({"min_free_bytes": 67 << 20}, "min_free_kbytes", Level.WARNING),
        ({"min_free_bytes": None}, "min_free_kbytes", Level.WARNING),
        ({"oom_kill_allocating_task": 1}, "oom killer", Level.WARNING),
        ({"oom_kill_allocating_task": 0}, "oom killer", Level.OK),
        ({"root": False, "memlock_limit_bytes": 8 << 20}, "memlock limit", Level.WARNING),
        ({"huge_pages_total": 1024, "huge_pages_free": 1024}, "huge pages", Level.WARNING),
        ({"huge_pages_total": 1024, "huge_pages_free": 1000}, "huge pages", Level.OK),
    ],
)
def test_host(change: dict[str, Any], check: str, level: Level) -> None:
    """One fact of the host changed: that check, and no other, says so."""
    found = levels(host=dataclasses.replace(HOST, **change))
    assert found[check] is level
    assert {name for name, value in found.items() if value is not Level.OK} <= {check, "root"}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"locked_bytes": 10 << 20}, "memory locked"),
        ({"thread_flags": (IO_FLUSHER_FLAGS, 0x80000)}, "io flusher"),
        ({"oom_score_adj": -999}, "oom_score_adj"),
        ({"nbd_connections": 4, "nbd_dead": 1}, "connections"),
        ({"backup_devices": ("loop0", "nbd0")}, "backup"),
        ({"backup_is_swap": True}, "backup"),
    ],
)
def test_device(change: dict[str, Any], check: str) -> None:
    """A broken rule is a failure under swap."""
    assert levels(device=dataclasses.replace(DEVICE, **change))[check] is Level.FAILURE


@pytest.mark.parametrize("check", ["memory locked", "io flusher", "oom_score_adj"])
def test_device_without_swap(check: str) -> None:
    """The same is a warning as long as no swap is on it, and when a fact could not be read."""
    bad = dataclasses.replace(DEVICE, locked_bytes=0, thread_flags=(0,), oom_score_adj=0)
    assert levels(device=dataclasses.replace(bad, swap=None))[check] is Level.WARNING
    unknown = dataclasses.replace(DEVICE, locked_bytes=None, thread_flags=(), oom_score_adj=None)
    assert levels(device=unknown)[check] is Level.WARNING


@pytest.mark.parametrize("policies", [(), (os.SCHED_OTHER, os.SCHED_OTHER)])
def test_ordinary_threads(policies: tuple[int, ...]) -> None:
    """A service whose threads are ordinary ones is warned of, swap or not: it may stand still, and goes on."""
    device = dataclasses.replace(DEVICE, thread_policies=policies)
    assert levels(device=device)["real time"] is Level.WARNING


@pytest.mark.parametrize(("swap_max", "level"), [("0", Level.OK), ("max", Level.FAILURE), (None, Level.FAILURE)])
def test_cgroup(swap_max: str | None, level: Level) -> None:
    """The cgroup's swap limit counts while memory is not locked."""
    device = dataclasses.replace(DEVICE, locked_bytes=0, cgroup_swap_max=swap_max)
    assert levels(device=device)["cgroup swap"] is level


@pytest.mark.parametrize(
    ("group", "swap_max", "command"),
    [
        ("/system.slice/a.service", "max", "echo 0 > /sys/fs/cgroup/system.slice/a.service/memory.swap.max"),
        ("/", "max", "echo 0 > /sys/fs/cgroup/memory.swap.max"),  # the root of a container, which has the file
        ("/", None, "infiniswap device serve a --lock-memory …"),
        (None, None, "infiniswap device serve a --lock-memory …"),
    ],
)
def test_mend_of_cgroup(group: str | None, swap_max: str | None, command: str) -> None:
    """The file that is to be written exists, under a path that can be typed; else another way is told."""
    device = dataclasses.replace(DEVICE, locked_bytes=0, cgroup=group, cgroup_swap_max=swap_max)
    found = {check.name: check for check in doctor.examine(HOST, (device,))}["cgroup swap"]
    assert found.command == command


def test_mend_of_nbd_module() -> None:
    """A module that devices need is not to be unloaded."""
    idle = dataclasses.replace(HOST, nbds_max=16)
    assert doctor.check_nbd_module(idle).command == "modprobe -r nbd && modprobe nbd nbds_max=0 max_part=0"
    used = doctor.check_nbd_module(dataclasses.replace(idle, nbd_used=("/dev/nbd0", "/dev/nbd3"))).command
    assert used is not None
    assert "modprobe -r" not in used
    assert "/etc/modprobe.d/nbd.conf" in used
    assert "/dev/nbd0, /dev/nbd3 in use" in used


@pytest.mark.parametrize("use", ["connected", "mounted", "swap"])
def test_nbd_in_use(use: str, tmp_path: Path) -> None:
    """Devices that are connected, mounted or swapped to keep the module; an idle node does not."""
    kernel = FakeKernel(tmp_path)
    kernel.add(0, size_bytes=GIB, backend=None)
    kernel.add(1, size_bytes=0, backend=None)
    (tmp_path / "sys/block/nbd1/pid").unlink()
    if use != "connected":
        (tmp_path / "sys/block/nbd0/pid").unlink()
        assert doctor_facts.nbd_used(tmp_path) == ()
    if use == "mounted":
        kernel.mount(0, "/mnt")
    if use == "swap":
        kernel.swap(0, used_bytes=0)
    assert doctor_facts.nbd_used(tmp_path) == ("/dev/nbd0",)


def test_no_mend_has_a_double_slash() -> None:
    """Whatever is found, a path in a command is one that can be typed."""
    worst = dataclasses.replace(DEVICE, locked_bytes=0, thread_flags=(0,), oom_score_adj=0, cgroup="/", peers=(),
                                cgroup_swap_max="max", state_file_system="ext4", nbd_dead=1)  # fmt: skip
    host = dataclasses.replace(HOST, root=False, nbds_max=16, min_free_bytes=0, io_uring_works=False)
    commands = [check.command for check in doctor.examine(host, (worst,)) if check.command]
    assert len(commands) > 6
    assert not [command for command in commands if "//" in command]


def test_a_device_that_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that cannot be asked is a failure with its reason; a socket left behind is none."""
    monkeypatch.setattr(command, "host_facts", lambda: HOST)
    monkeypatch.setattr(command, "device_names", lambda _folder: ["dead", "stuck"])

    def ask(name: str, *_: Any) -> Any:
        raise UserError(f"device '{name}' said", ExitCode.NOT_FOUND if name == "dead" else ExitCode.FAILED)

    monkeypatch.setattr(command, "fetch", ask)
    result = CliRunner().invoke(command.command, ["--runtime-dir", str(tmp_path)], standalone_mode=False)
    assert result.return_value == ExitCode.FAILED
    assert "failure  stuck: service: device 'stuck' said" in result.output
    assert "'dead'" not in result.output


@pytest.mark.parametrize("kind", ["ext4", None])
def test_state_file(kind: str | None) -> None:
    """A page table on a disk, or nobody knows where, is a warning, swap or not."""
    device = dataclasses.replace(DEVICE, state_file_system=kind)
    assert levels(device=device)["state file"] is Level.WARNING


@pytest.mark.parametrize(("plain", "level"), [(True, Level.WARNING), (False, Level.OK), (None, None)])
def test_backup_of_sealed_pages(plain: bool | None, level: Level | None) -> None:
    """In the clear on a disk is a warning that says how to encrypt it; where nobody knows nothing is said."""
    device = dataclasses.replace(DEVICE, backup_is_plain=plain)
    found = {check.name: check for check in doctor.examine(HOST, (device,))}.get("backup disk")
    assert (found.level if found else None) is level
    if found is not None and level is Level.WARNING:
        assert found.found == "/var/a.img goes to sda in the clear"
        assert "cryptsetup open /dev/EMPTY a-backup" in (found.command or "")


@pytest.mark.parametrize(
    ("file", "kind", "level"),
    [("/var/log/a", "ext4", Level.WARNING), ("/run/log", "tmpfs", Level.OK), (None, None, Level.OK)],
)
def test_log(file: str | None, kind: str | None, level: Level) -> None:
    """A log on a disk is a warning: a line of it may wait for those who wait for the service."""
    assert levels(device=dataclasses.replace(DEVICE, log_file=file, log_file_system=kind))["log"] is level


def test_where_a_log_goes(tmp_path: Path) -> None:
    """A file is told by its path; a pipe, and a process that is gone, by none."""
    folder = tmp_path / "proc/7/fd"
    folder.mkdir(parents=True)
    assert doctor_facts.log_file(7, tmp_path) is None
    (tmp_path / "log").touch()
    (folder / "2").symlink_to(tmp_path / "log")
    assert doctor_facts.log_file(7, tmp_path) == tmp_path / "log"
    (folder / "2").unlink()
    os.mkfifo(tmp_path / "pipe")
    (folder / "2").symlink_to(tmp_path / "pipe")
    assert doctor_facts.log_file(7, tmp_path) is None


@pytest.mark.parametrize("peers", [(), (PeerFacts("p:1", False, GIB),), (PeerFacts("p:1", True, GIB // 2 - 1),)])
def test_peers(peers: tuple[PeerFacts, ...]) -> None:
    """No peer, none up, or less room than is still to be mapped."""
    assert levels(device=dataclasses.replace(DEVICE, peers=peers))["peers"] is Level.WARNING


def test_attach_tells_of_a_small_reserve(tmp_path: Path) -> None:
    """A sentence with the command that mends it, where the reserve is smaller than advised; else nothing."""
    assert reserve.complaint(tmp_path) is None
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:         524288 kB\nMemFree: 1 kB\n")
    setting = tmp_path / "proc/sys/vm/min_free_kbytes"
    setting.write_text("2896\n")
    assert "sysctl -w vm.min_free_kbytes=32768" in (reserve.complaint(tmp_path) or "")
    setting.write_text("32768\n")
    assert reserve.complaint(tmp_path) is None


@pytest.mark.parametrize(("total", "advice"), [(GIB, 32 << 20), (8 * GIB, 8 * GIB // 100), (512 * GIB, 256 << 20)])
def test_min_free_advice(total: int, advice: int) -> None:
    """One per cent within limits."""
    assert reserve.min_free_advice_bytes(total) == advice


def test_parse_task() -> None:
    """Flags and policy are found behind a name with blanks and parentheses, and the policy in the kernel's own line."""
    line = "12 (a) b)) S 1 12 12 0 -1 4194560 " + "0 " * 31 + "2 0 0\n"
    assert doctor_facts.parse_task(line) == (4194560, os.SCHED_RR)
    assert doctor_facts.parse_task("") is None
    command = [shutil.which("chrt") or "chrt", "--batch", "0", "cat", "/proc/self/stat"]
    own = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    task = doctor_facts.parse_task(own)
    assert task is not None
    assert task[1] == os.SCHED_BATCH


def test_parse_memlock() -> None:
    """Limits come out in bytes."""
    head = "Limit                     Soft Limit           Hard Limit           Units     \n"
    assert (
        doctor_facts.parse_memlock(head + "Max locked memory         8388608              8388608     bytes\n")
        == 8 << 20
    )
    assert (
        doctor_facts.parse_memlock(head + "Max locked memory         unlimited            unlimited   bytes\n") is None
    )


def test_real_host() -> None:
    """On this machine, whoever runs the tests: facts that every Linux has are found."""
    facts = doctor_facts.host_facts()
    assert facts.root is (os.geteuid() == 0)
    assert facts.memory_total_bytes > 64 << 20
    assert facts.kernel_release == os.uname().release
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert facts.memlock_limit_bytes == (None if soft == resource.RLIM_INFINITY else soft)


def test_sysctl_is_read(tmp_path: Path) -> None:
    """The setting comes from /proc; where it is not there nothing is known, and nothing said."""
    assert doctor_facts.host_facts(tmp_path).oom_kill_allocating_task is None
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/oom_kill_allocating_task").write_text("1\n")
    assert doctor_facts.host_facts(tmp_path).oom_kill_allocating_task == 1


def test_real_threads() -> None:
    """Our own threads are found; none is marked unless the whole process was."""
    assert doctor_facts.threads(os.getpid())
    assert doctor_facts.threads(2**22 + 5) == ()


def test_cgroup_on_the_way_up(tmp_path: Path) -> None:
    """A limit of 0 in any parent counts; without version 2 nothing is known."""
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("1:cpu:/x\n0::/a/b\n")
    folder = tmp_path / "sys/fs/cgroup/a/b"
    folder.mkdir(parents=True)
    (folder / "memory.swap.max").write_text("max\n")
    assert doctor_facts.cgroup_swap_max(7, tmp_path) == ("/a/b", "max")
    (folder / "memory.swap.max").unlink()
    (folder.parent / "memory.swap.max").write_text("max\n")
    assert doctor_facts.cgroup_swap_max(7, tmp_path) == ("/a", "max"), "the group whose file can be written"
    (tmp_path / "proc/7/cgroup").write_text("0::/\n")
    assert doctor_facts.cgroup_swap_max(7, tmp_path) == ("/", None)
    (tmp_path / "sys/fs/cgroup/memory.swap.max").write_text("max\n")
    assert doctor_facts.cgroup_swap_max(7, tmp_path) == ("/", "max"), "the root of a container"
    (tmp_path / "proc/7/cgroup").write_text("1:cpu:/x\n0::/a/b\n")
    (folder.parent / "memory.swap.max").write_text("0\n")
    assert doctor_facts.cgroup_swap_max(7, tmp_path) == ("/a/b", "0")
    assert doctor_facts.cgroup_swap_max(8, tmp_path) == (None, None)


def test_file_system_type(tmp_path: Path) -> None:
    """The type stands in mountinfo behind the dash, however many optional fields there are before it."""
    number = tmp_path.stat().st_dev
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "22 1 250:77 / / rw shared:1 - ext4 /dev/root rw\n"
        f"36 22 {os.major(number)}:{os.minor(number)} / /x rw,noatime master:1 shared:2 - tmpfs none rw\n"
    )
    assert doctor_facts.file_system_type(tmp_path, tmp_path) == "tmpfs"
    assert doctor_facts.file_system_type(tmp_path / "missing", tmp_path) is None
    (tmp_path / "proc/self/mountinfo").write_text("damaged\n")
    assert doctor_facts.file_system_type(tmp_path, tmp_path) is None


def test_device_facts_from_answers(tmp_path: Path) -> None:
    """Facts of a device come from the answers of its control API; what cannot be read is None."""
    status = {
        "name": "a",
        "pid": 9,
        "size_bytes": GIB,
        "slab_bytes": 1 << 20,
        "mapped_slabs": 3,
        "backup": "/x",
        "socket": "/s",
    }
    peers: list[dict[str, Any]] = [
        {"peer": "p:1", "state": "up", "free_bytes": 5},
        {"peer": "p:2", "state": "down", "free_bytes": None},
    ]
    facts = doctor_facts.device_facts(status, peers, tmp_path)
    assert facts.mapped_bytes == 3 << 20
    assert facts.peers == (PeerFacts("p:1", True, 5), PeerFacts("p:2", False, 0))
    assert facts.locked_bytes is None
    assert facts.node is None


def test_only_sealed_pages_want_a_sealed_backup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the disk gets is asked where pages are sealed; a service that does not tell is left alone."""
    monkeypatch.setattr(doctor_facts, "is_plain", lambda *_: True)
    status = {"name": "a", "pid": 9, "size_bytes": GIB, "backup": "/x", "socket": "/s"}
    for told, plain in (({"sealed": True}, True), ({"sealed": False}, None), ({}, None)):
        assert doctor_facts.device_facts({**status, **told}, [], tmp_path).backup_is_plain is plain


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command prints why and how for what is wrong only, JSON on request, and its exit code is the verdict."""
    monkeypatch.setattr(command, "host_facts", lambda: HOST)
    monkeypatch.setattr(command, "gather", lambda *_: ((dataclasses.replace(DEVICE, oom_score_adj=0),), []))
    runner = CliRunner()
    result = runner.invoke(command.command, ["--runtime-dir", str(tmp_path)], standalone_mode=False)
    assert result.return_value == ExitCode.FAILED
    assert "failure  a: oom_score_adj: 0" in result.output
    assert "mend it: echo -1000 > /proc/1/oom_score_adj" in result.output
    assert result.output.count("mend it") == 1
    result = runner.invoke(command.command, ["--json", "--runtime-dir", str(tmp_path)], standalone_mode=False)
    checks = json.loads(result.output)
    assert [check["name"] for check in checks if check["level"] == "failure"] == ["oom_score_adj"]
    monkeypatch.setattr(command, "gather", lambda *_: ((), []))
    result = runner.invoke(command.command, ["--runtime-dir", str(tmp_path)], standalone_mode=False)
    assert result.return_value == ExitCode.OK
