"""A schedule of lives, drawn from a seed: what is set up, and what happens in turn.

Every step carries the seed of what it draws itself and leaves a device that serves, so any of them may be left out and
the others are as before: that is what shrinking does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from infiniswap.device.limits import BACKUP_LAYOUTS
from tests.faults.lives.clients import MIXES

# Kind -> weight, and the variants among which it chooses. The words are said in describe().
DEVICE_STEPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "kill": (10, ("idle", "load", "load", "load")),
    "stop": (5, ("idle", "load")),
    "stop_recovering": (6, ("ready", "ready", "early")),
    "kill_recovering": (4, ("early", "ready")),
    "start_twice": (2, ("name", "backup")),
    "other_state": (3, ("killed", "stopped")),
    "reboot": (4, ("state gone", "state kept")),
}
DAEMON_STEPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "daemon_killed": (5, ("back", "away")),
    "daemon_stopped": (3, ("back", "away")),
    "daemon_paused": (3, ("short", "long")),
    "daemon_cut": (4, ("both", "up", "down", "reset")),
    "daemon_slow": (3, ("",)),
    "daemon_flips": (3, ("down", "up")),
    "daemon_lies": (4, ("length", "unasked", "error")),
    "daemons_healed": (5, ("",)),
    "daemon_and_device_killed": (2, ("",)),
    "cut_request": (3, ("control", "page")),
}
DISK_STEPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "disk_fails": (3, ("EIO", "ENOSPC", "sync", "read")),
    "disk_slow": (2, ("",)),
    "disk_healed": (5, ("",)),
    "state_full": (3, ("serving", "recovering", "starting")),
    "state_torn": (2, ("header", "short", "gone", "record", "leases")),
}
CLIENT_STEPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "work": (40, tuple(MIXES)),
    "flush": (6, ("",)),
    "check": (6, ("",)),
}
ALL_STEPS = DEVICE_STEPS | DAEMON_STEPS | DISK_STEPS | CLIENT_STEPS
_WORDS = {
    "work": "clients send {amount} requests ({variant})",
    "flush": "FLUSH",
    "check": "read every page",
    "kill": "kill -9 the device ({variant}), start it",
    "stop": "stop the device in order ({variant}), compare the image, start it",
    "stop_recovering": "kill -9 the device, start it, SIGTERM {variant}, start it",
    "kill_recovering": "kill -9 the device, start it, kill -9 it again ({variant}), start it",
    "start_twice": "start a second service with the same {variant} beside it",
    "other_state": "when {variant}, start the device on another state directory, then on its own",
    "reboot": "power cut of the device's host, {variant}; start",
    "daemon_killed": "kill -9 daemon {who}, {variant}",
    "daemon_stopped": "stop daemon {who} in order, {variant}",
    "daemon_paused": "SIGSTOP daemon {who} for {amount} ms",
    "daemon_cut": "cut daemon {who} off ({variant}) for {amount} ms",
    "daemon_slow": "daemon {who} is slow in one reply of a hundred",
    "daemon_flips": "one bit in one page of {amount} flips ({variant}) at daemon {who}",
    "daemon_lies": "one reply of {amount} of daemon {who} lies ({variant})",
    "daemons_healed": "every daemon runs and is reachable again",
    "daemon_and_device_killed": "kill -9 device and daemon {who}; start both",
    "cut_request": "stop, cut daemon {who} off at its {amount}th {variant} request from then on, start, kill -9, start",
    "disk_fails": "the backup's disk fails one request of {amount} ({variant})",
    "disk_slow": "the backup's disk takes {amount} ms for one write of three",
    "disk_healed": "the backup's disk works again",
    "state_full": "the state directory is full ({variant}) from its {amount}th change on, until the device is back",
    "state_torn": "kill -9 the device, damage its state ({variant}), start it",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    kind: str
    seed: int
    variant: str = ""
    who: int = 0
    amount: int = 0

    def describe(self) -> str:
        """In plain words."""
        return _WORDS[self.kind].format(variant=self.variant, who=self.who, amount=self.amount)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole run."""

    seed: int
    daemons: int
    backup_engine: str
    writeback_delay_ms: int
    connections: int
    steps: tuple[Step, ...]
    backup_layout: str = "raw"

    def as_json(self) -> dict[str, Any]:
        """For a file that replays."""
        return asdict(self)

    def describe(self) -> str:
        """In plain words, a line a step."""
        head = (
            f"{self.daemons} daemons, backup {self.backup_layout} by {self.backup_engine}, "
            f"write-behind after {self.writeback_delay_ms} ms, {self.connections} connections"
        )
        return "\n".join([head, *(f"  {number}. {step.describe()}" for number, step in enumerate(self.steps, 1))])


def from_json(content: dict[str, Any]) -> Schedule:
    """The inverse of as_json()."""
    steps = tuple(Step(**step) for step in content.pop("steps"))
    return Schedule(**content, steps=steps)


def draw_schedule(seed: int, *, steps: int = 12) -> Schedule:
    """The schedule of a seed. Whoever changes what is drawn changes what every seed means."""
    draw = Random(f"lives {seed}")
    daemons = draw.choices((0, 1, 2, 3), (1, 4, 5, 2))[0]
    engine = draw.choices(("threads", "io_uring"), (4, 1))[0]
    delay_ms = draw.choice((0, 20, 20, 200, 60_000))
    # Each schedule has few kinds of faults: with all of them at once hardly anything would be promised.
    faulty_daemons = bool(daemons) and draw.random() < 0.6
    faulty_disk = engine == "threads" and draw.random() < 0.35
    kinds = dict(CLIENT_STEPS) | DEVICE_STEPS
    if engine != "threads":
        del kinds["reboot"]  # what io_uring writes the preloaded disk does not see
    if faulty_daemons:
        kinds |= DAEMON_STEPS
    if faulty_disk:
        kinds |= DISK_STEPS
    elif draw.random() < 0.3:
        kinds |= {kind: DISK_STEPS[kind] for kind in ("state_full", "state_torn")}
    found = [_work(draw)]
    while len(found) < steps:
        kind = draw.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        found.append(_work(draw) if kind == "work" else _step(kind, draw, daemons))
    # By a die of its own: what else a seed means is the same for both.
    layout = Random(f"layout {seed}").choice(BACKUP_LAYOUTS)
    return Schedule(seed, daemons, engine, delay_ms, draw.randint(1, 4), tuple(found), layout)


def nth_schedule(what: str, number: int) -> Schedule:
    """One thing fails: the Nth control or page request to a daemon, or the Nth change in the state directory."""
    steps = [Step("work", 1, "writes", 0, 60)]
    if what == "state":
        steps += [Step("state_full", 1, variant, 0, number) for variant in ("starting", "recovering")]
    else:
        steps.append(Step("cut_request", 1, what, 0, number))
    layout = BACKUP_LAYOUTS[number % len(BACKUP_LAYOUTS)]  # neighbours fail in much the same place
    return Schedule(number, 1, "threads", 20, 2, (*steps, Step("check", 1)), layout)


def _work(draw: Random) -> Step:
    return Step("work", draw.getrandbits(32), draw.choice(list(MIXES)), 0, draw.choice((20, 60, 150, 300)))


def _step(kind: str, draw: Random, daemons: int) -> Step:
    variant = draw.choice(ALL_STEPS[kind][1])
    who = draw.randrange(daemons) if daemons else 0
    amount = {
        "daemon_paused": draw.choice((50, 150)) if variant == "short" else 700,
        "daemon_cut": draw.choice((30, 100, 800)),
        "daemon_flips": draw.choice((1, 3, 20)),
        "daemon_lies": draw.choice((1, 10, 50)),
        "cut_request": draw.randint(1, 30) if variant == "control" else draw.randint(1, 200),
        "disk_fails": draw.choice((1, 2, 10)),
        "disk_slow": draw.choice((2, 20)),
        "state_full": draw.randint(1, 8),
    }.get(kind, 0)
    return Step(kind, draw.getrandbits(32), variant, who, amount)
