"""`infiniswap doctor`: what on this host or in a service endangers swap, from a snapshot of facts; pure.

The facts are gathered by doctor_facts.py. A rule whose breach can deadlock a machine that swaps is a failure when the
device is in use as swap, and a warning as long as it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infiniswap.kernel_shim.doctor_model import Check, DeviceFacts, HostFacts, Level
from infiniswap.kernel_shim.doctor_rdma import check_transport, examine_rdma
from infiniswap.kernel_shim.doctor_zswap import check_idle_zswap, check_order, check_zswap
from infiniswap.kernel_shim.kernel_nbd import KERNEL_MIN, kernel_version
from infiniswap.kernel_shim.protection import IO_FLUSHER_FLAGS, OOM_SCORE_ADJ_MIN
from infiniswap.kernel_shim.real_time import REAL_TIME_POLICIES
from infiniswap.kernel_shim.reserve import min_free_advice_bytes
from infiniswap.shared.file_systems import MEMORY_FILE_SYSTEMS
from infiniswap.shared.sizes import format_size

_IO_URING_FOR_ALL, _IO_URING_FOR_NOBODY = 0, 2


def _host(name: str, level: Level, found: str, why: str, command: str | None = None) -> Check:
    return Check(name, level, found, why, None if level is Level.OK else command)


def check_root(facts: HostFacts) -> Check:
    """Root, for attaching."""
    why = "attach, swapon and locking memory need root"
    if facts.root:
        return _host("root", Level.OK, "running as root", why)
    return _host("root", Level.WARNING, "not root; some facts could not be read", why, "sudo infiniswap doctor")


def check_kernel(facts: HostFacts) -> Check:
    """Kernel new enough for the backend identifier."""
    why = "attach marks its kernel device, so that a restarted service finds it again; that needs Linux 5.14"
    level = Level.OK if kernel_version(facts.kernel_release) >= KERNEL_MIN else Level.FAILURE
    return _host("kernel", level, facts.kernel_release, why, "apt-get install linux-image-amd64")


def check_nbd_module(facts: HostFacts) -> Check:
    """Module nbd, and its parameters."""
    why = "udev opens every device node that appears, which races with attaching; partitions are not wanted on swap"
    reload = "modprobe -r nbd && modprobe nbd nbds_max=0 max_part=0"
    if facts.nbd_used:  # it cannot be unloaded, and what is on it must not be taken away for this
        used = ", ".join(facts.nbd_used)
        reload = f"echo options nbd nbds_max=0 max_part=0 > /etc/modprobe.d/nbd.conf # for the next boot: {used} in use"
    if not facts.nbd_loaded:
        command = "modprobe nbd nbds_max=0 max_part=0"
        return _host("nbd module", Level.WARNING, "not loaded (attach loads it)", why, command)
    found = f"nbds_max={facts.nbds_max} max_part={facts.max_part}"
    risky = (facts.nbds_max or 0) > 0 or (facts.max_part or 0) > 0
    return _host("nbd module", Level.WARNING if risky else Level.OK, found, why, reload)


def check_io_uring(facts: HostFacts) -> Check:
    """io_uring for the backup."""
    why = "the backup is written through io_uring; without it threads take over, which costs more processor time"
    if facts.io_uring_works:
        return _host("io_uring", Level.OK, "allowed", why)
    setting = facts.io_uring_disabled
    if setting in (None, _IO_URING_FOR_ALL):
        return _host("io_uring", Level.WARNING, "refused here (a container's seccomp filter, or an old kernel)", why)
    who = "for everyone" if setting == _IO_URING_FOR_NOBODY else "for unprivileged processes"
    command = "sysctl -w kernel.io_uring_disabled=0"
    return _host("io_uring", Level.WARNING, f"switched off {who} (kernel.io_uring_disabled={setting})", why, command)


def check_min_free(facts: HostFacts) -> Check:
    """vm.min_free_kbytes."""
    why = "paging out over a socket takes memory at the very moment when there is none; this is the reserve for it"
    if facts.min_free_bytes is None:
        return _host("min_free_kbytes", Level.WARNING, "cannot be read", why)
    advice = min_free_advice_bytes(facts.memory_total_bytes)
    level = Level.OK if facts.min_free_bytes >= advice else Level.WARNING
    found = f"{format_size(facts.min_free_bytes)}, advised is {format_size(advice)} or more"
    return _host("min_free_kbytes", level, found, why, f"sysctl -w vm.min_free_kbytes={advice >> 10}")


def check_oom_killer(facts: HostFacts) -> Check:
    """vm.oom_kill_allocating_task."""
    why = "the OOM killer is to take a donor's fuses, or what is largest; so it takes whoever asks for memory just then"
    setting = facts.oom_kill_allocating_task
    if not setting:
        return _host("oom killer", Level.OK, "chooses by size and oom_score_adj", why)
    found = f"kills whoever allocates (vm.oom_kill_allocating_task={setting})"
    return _host("oom killer", Level.WARNING, found, why, "sysctl -w vm.oom_kill_allocating_task=0")


def check_memlock(facts: HostFacts) -> Check:
    """RLIMIT_MEMLOCK of whoever asks, who may start a device next."""
    why = "a device that serves swap locks its memory, and starts only if it may; what RDMA reaches is locked as well"
    if facts.memlock_limit_bytes is None or facts.root:
        return _host("memlock limit", Level.OK, "unlimited" if facts.memlock_limit_bytes is None else "root", why)
    found = f"{format_size(facts.memlock_limit_bytes)} for this user"
    return _host("memlock limit", Level.WARNING, found, why, "ulimit -l unlimited")


def check_huge_pages(facts: HostFacts) -> Check:
    """Reserved huge pages that nobody uses."""
    why = "reserved huge pages serve infiniswapd --huge-pages; reserved and unused they are lost to everything else"
    reserved = facts.huge_pages_total * facts.huge_page_bytes
    if not facts.huge_pages_total:
        return _host("huge pages", Level.OK, "none reserved", why)
    found = f"{facts.huge_pages_total} reserved ({format_size(reserved)}), {facts.huge_pages_free} free"
    wasted = facts.huge_pages_free == facts.huge_pages_total and reserved * 10 > facts.memory_total_bytes
    return _host("huge pages", Level.WARNING if wasted else Level.OK, found, why, "sysctl -w vm.nr_hugepages=0")


def check_foreign_nbd(facts: HostFacts) -> Check:
    """Kernel devices that attach did not make."""
    why = "a device service that starts again cannot find a kernel device that nbd-client made: its requests fail then"
    if not facts.foreign_nbd:
        return _host("nbd devices", Level.OK, "none attached by others", why)
    nodes = ", ".join(facts.foreign_nbd)
    return _host("nbd devices", Level.WARNING, f"{nodes} attached by others", why, "infiniswap device attach NAME")


HOST_CHECKS: tuple[Callable[[HostFacts], Check], ...] = (
    check_root,
    check_kernel,
    check_nbd_module,
    check_foreign_nbd,
    check_io_uring,
    check_min_free,
    check_oom_killer,
    check_memlock,
    check_huge_pages,
)


def _device(facts: DeviceFacts, name: str, good: bool | None, found: str, why: str, command: str | None) -> Check:
    """A check whose breach is a failure under swap; good None: could not be read."""
    if good:
        return Check(name, Level.OK, found, why, None, facts.name)
    level = Level.FAILURE if good is False and facts.swap is not None else Level.WARNING
    return Check(name, level, found, why, command, facts.name)


def check_locked(facts: DeviceFacts) -> Check:
    """Memory of the service locked."""
    why = "a service whose own pages are swapped out to itself stands still for ever"
    command = f"infiniswap device serve {facts.whole} --lock-memory …"
    if facts.locked_bytes is None or facts.resident_bytes is None:
        return _device(facts, "memory locked", None, f"/proc/{facts.pid} cannot be read", why, "sudo infiniswap doctor")
    good = facts.locked_bytes * 10 >= facts.resident_bytes * 9  # pages shared with the kernel are never locked
    found = f"{format_size(facts.locked_bytes)} locked, {format_size(facts.resident_bytes)} resident"
    return _device(facts, "memory locked", good, found, why, command)


def check_io_flusher(facts: DeviceFacts) -> Check:
    """PR_SET_IO_FLUSHER in every thread."""
    why = "a thread that page-outs wait for must not wait for page-outs when it allocates memory in the kernel"
    if not facts.thread_flags:
        found = f"/proc/{facts.pid}/task cannot be read"
        return _device(facts, "io flusher", None, found, why, "sudo infiniswap doctor")
    marked = sum(flags & IO_FLUSHER_FLAGS == IO_FLUSHER_FLAGS for flags in facts.thread_flags)
    found = f"{marked} of {len(facts.thread_flags)} threads are marked"
    command = f"sudo infiniswap device serve {facts.whole} --lock-memory … (needs CAP_SYS_RESOURCE)"
    return _device(facts, "io flusher", marked == len(facts.thread_flags), found, why, command)


def check_real_time(facts: DeviceFacts) -> Check:
    """Real-time scheduling of the threads that page-outs wait for. Some start later, for a while, without it."""
    why = "where nobody has memory, real-time threads get some of the kernel's reserve; others look for it for seconds"
    if not facts.thread_policies:
        found = f"/proc/{facts.pid}/task cannot be read"
        return Check("real time", Level.WARNING, found, why, "sudo infiniswap doctor", facts.name)
    raised = sum(policy in REAL_TIME_POLICIES for policy in facts.thread_policies)
    found = f"{raised} of {len(facts.thread_policies)} threads are real-time"
    if raised:
        return Check("real time", Level.OK, found, why, None, facts.name)
    command = f"sudo infiniswap device serve {facts.whole} --lock-memory … (needs CAP_SYS_NICE or `ulimit -r 2`)"
    return Check("real time", Level.WARNING, found, why, command, facts.name)


def check_oom_score(facts: DeviceFacts) -> Check:
    """oom_score_adj."""
    why = "a killed device service leaves every program whose pages are out waiting"
    command = f"echo {OOM_SCORE_ADJ_MIN} > /proc/{facts.pid}/oom_score_adj"
    good = None if facts.oom_score_adj is None else facts.oom_score_adj <= OOM_SCORE_ADJ_MIN
    return _device(facts, "oom_score_adj", good, f"{facts.oom_score_adj}", why, command)


def check_cgroup(facts: DeviceFacts) -> Check:
    """memory.swap.max of the service's cgroup."""
    why = "a limit of the service's own control group must not push its memory out to itself"
    if facts.locked_bytes and facts.resident_bytes and facts.locked_bytes * 10 >= facts.resident_bytes * 9:
        return _device(facts, "cgroup swap", True, "all memory is locked", why, None)
    command = f"infiniswap device serve {facts.whole} --lock-memory …"
    if facts.cgroup is not None and facts.cgroup_swap_max is not None:  # else there is no such file
        command = f"echo 0 > {Path('/sys/fs/cgroup') / facts.cgroup.lstrip('/')}/memory.swap.max"
    found = f"memory.swap.max is {facts.cgroup_swap_max or 'not set'} in {facts.cgroup or 'an unknown group'}"
    return _device(facts, "cgroup swap", facts.cgroup_swap_max == "0", found, why, command)


def check_connections(facts: DeviceFacts) -> Check:
    """Connections between the kernel and the service."""
    why = "the kernel gives up a connection on which nothing is answered; with the last one everything waits"
    command = f"infiniswap device list (a service that runs as root replaces them; restart {facts.whole} otherwise)"
    found = f"{facts.nbd_dead} of {facts.nbd_connections} to {facts.node} are dead" if facts.node else "not attached"
    if facts.node and not facts.nbd_dead:
        found = f"all {facts.nbd_connections} to {facts.node} are alive"
    return _device(facts, "connections", not facts.nbd_dead, found, why, command)


def check_backup(facts: DeviceFacts) -> Check:
    """The backup does not lie on swap."""
    why = "a page written to the backup must not be a page written to the device, round in a circle"
    command = "move the backup to another disk"
    own = facts.node.removeprefix("/dev/") if facts.node else None
    if facts.backup_is_swap or (own is not None and own in facts.backup_devices):
        where = "is a swap area itself" if facts.backup_is_swap else f"lies on {facts.node}"
        return Check("backup", Level.FAILURE, f"{facts.backup} {where}", why, command, facts.name)
    return Check("backup", Level.OK, facts.backup, why, None, facts.name)


def check_backup_disk(facts: DeviceFacts) -> Check | None:
    """A device that seals its pages has its backup on dm-crypt; None where there is nothing to say."""
    why = "pages are sealed for peers, and the backup is a plain image of them: whoever has that disk reads it all"
    if facts.backup_is_plain is None:
        return None
    if not facts.backup_is_plain:
        return Check("backup disk", Level.OK, "encrypted", why, None, facts.name)
    found = f"{facts.backup} goes to {facts.backup_devices[-1] if facts.backup_devices else 'a disk'} in the clear"
    mapped = f"{facts.name}-backup"
    command = (
        f"cryptsetup luksFormat /dev/EMPTY && cryptsetup open /dev/EMPTY {mapped} && "
        f"infiniswap device serve {facts.whole} --backup /dev/mapper/{mapped} …"
    )
    return Check("backup disk", Level.WARNING, found, why, command, facts.name)


def check_state(facts: DeviceFacts) -> Check:
    """The page table is not mapped from a disk."""
    why = "a write to a page table on a disk can wait for that disk just when the host is short of memory"
    command = f"infiniswap device serve {facts.whole} --state-dir /run/infiniswap/state …"
    good = None if facts.state_file_system is None else facts.state_file_system in MEMORY_FILE_SYSTEMS
    found = f"{facts.state_dir or 'state directory'} on {facts.state_file_system or 'an unknown file system'}"
    # A stall, not a deadlock: the disk does not wait for this device.
    level = Level.OK if good else Level.WARNING
    return Check("state file", level, found, why, None if good else command, facts.name)


def check_log(facts: DeviceFacts) -> Check:
    """The log does not go to a file on a disk."""
    why = (
        "while all connections are given up whoever pages out waits, a disk's journal among them; a service whose line "
        "of the log waits for that disk cannot bring the connections back"
    )
    command = "infiniswap systemd install"
    if facts.log_file is None:
        return Check("log", Level.OK, "not a file", why, None, facts.name)
    good = facts.log_file_system in MEMORY_FILE_SYSTEMS
    found = f"{facts.log_file} on {facts.log_file_system or 'an unknown file system'}"
    return Check("log", Level.OK if good else Level.WARNING, found, why, None if good else command, facts.name)


def check_peers(facts: DeviceFacts) -> Check:
    """Free memory at the peers."""
    why = "pages that find no room at a peer come back at the speed of the backup disk"
    up = [peer for peer in facts.peers if peer.up]
    if not up:
        found = f"none of {len(facts.peers)} peers is up" if facts.peers else "no peers are configured"
        return Check("peers", Level.WARNING, found, why, "infiniswapd --memory SIZE --listen HOST:PORT", facts.name)
    free = sum(peer.free_bytes for peer in up)
    wanted = facts.size_bytes - facts.mapped_bytes
    found = (
        f"{len(up)} of {len(facts.peers)} up, {format_size(free)} free, {format_size(max(0, wanted))} not mapped yet"
    )
    if free >= wanted:
        return Check("peers", Level.OK, found, why, None, facts.name)
    return Check("peers", Level.WARNING, found, why, "infiniswapd --memory SIZE --listen HOST:PORT", facts.name)


DEVICE_CHECKS: tuple[Callable[[DeviceFacts], Check], ...] = (
    check_locked,
    check_io_flusher,
    check_real_time,
    check_oom_score,
    check_cgroup,
    check_connections,
    check_backup,
    check_state,
    check_log,
    check_peers,
)


def examine(host: HostFacts, devices: tuple[DeviceFacts, ...] = ()) -> list[Check]:
    """All checks, the host's first."""
    checks = [check(host) for check in HOST_CHECKS] + examine_rdma(host.rdma)
    idle = check_idle_zswap(host, devices)
    checks += [idle] if idle else []
    for device in devices:
        checks += [check(device) for check in DEVICE_CHECKS] + [check_transport(device, host.rdma)]
        disk = check_backup_disk(device)
        checks += [disk] if disk else []
        checks += [check_zswap(device, host), check_order(device, host)]
    return checks


def worst(checks: list[Check]) -> Level:
    """The gravest level among the checks."""
    levels = {check.level for check in checks}
    return Level.FAILURE if Level.FAILURE in levels else Level.WARNING if Level.WARNING in levels else Level.OK
