"""What an administrator's command and a memory daemon tell each other: each message once.

As in messages.py: a request that is wrong is a ValueError whose sentence goes back, an answer that is wrong an
AnswerError. Times are seconds from now, so that clocks need not agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeGuard

from infiniswap.shared.messages import TEXT_CHARACTERS_MAX, AnswerError, whole_number

DEADLINE_S_DEFAULT = 600.0
DEADLINE_S_MAX = 3_600.0  # as long as a notice to a device may say
_NUMBER_MAX = 1 << 62
_LEASES_MAX = 65_536  # far more than a daemon has


class DonorState(StrEnum):
    """What a daemon does with its memory."""

    LENDING = "lending"
    CORDONED = "cordoned"  # no new slabs; those that are lent stay
    DRAINING = "draining"  # no new slabs, and those that are lent are on their way back
    DRAINED = "drained"  # it was drained, and nothing is lent


class DrainState(StrEnum):
    """How far a drain is."""

    RUNNING = "running"
    DONE = "done"  # nothing is lent any more
    ENDED = "ended"  # uncordon ended it before that


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """POST /v1/drain. deadline_s: after which slabs are taken by force; None: as it is, or the default."""

    deadline_s: float | None = None
    stop: bool = False  # the daemon ends itself when nothing is lent any more

    def as_json(self) -> dict[str, Any]:
        """As the command sends it."""
        return {"deadline_s": self.deadline_s, "stop": self.stop}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Out of JSON that a stranger sent; ValueError."""
        deadline_s, stop = content.get("deadline_s"), content.get("stop", False)
        if deadline_s is not None and not (_is_number(deadline_s) and 0 <= deadline_s <= DEADLINE_S_MAX):
            raise ValueError(f"deadline_s must be a number of seconds from 0 to {DEADLINE_S_MAX:g}")
        if not isinstance(stop, bool):
            raise ValueError("stop must be true or false")
        return cls(None if deadline_s is None else float(deadline_s), stop)


@dataclass(frozen=True, slots=True)
class Holding:
    """Slabs that one device holds, or held. host: the address from which it took the lease."""

    device: str
    host: str
    slabs: int
    slab_bytes: int

    @property
    def size_bytes(self) -> int:
        """All of them."""
        return self.slabs * self.slab_bytes

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "device": self.device,
            "host": self.host,
            "slabs": self.slabs,
            "slab_bytes": self.slab_bytes,
            "bytes": self.size_bytes,
        }

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        item = _object(answer, "holding")
        return cls(
            _text(item, "device"), _text(item, "host"), whole_number(item, "slabs"), whole_number(item, "slab_bytes")
        )


@dataclass(frozen=True, slots=True)
class LeaseShown:
    """A lease, for who runs the daemon."""

    lease: str
    holding: Holding
    connections: int  # for page I/O
    expires_in_s: float

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "lease": self.lease,
            **self.holding.as_json(),
            "connections": self.connections,
            "expires_in_s": self.expires_in_s,
        }

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        item = _object(answer, "lease")
        return cls(
            _text(item, "lease"), Holding.parse(item), whole_number(item, "connections"), _seconds(item, "expires_in_s")
        )


@dataclass(frozen=True, slots=True)
class Drain:
    """A drain, running or over. Slabs: that there were, that are left, that went by force."""

    state: DrainState
    slabs: int
    left: int
    elapsed_s: float
    deadline_in_s: float  # 0: it has passed
    forced: tuple[Holding, ...] = ()  # what was taken by force at the deadline
    stop: bool = False

    @property
    def forced_slabs(self) -> int:
        """Of all devices."""
        return sum(holding.slabs for holding in self.forced)

    @property
    def moved(self) -> int:
        """Slabs that their devices gave back."""
        return max(0, self.slabs - self.left - self.forced_slabs)

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "state": self.state,
            "slabs": self.slabs,
            "left": self.left,
            "moved": self.moved,
            "forced_slabs": self.forced_slabs,
            "forced": [holding.as_json() for holding in self.forced],
            "elapsed_s": self.elapsed_s,
            "deadline_in_s": self.deadline_in_s,
            "stop": self.stop,
        }

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        item = _object(answer, "drain")
        try:
            state = DrainState(str(item.get("state")))
        except ValueError:
            raise AnswerError("its answer has a drain without a state") from None
        return cls(
            state=state,
            slabs=whole_number(item, "slabs"),
            left=whole_number(item, "left"),
            elapsed_s=_seconds(item, "elapsed_s"),
            deadline_in_s=_seconds(item, "deadline_in_s"),
            forced=tuple(Holding.parse(each) for each in _list(item, "forced")),
            stop=item.get("stop") is True,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the daemon, bytes. used: lent, or on its way back."""

    limit_bytes: int  # that it may lend at most
    lendable_bytes: int  # in all, as its host is now
    lent_bytes: int
    used_bytes: int
    free_bytes: int  # that could be mapped now
    occupied_bytes: int  # of the host, really

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        item = _object(answer, "memory")
        return cls(**{name: whole_number(item, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Host:
    """The memory of the daemon's host, or of its cgroup, bytes."""

    total_bytes: int
    available_bytes: int
    headroom_bytes: int  # kept free, as of now
    pressure_percent: float | None  # of the last 10 s in which some task waited for memory; None: it does not tell
    percpu_bytes: int = 0  # of what is available, in lists of the processors, where MemAvailable does not count it

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        item = _object(answer, "host")
        total, available = whole_number(item, "total_bytes"), whole_number(item, "available_bytes")
        pressure = None if item.get("pressure_percent") is None else _seconds(item, "pressure_percent")
        percpu = whole_number(item, "percpu_bytes") if "percpu_bytes" in item else 0  # older daemons do not tell
        return cls(total, available, whole_number(item, "headroom_bytes"), pressure, percpu)


@dataclass(frozen=True, slots=True)
class DonorStatus:
    """GET /v1/status; also the answer to cordon, uncordon and drain."""

    version: str
    incarnation: str
    uptime_s: float
    state: DonorState
    memory: Memory
    host: Host | None  # None: huge pages, which are reserved and not measured
    leases: tuple[LeaseShown, ...]
    evicted: int  # slabs that devices gave back because they were asked to
    evicted_by_force: int
    drain: Drain | None  # the last one

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "version": self.version,
            "incarnation": self.incarnation,
            "uptime_s": self.uptime_s,
            "state": self.state,
            "memory": self.memory.as_json(),
            "host": None if self.host is None else self.host.as_json(),
            "evictions": {"evicted": self.evicted, "by_force": self.evicted_by_force},
            "leases": [lease.as_json() for lease in self.leases],
            "drain": None if self.drain is None else self.drain.as_json(),
        }

    @classmethod
    def parse(cls, answer: object) -> Self:
        """AnswerError."""
        content = _object(answer, "status")
        try:
            state = DonorState(str(content.get("state")))
        except ValueError:
            raise AnswerError("its answer lacks a state that is known here") from None
        evictions = _object(content.get("evictions"), "evictions")
        host, drain = content.get("host"), content.get("drain")
        return cls(
            version=_text(content, "version"),
            incarnation=_text(content, "incarnation"),
            uptime_s=_seconds(content, "uptime_s"),
            state=state,
            memory=Memory.parse(content.get("memory")),
            host=None if host is None else Host.parse(host),
            leases=tuple(LeaseShown.parse(lease) for lease in _list(content, "leases")),
            evicted=whole_number(evictions, "evicted"),
            evicted_by_force=whole_number(evictions, "by_force"),
            drain=None if drain is None else Drain.parse(drain),
        )


# ---- fields ----


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _object(answer: object, what: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise AnswerError(f"its answer lacks the {what}")
    return answer


def _list(answer: dict[str, Any], name: str) -> list[Any]:
    value = answer.get(name)
    if not isinstance(value, list) or len(value) > _LEASES_MAX:
        raise AnswerError(f"its answer lacks the list of {name}")
    return value


def _seconds(answer: dict[str, Any], name: str) -> float:
    value = answer.get(name)
    if not _is_number(value) or not 0 <= value <= _NUMBER_MAX:
        raise AnswerError(f"its answer lacks {name}")
    return float(value)


def _text(answer: dict[str, Any], name: str) -> str:
    """Printable, for it goes to a terminal."""
    value = answer.get(name)
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX or not value.isprintable():
        raise AnswerError(f"its answer lacks {name}")
    return value
