"""What daemon and device tell each other on a lease's stream (WebSocket, JSON texts), each message once.

The daemon tells what a poll would learn too late: heartbeats, slabs that must go, questions. What is wrong with a
message is a StreamError whose sentence goes into the reader's log; the stream lives on, and polling tells the rest.

Slabs are told as a list of numbers, bounded: a daemon that wants more back says so in several notices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from infiniswap.shared.messages import is_slab_name

BEAT_S = 0.4  # between the daemon's heartbeats: two in each second, though one comes late
SILENCE_S = 1.0  # without any: the device asks by HTTP, the daemon waits for that device no longer
MESSAGE_BYTES_MAX = 1 << 18
MESSAGE_SLABS_MAX = 4096
DEADLINE_MS_MAX = 3_600_000
_NUMBER_MAX = 1 << 62
_SLAB_MAX = 1 << 32
_TEXT_CHARACTERS_MAX = 1024


class StreamError(ValueError):
    """A message that cannot be used; the message is one sentence."""


# ---- the daemon tells ----


@dataclass(frozen=True, slots=True)
class StreamBeat:
    """The daemon lives, and so does the lease.

    rdma: False when an RDMA path of the lease is dead at this end. heard: the last beat that has come back; the lease
    was renewed then.
    """

    type: ClassVar[str] = "beat"
    number: int
    incarnation: str
    expires_in_s: float
    free_bytes: int
    rdma: bool = True
    heard: int = 0

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "type": self.type,
            "number": self.number,
            "incarnation": self.incarnation,
            "expires_in_s": self.expires_in_s,
            "free_bytes": self.free_bytes,
            "rdma": self.rdma,
            "heard": self.heard,
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(
            _integer(content, "number"),
            _text(content, "incarnation"),
            _rate(content.get("expires_in_s"), "expires_in_s"),
            _integer(content, "free_bytes"),
            content.get("rdma") is not False,
            _integer(content, "heard"),
        )


@dataclass(frozen=True, slots=True)
class Evict:
    """These slabs must be given up within deadline_ms. now: what is on the backup already is what counts.

    notice: number of the notice, growing. Slabs of an earlier one may be named again, with what is left of their time.
    """

    type: ClassVar[str] = "evict"
    notice: int
    slabs: tuple[int, ...]
    deadline_ms: int
    now: bool = False

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "type": self.type,
            "notice": self.notice,
            "slabs": list(self.slabs),
            "deadline_ms": self.deadline_ms,
            "now": self.now,
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(
            _integer(content, "notice"),
            _slabs(content, "slabs"),
            _integer(content, "deadline_ms", DEADLINE_MS_MAX),
            content.get("now") is True,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """How active are these slabs? An answer after deadline_ms is too late, and they count as cold then."""

    type: ClassVar[str] = "ask"
    ask: int
    slabs: tuple[int, ...]
    deadline_ms: int

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"type": self.type, "ask": self.ask, "slabs": list(self.slabs), "deadline_ms": self.deadline_ms}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(
            _integer(content, "ask"), _slabs(content, "slabs"), _integer(content, "deadline_ms", DEADLINE_MS_MAX)
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """These slabs are gone by force: what is written to them changes nothing any more, and reads fail."""

    type: ClassVar[str] = "taken"
    slabs: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"type": self.type, "slabs": list(self.slabs)}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(_slabs(content, "slabs"))


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether the daemon takes slabs now, and whether it is about to give up lending altogether."""

    type: ClassVar[str] = "policy"
    lending: bool
    draining: bool = False

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"type": self.type, "lending": self.lending, "draining": self.draining}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(content.get("lending") is not False, content.get("draining") is True)


FromDaemon = StreamBeat | Evict | Ask | Taken | Policy


# ---- the device tells ----


@dataclass(frozen=True, slots=True)
class Echo:
    """The device lives: the daemon's beat of that number, back again. It renews the lease."""

    type: ClassVar[str] = "beat"
    number: int

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {"type": self.type, "number": self.number}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(_integer(content, "number"))


@dataclass(frozen=True, slots=True)
class Noticed:
    """A notice was read: slabs that are on their way out, and slabs that the device does not hold there."""

    type: ClassVar[str] = "noticed"
    notice: int
    leaving: tuple[int, ...]
    unknown: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "type": self.type,
            "notice": self.notice,
            "leaving": list(self.leaving),
            "unknown": list(self.unknown),
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        return cls(_integer(content, "notice"), _slabs(content, "leaving"), _slabs(content, "unknown"))


@dataclass(frozen=True, slots=True)
class ActivityAnswer:
    """Page I/O per second of the slabs asked about; those that the device does not hold are left out."""

    type: ClassVar[str] = "activity"
    ask: int
    activity: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "type": self.type,
            "ask": self.ask,
            "activity": {str(slab): rate for slab, rate in self.activity.items()},
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """StreamError."""
        told = content.get("activity")
        if not isinstance(told, dict) or len(told) > MESSAGE_SLABS_MAX:
            raise StreamError(f"activity must be an object of at most {MESSAGE_SLABS_MAX} slabs")
        return cls(
            _integer(content, "ask"), {_slab_name(name): _rate(rate, "an activity") for name, rate in told.items()}
        )


FromDevice = Echo | Noticed | ActivityAnswer

_FROM_DAEMON: dict[str, type[FromDaemon]] = {kind.type: kind for kind in (StreamBeat, Evict, Ask, Taken, Policy)}
_FROM_DEVICE: dict[str, type[FromDevice]] = {kind.type: kind for kind in (Echo, Noticed, ActivityAnswer)}


def encode(message: FromDaemon | FromDevice) -> str:
    """The text of a message."""
    return json.dumps(message.as_json(), separators=(",", ":"), allow_nan=False)


def from_daemon(text: str) -> FromDaemon | None:
    """What the daemon says in text; None for a type that this program does not know yet. StreamError."""
    content = _content(text)
    kind = _FROM_DAEMON.get(_text(content, "type"))
    return None if kind is None else kind.parse(content)


def from_device(text: str) -> FromDevice | None:
    """What the device says in text; None for a type that this program does not know yet. StreamError."""
    content = _content(text)
    kind = _FROM_DEVICE.get(_text(content, "type"))
    return None if kind is None else kind.parse(content)


# ---- fields ----


def _content(text: str) -> dict[str, Any]:
    if len(text) > MESSAGE_BYTES_MAX:
        raise StreamError(f"a message may have {MESSAGE_BYTES_MAX} characters")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise StreamError("a message must be a JSON object")
    return content


def _integer(content: dict[str, Any], name: str, most: int = _NUMBER_MAX) -> int:
    value = content.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise StreamError(f"{name} must be a whole number from 0 to {most}")
    return value


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_CHARACTERS_MAX or not value.isprintable():
        raise StreamError(f"{name} must be a text of at most {_TEXT_CHARACTERS_MAX} printable characters")
    return value


def _rate(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _NUMBER_MAX:
        raise StreamError(f"{what} must be a number, not negative")
    return float(value)


def _slabs(content: dict[str, Any], name: str) -> tuple[int, ...]:
    """Each slab once, in the order told."""
    value = content.get(name)
    if (
        not isinstance(value, list)
        or len(value) > MESSAGE_SLABS_MAX
        or not all(type(slab) is int and 0 <= slab < _SLAB_MAX for slab in value)
    ):
        raise StreamError(f"{name} must be a list of at most {MESSAGE_SLABS_MAX} slab numbers")
    return tuple(dict.fromkeys(value))


def _slab_name(name: str) -> int:
    if not is_slab_name(name) or int(name) >= _SLAB_MAX:
        raise StreamError("activity must be told by slab numbers")
    return int(name)
