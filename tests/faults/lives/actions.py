"""What each kind of step does to the world."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from infiniswap.shared.errors import ExitCode
from tests.faults.lives.oracle import WrongError
from tests.faults.lives.programs import READY_TIMEOUT_S
from tests.faults.lives.schedule import Step
from tests.faults.lives.world import ACCEPT_IMAGE, REFUSALS, World

LOAD_REQUESTS = 150
EARLY_MS_MAX = 120


def perform(world: World, step: Step) -> None:
    """Do one step; WrongError when a promise is broken."""
    ACTIONS[step.kind](world, step, Random(step.seed))
    world.happened[f"{step.kind} {step.variant}".strip()] += 1
    world.check_running()


# ---- clients ----


def _work(world: World, step: Step, draw: Random) -> None:
    world.connected().work(step.amount, step.seed, step.variant)


def _flush(world: World, step: Step, draw: Random) -> None:
    world.flush()


def _check(world: World, step: Step, draw: Random) -> None:
    world.connected().check()


# ---- the device ----


def _kill(world: World, step: Step, draw: Random) -> None:
    _die(world, step)
    world.start()


def _die(world: World, step: Step) -> None:
    """Kill -9, in the middle of requests unless idle."""
    if step.variant == "idle":
        world.kill_device()
    else:
        world.connected().work(LOAD_REQUESTS, step.seed, "writes", world.kill_device)
    world.bury_device()


def _stop(world: World, step: Step, draw: Random) -> None:
    if step.variant == "load":
        device = world.running_device()
        world.connected().work(LOAD_REQUESTS, step.seed, "mixed", lambda: device.signal(signal.SIGTERM))
        world.wait_stopped()
    else:
        world.stop_device()
    world.start()


def _stop_recovering(world: World, step: Step, draw: Random) -> None:
    _die(world, step)
    if step.variant == "ready":
        code = world.try_start()
        if code is not None:
            raise WrongError(f"the start ends with exit code {code}; its log:\n{world.running_device().log}")
        world.stop_device()
    else:
        world.device = world.spawn()
        time.sleep(draw.random() * EARLY_MS_MAX / 1000)  # not to wait for anything: the moment is the point
        world.device.signal(signal.SIGTERM)
        code = world.device.wait()
        if world.device.is_ready(0):
            world.wait_stopped()
        elif code not in (ExitCode.OK, -signal.SIGTERM):
            raise WrongError(f"stopped before it served, it ends with {code}; its log:\n{world.device.log}")
    world.start()


def _kill_recovering(world: World, step: Step, draw: Random) -> None:
    _die(world, step)
    for _ in range(draw.randint(1, 3)):
        world.device = world.spawn()
        if step.variant == "ready":
            world.device.is_ready(READY_TIMEOUT_S)
        else:
            time.sleep(draw.random() * EARLY_MS_MAX / 1000)
        world.device.kill()
    world.start()


def _start_twice(world: World, step: Step, draw: Random) -> None:
    first = world.running_device()
    second = world.spawn(name="vol" if step.variant == "name" else "other")
    code = second.wait(READY_TIMEOUT_S)
    if code not in REFUSALS:
        raise WrongError(f"a second service beside the first ends with exit code {code}; its log:\n{second.log}")
    world.device = first
    world.connected().work(20, step.seed, "mixed")


def _other_state(world: World, step: Step, draw: Random) -> None:
    """On another state directory a device is refused, or right; then on its own likewise."""
    other = world.folder / "elsewhere"
    if step.variant == "killed":
        _die(world, step)
    elif world.stop_device() != ExitCode.OK:
        world.start()
        return
    if _start_or_refused(world, other if world.state_dir != other else world.folder / "state"):
        world.connected().work(40, step.seed, "writes")
        world.connected().check()
        if draw.random() < 0.5:
            world.stop_device()
        else:
            _die(world, step)
            if _start_or_refused(world, world.state_dir):
                return
            world.start(state_dir=other)
            world.stop_device()
    elif step.variant == "stopped" and not any(page.lossy for page in world.oracle.pages):
        raise WrongError(f"refused after an orderly stop; its log:\n{world.running_device().log}")
    world.start()


def _start_or_refused(world: World, state_dir: Path) -> bool:
    """Start; False when it is refused, which is always better than to guess."""
    code = world.try_start(state_dir=state_dir)
    if code is None:
        world.connect()
        return True
    if code not in REFUSALS:
        raise WrongError(f"the start ends with exit code {code}; its log:\n{world.running_device().log}")
    return False


def _reboot(world: World, step: Step, draw: Random) -> None:
    _die(world, step)
    if world.schedule.backup_engine != "threads":
        world.start()
        return
    world.disk.power_cut()
    world.disk.new_boot()
    world.oracle.image_counts()
    if step.variant == "state gone":
        world.forget_state()
        world.oracle.forgotten()
    world.start()


# ---- daemons ----


def _daemon_killed(world: World, step: Step, draw: Random) -> None:
    daemon = world.daemon(step.who)
    if daemon is None:
        return

    def kill() -> None:
        world.oracle.donor_harmed()
        daemon.kill()

    world.connected().work(60, step.seed, "mixed", kill)
    if step.variant == "back":
        world.start_daemon(step.who)


def _daemon_stopped(world: World, step: Step, draw: Random) -> None:
    daemon = world.daemon(step.who)
    if daemon is None:
        return
    daemon.signal(signal.SIGCONT)
    world.connected().work(60, step.seed, "mixed", lambda: daemon.signal(signal.SIGTERM))
    daemon.wait()
    world.oracle.donor_harmed()
    if step.variant == "back":
        world.start_daemon(step.who)


def _daemon_paused(world: World, step: Step, draw: Random) -> None:
    daemon = world.daemon(step.who)
    if daemon is None:
        return
    world.oracle.donor_harmed()
    daemon.signal(signal.SIGSTOP)
    end_s = time.monotonic() + step.amount / 1000
    world.connected().work(40, step.seed, "mixed")
    time.sleep(max(0.0, end_s - time.monotonic()))
    daemon.signal(signal.SIGCONT)
    world.oracle.donor_harmed()


def _daemon_cut(world: World, step: Step, draw: Random) -> None:
    if world.daemon(step.who) is None:
        return
    before = world.faults[step.who]
    if step.variant == "reset":
        world.oracle.donor_harmed()
        world.cut(step.who)
        world.connected().work(40, step.seed, "mixed")
        return
    up, down = step.variant in ("both", "up"), step.variant in ("both", "down")
    world.set_faults(step.who, stall_up=up, stall_down=down)
    end_s = time.monotonic() + step.amount / 1000
    world.connected().work(40, step.seed, "mixed")
    time.sleep(max(0.0, end_s - time.monotonic()))
    world.set_faults(step.who, stall_up=before.stall_up, stall_down=before.stall_down)


def _network(world: World, step: Step, draw: Random) -> None:
    """A lasting fault of the network, whose field carries the step's amount."""
    if world.daemon(step.who) is None:
        return
    world.set_faults(step.who, **{NETWORK_FIELDS[step.variant]: step.amount})
    world.connected().work(60, step.seed, "mixed")


def _daemon_slow(world: World, step: Step, draw: Random) -> None:
    if world.daemon(step.who) is None:
        return
    world.set_faults(step.who, slow_every=100, slow_ms=draw.choice((20, 200)), control_ms=draw.choice((0, 30)))
    world.connected().work(60, step.seed, "mixed")


def _daemons_healed(world: World, step: Step, draw: Random) -> None:
    world.heal_daemons()


def _daemon_and_device_killed(world: World, step: Step, draw: Random) -> None:
    daemon = world.daemon(step.who)

    def kill_both() -> None:
        world.oracle.donor_harmed()
        world.kill_device()
        if daemon is not None:
            daemon.kill()

    world.connected().work(60, step.seed, "writes", kill_both)
    world.bury_device()
    if daemon is not None:
        world.start_daemon(step.who)
    world.start()


# ---- disk and state ----


def _disk_fails(world: World, step: Step, draw: Random) -> None:
    disk, oracle = world.disk, world.oracle
    if step.variant == "read":
        oracle.disk_fails_reads = True
        disk.set(read_errno=errno.EIO, read_every=step.amount)
    elif step.variant == "sync":
        oracle.disk_fails_writes = world.sync_failed = True
        disk.set(sync_errno=errno.EIO, sync_left=draw.choice((1, 1, 3, 1000)))
    else:
        oracle.disk_fails_writes = True
        disk.set(write_errno=getattr(errno, step.variant), write_every=step.amount)
    world.connected().work(60, step.seed, "mixed")


def _disk_slow(world: World, step: Step, draw: Random) -> None:
    world.disk.set(delay_us=1000 * step.amount, delay_every=3)
    world.connected().work(60, step.seed, "mixed")


def _disk_healed(world: World, step: Step, draw: Random) -> None:
    world.heal_disk()


def _state_full(world: World, step: Step, draw: Random) -> None:
    disk = world.disk
    if step.variant == "serving":
        disk.fail_state(step.amount, all_after=True)
        world.state_fails = True
        world.connected().work(150, step.seed, "writes")
        if world.schedule.daemons and draw.random() < 0.5:
            world.cut(0)
            world.oracle.donor_harmed()
            world.connected().work(60, step.seed, "writes")
        disk.set(state_errno=0)
        world.state_fails = False
        return
    if step.variant == "recovering":
        _die(world, step)
    elif world.stop_device() != ExitCode.OK:
        world.start()
        return
    disk.fail_state(step.amount, all_after=True)
    code = world.try_start()
    disk.set(state_errno=0)
    if code is None:
        world.connect()
        return
    if code not in (ExitCode.RESOURCES, *REFUSALS):
        log = world.running_device().log
        raise WrongError(f"a full state directory ends the start with exit code {code}; its log:\n{log}")
    world.start()


def _state_torn(world: World, step: Step, draw: Random) -> None:
    """Damage that can be found out is refused, or what is served is right; the way out takes the image as it is."""
    _die(world, step)
    folder = next(iter(sorted(path.parent for path in world.state_dir.rglob("state"))), None)
    if folder is None:
        world.start()
        return
    state, record, leases = folder / "state", folder / "backup.json", folder / "leases.json"
    if step.variant == "header":
        with state.open("r+b") as file:
            file.seek(draw.randrange(8))
            file.write(draw.randbytes(draw.randint(1, 80)))
    elif step.variant == "short":
        os.truncate(state, draw.randrange(state.stat().st_size))
    elif step.variant == "gone":
        state.unlink()
    elif step.variant == "record":
        record.unlink(missing_ok=True)
    elif leases.exists():
        os.truncate(leases, leases.stat().st_size // 2)
        world.oracle.donor_harmed()
    if _start_or_refused(world, world.state_dir):
        return
    world.oracle.image_counts()
    world.oracle.forgotten()
    world.start(ACCEPT_IMAGE)


def _cut_request(world: World, step: Step, draw: Random) -> None:
    """The Nth request of a fresh start, of what is mapped then, of a death and of the recovery from it is cut off."""
    if world.daemon(step.who) is None:
        return
    world.stop_device()
    world.set_faults(step.who, **{NETWORK_FIELDS[step.variant]: step.amount})
    world.start()
    world.connected().work(60, step.seed, "writes")
    _die(world, step)
    world.start()
    world.connected().work(30, step.seed, "reads")


NETWORK_FIELDS = {
    "down": "flip_every",
    "up": "flip_up_every",
    "length": "length_every",
    "unasked": "unasked_every",
    "error": "error_every",
    "control": "control_nth",
    "page": "page_nth",
}
ACTIONS: dict[str, Callable[[World, Step, Random], None]] = {
    "work": _work,
    "flush": _flush,
    "check": _check,
    "kill": _kill,
    "stop": _stop,
    "stop_recovering": _stop_recovering,
    "kill_recovering": _kill_recovering,
    "start_twice": _start_twice,
    "other_state": _other_state,
    "reboot": _reboot,
    "daemon_killed": _daemon_killed,
    "daemon_stopped": _daemon_stopped,
    "daemon_paused": _daemon_paused,
    "daemon_cut": _daemon_cut,
    "daemon_slow": _daemon_slow,
    "daemon_flips": _network,
    "daemon_lies": _network,
    "daemons_healed": _daemons_healed,
    "daemon_and_device_killed": _daemon_and_device_killed,
    "cut_request": _cut_request,
    "disk_fails": _disk_fails,
    "disk_slow": _disk_slow,
    "disk_healed": _disk_healed,
    "state_full": _state_full,
    "state_torn": _state_torn,
}
