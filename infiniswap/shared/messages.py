"""What a device and a memory daemon tell each other about leases and slabs: each message once.

Requests are read by the daemon: what is wrong with one is a ValueError whose sentence goes back to the device. Answers
are read by the device: what is wrong with one is an AnswerError whose sentence goes into its log. Fields that an older
program does not know have values of their own for that.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Self

from infiniswap.shared.errors import one_line
from infiniswap.shared.path_messages import PathEnd, Region, parse_end, parse_region

DEVICE_NAME_CHARACTERS_MAX = 255
TTL_S_MIN = 0.1
TTL_S_MAX = 86_400.0
TEXT_CHARACTERS_MAX = 1024
VERSION_CHARACTERS_MAX = 64
REQUEST_NUMBER_BITS_MAX = 63
SLAB_DIGITS_MAX = 10
_ANSWER_NUMBER_MAX = 1 << 62
_UUID = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


class AnswerError(ValueError):
    """An answer that cannot be used; the message is one sentence."""


# ---- requests ----


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """POST /v1/leases."""

    device: str
    device_id: str
    size_bytes: int
    slab_bytes: int

    def as_json(self) -> dict[str, Any]:
        """As the device sends it."""
        return {
            "device": self.device,
            "device_id": self.device_id,
            "size_bytes": self.size_bytes,
            "slab_bytes": self.slab_bytes,
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Out of JSON that a stranger sent; ValueError."""
        return cls(
            device=_device_name(content),
            device_id=_device_id(content),
            size_bytes=_bytes_asked(content, "size_bytes"),
            slab_bytes=_bytes_asked(content, "slab_bytes"),
        )


@dataclass(frozen=True, slots=True)
class PathRequest:
    """POST /v1/leases/{id}/rdma: the device's end of a path."""

    end: PathEnd

    def as_json(self) -> dict[str, Any]:
        """As the device sends it."""
        return {"path": self.end.as_json()}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """Out of JSON that a stranger sent; ValueError."""
        return cls(parse_end(content.get("path")))


# ---- answers ----


@dataclass(frozen=True, slots=True)
class Life:
    """How long a lease lives, and for as long as which process of the daemon."""

    incarnation: str
    ttl_s: float
    expires_in_s: float

    def as_json(self) -> dict[str, Any]:
        """As part of an answer."""
        return {"incarnation": self.incarnation, "ttl_s": self.ttl_s, "expires_in_s": self.expires_in_s}


@dataclass(frozen=True, slots=True)
class Standing:
    """What the daemon is, and whether it lends: for people, and so that nobody asks it in vain."""

    version: str = ""  # "": it does not tell
    lending: bool = True  # False: it takes no more slabs
    draining: bool = False  # and those that it has are on their way back

    @property
    def word(self) -> str:
        """For people: lending, cordoned or draining."""
        return "lending" if self.lending else "draining" if self.draining else "cordoned"

    def as_json(self) -> dict[str, Any]:
        """As part of an answer."""
        return {"version": self.version, "lending": self.lending, "draining": self.draining}

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """Whatever it says; what is no answer counts as none."""
        version = answer.get("version")
        known = isinstance(version, str) and version.isprintable() and len(version) <= VERSION_CHARACTERS_MAX
        lending, draining = answer.get("lending") is not False, answer.get("draining") is True
        return cls(str(version) if known else "", lending, draining)


@dataclass(frozen=True, slots=True)
class Offered:
    """GET /v1/offer: memory that could be mapped now. link_layer: of the daemon's RDMA port, None without RDMA."""

    free_bytes: int
    total_bytes: int
    incarnation: str
    used_bytes: int = 0
    leases: int = 0
    link_layer: str | None = None
    standing: Standing = Standing()

    @property
    def rdma(self) -> bool:
        """Whether the daemon can be reached over RDMA now."""
        return self.link_layer is not None

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "incarnation": self.incarnation,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "used_bytes": self.used_bytes,
            "leases": self.leases,
            "rdma": rdma_as_json(self.link_layer),
            **self.standing.as_json(),
        }

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError. How much is used, and by how many, is for people."""
        return cls(
            whole_number(answer, "free_bytes"),
            whole_number(answer, "total_bytes"),
            _string(answer, "incarnation"),
            link_layer=_link_layer(answer),
            standing=Standing.parse(answer),
        )


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease, with the only copy of its token. no_rdma: why link_layer is None, for people; "" where nobody says."""

    lease_id: str
    token: str = field(repr=False)
    export: str = field(repr=False)
    address: tuple[str, int]  # where pages go
    link_layer: str | None
    life: Life
    no_rdma: str = ""

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "lease": self.lease_id,
            "token": self.token,
            "export": self.export,
            "address": list(self.address),
            "rdma": rdma_as_json(self.link_layer),
            "no_rdma": self.no_rdma,
            **self.life.as_json(),
        }

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError."""
        lease_id, token, export = _path_part(answer, "lease"), _string(answer, "token"), _string(answer, "export")
        address, incarnation, ttl_s = _address(answer), _string(answer, "incarnation"), _ttl(answer)
        life, no_rdma = Life(incarnation, ttl_s, ttl_s), answer.get("no_rdma")
        told = one_line(no_rdma)[:TEXT_CHARACTERS_MAX] if isinstance(no_rdma, str) else ""
        return cls(lease_id, token, export, address, _link_layer(answer), life, told)


@dataclass(frozen=True, slots=True)
class Ticket:
    """POST /v1/leases/{id}/tickets: the export by which one connection can be opened, within expires_in_s."""

    export: str = field(repr=False)
    address: tuple[str, int]
    expires_in_s: float

    def as_json(self) -> dict[str, Any]:
        """As the daemon answers."""
        return {"export": self.export, "address": list(self.address), "expires_in_s": self.expires_in_s}

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError. How long it is good is for people."""
        life_s = answer.get("expires_in_s")
        good = isinstance(life_s, int | float) and not isinstance(life_s, bool) and 0 <= life_s <= 3600
        return cls(_string(answer, "export"), _address(answer), float(life_s) if good and life_s else 0.0)


@dataclass(frozen=True, slots=True)
class Beat:
    """POST /v1/leases/{id}/heartbeat. life: the daemon's part alone, for the device asks for the incarnation first."""

    slabs: frozenset[int]
    free_bytes: int
    connections: int = 0  # page I/O connections open on the lease, 0 also where the daemon does not tell
    rdma: bool = True  # False: an RDMA path of the lease is dead at the daemon's end
    leaving: dict[int, int] = field(default_factory=dict)  # slabs to be given up, within how many ms
    standing: Standing = Standing()

    def as_json(self, life: Life) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            **life.as_json(),
            **holdings_as_json(self),
            "rdma": self.rdma,
            "leaving": {str(slab): deadline_ms for slab, deadline_ms in self.leaving.items()},
            **self.standing.as_json(),
        }

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError."""
        slabs = answer.get("slabs")
        if not isinstance(slabs, list) or not all(type(slab) is int for slab in slabs):
            raise AnswerError("its answer lacks the list of slabs")
        connections = whole_number(answer, "connections") if "connections" in answer else 0
        rdma, standing = answer.get("rdma") is not False, Standing.parse(answer)
        leaving = _leaving(answer.get("leaving", {}))
        return cls(frozenset(slabs), whole_number(answer, "free_bytes"), connections, rdma, leaving, standing)


@dataclass(frozen=True, slots=True)
class Mapped:
    """PUT /v1/leases/{id}/slabs/{index}. region: the slab's memory, when the lease has an RDMA path."""

    free_bytes: int
    region: Region | None = None

    def as_json(self, slab: int) -> dict[str, Any]:
        """As the daemon answers."""
        region = None if self.region is None else self.region.as_json()
        return {"slab": slab, "free_bytes": self.free_bytes, "rdma": region}

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError."""
        region = answer.get("rdma")
        return cls(whole_number(answer, "free_bytes"), None if region is None else _region(region))


@dataclass(frozen=True, slots=True)
class OpenedPath:
    """The daemon's end of an RDMA path, with the memory that the lease may reach through it."""

    end: PathEnd
    port: str
    probe: Region
    regions: dict[int, Region]

    def as_json(self, probe_bytes: int) -> dict[str, Any]:
        """As the daemon answers."""
        return {
            "path": self.end.as_json(),
            "probe": {**self.probe.as_json(), "bytes": probe_bytes},
            "device": self.port,
            "slabs": [{"slab": slab, **region.as_json()} for slab, region in self.regions.items()],
        }

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """AnswerError."""
        slabs = answer.get("slabs")
        if not isinstance(slabs, list) or not all(
            isinstance(item, dict) and type(item.get("slab")) is int for item in slabs
        ):
            raise AnswerError("its answer lacks the list of slabs")
        try:
            end = parse_end(answer.get("path"))
        except ValueError as error:
            raise AnswerError(f"its end of the RDMA path cannot be used: {error}") from None
        return cls(
            end=end,
            port=_string(answer, "device"),
            probe=_region(answer.get("probe")),
            regions={item["slab"]: _region(item) for item in slabs},
        )


def incarnation(answer: dict[str, Any]) -> str:
    """Of the daemon that answered about a lease; AnswerError."""
    return _string(answer, "incarnation")


def holdings_as_json(beat: Beat) -> dict[str, Any]:
    """What a lease holds, as part of an answer."""
    return {"slabs": sorted(beat.slabs), "free_bytes": beat.free_bytes, "connections": beat.connections}


# ---- fields ----


def _bytes_asked(content: dict[str, Any], name: str) -> int:
    value = content.get(name)
    if type(value) is not int or value.bit_length() > REQUEST_NUMBER_BITS_MAX:
        raise ValueError(f"{name} must be a whole number of bytes")
    return value


def _device_name(content: dict[str, Any]) -> str:
    value = content.get("device")
    # Printable only, because the name goes into the log.
    if not isinstance(value, str) or not 0 < len(value) <= DEVICE_NAME_CHARACTERS_MAX or not value.isprintable():
        raise ValueError(f"device must be a name of 1 to {DEVICE_NAME_CHARACTERS_MAX} printable characters")
    return value


def _device_id(content: dict[str, Any]) -> str:
    value = content.get("device_id")
    if not isinstance(value, str) or _UUID.fullmatch(value) is None:
        raise ValueError("device_id must be a UUID")
    return str(uuid.UUID(value))


def rdma_as_json(link_layer: str | None) -> dict[str, str] | None:
    """What a device needs to know before it asks for a path; None without RDMA."""
    return None if link_layer is None else {"link_layer": link_layer}


def _link_layer(answer: dict[str, Any]) -> str | None:
    """Of the daemon's RDMA port; only whether there is one matters before a path is opened."""
    rdma = answer.get("rdma")
    return str(rdma.get("link_layer", "")) if isinstance(rdma, dict) else None


def whole_number(answer: dict[str, Any], name: str) -> int:
    """Not negative, and what JSON's other ends can count; AnswerError."""
    value = answer.get(name)
    if type(value) is not int or not 0 <= value <= _ANSWER_NUMBER_MAX:
        raise AnswerError(f"its answer lacks {name}")
    return value


def is_slab_name(name: str) -> bool:
    """Whether int() may read a slab's number out of the name of a field."""
    return name.isascii() and name.isdecimal() and len(name) <= SLAB_DIGITS_MAX


def _leaving(told: object) -> dict[int, int]:
    """By slab: within how many milliseconds it is to be given up."""
    if not isinstance(told, dict) or not all(
        is_slab_name(name) and type(deadline_ms) is int for name, deadline_ms in told.items()
    ):
        raise AnswerError("its answer has a list of leaving slabs that cannot be used")
    return {int(name): max(0, deadline_ms) for name, deadline_ms in told.items()}


def _region(content: object) -> Region:
    try:
        return parse_region(content)
    except ValueError as error:
        raise AnswerError(f"its answer has a memory region that cannot be used: {error}") from None


def _string(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_CHARACTERS_MAX or not value.isprintable():
        raise AnswerError(f"its answer lacks {name}")
    return value


def _path_part(answer: dict[str, Any], name: str) -> str:
    value = _string(answer, name)
    if not value.isascii() or not value.replace("-", "").replace("_", "").isalnum():
        raise AnswerError(f"its answer has a {name} that cannot be used")
    return value


def _address(answer: dict[str, Any]) -> tuple[str, int]:
    match answer.get("address"):
        case [str(host), int(port)] if host and 0 < port < 65536:
            return host, port
    raise AnswerError("its answer lacks the address for page I/O")


def _ttl(answer: dict[str, Any]) -> float:
    value = answer.get("ttl_s")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not TTL_S_MIN <= value <= TTL_S_MAX:
        raise AnswerError(f"its answer lacks a ttl_s between {TTL_S_MIN:g} and {TTL_S_MAX:g}")
    return float(value)
