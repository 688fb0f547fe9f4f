"""Whatever stands in a file that we keep as JSON: it is damage that its reader knows, never a traceback."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infiniswap.cli.mutes import read_mutes
from infiniswap.daemon.record import RecordError
from infiniswap.device import convert, grow, remembered, shards
from infiniswap.device.lease_book import LeaseBook
from infiniswap.device.owner import Mark
from infiniswap.device.shards_news import ShardsNews
from infiniswap.device.state import StateDirectory
from infiniswap.identity.authority import Authority
from infiniswap.identity.files import LEDGER
from infiniswap.identity.identity import utc_now
from infiniswap.kernel_shim import journal, zswap
from infiniswap.shared.errors import UserError
from tests.support.kept_memory import INODE, make_lease, make_record

# Deeper than Python's parser goes, in as much as the least of the readers looks at.
DEEP = b"[" * 2000
DEEP_MAPPING = b'[{"":' * 600
BEYOND = b"1e999"  # JSON's own grammar has it; no integer can be made of it

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=8,
)


def _in_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    def take(content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        read()

    return take


def _in_a_lease(content: bytes) -> None:
    """As it stands in the table that a daemon's successor takes up, with a checksum that is right."""
    record = make_record()
    try:
        record.granted(make_lease(1))
        at, text = record._slot_at(0), content[:3000]
        record._write(at + 2, text)
        record._store(at, len(text) << 32 | zlib.crc32(text))
        record.read(INODE)
    finally:
        record.close()


def _news(folder: Path) -> Callable[[bytes], None]:
    news = ShardsNews(folder)
    return lambda content: news._hand_on("vol~0", content.decode(errors="replace"))


def _ledger(folder: Path) -> Callable[[bytes], None]:
    made = Authority.create(folder / "tls", "test", utc_now())
    return _in_file(folder / "tls" / LEDGER, made.ledger)


# Each reader with what it may raise, and an object as it is written: of that the values are changed one by one.
Reader = Callable[[Path], Callable[[bytes], None]]
READERS: dict[str, tuple[Reader, tuple[type[Exception], ...], object]] = {
    "ledger": (_ledger, (UserError,), [{"host": "a", "serial": "1f", "until": 1.5, "revoked": 0}]),
    "zswap": (
        lambda f: _in_file(f / zswap.NOTE_NAME, lambda: zswap.read_note(f)),
        (),
        {"users": ["a"], "changes": {"enabled": {"before": "N", "after": "Y"}}},
    ),
    "attach": (
        lambda f: _in_file(f / f"vol{journal.NOTE_SUFFIX}", lambda: journal.read(f, "vol")),
        (),
        {"stage": "attached", "identifier": "i", "index": 3},
    ),
    "lease": (
        lambda _: _in_a_lease,
        (RecordError,),
        {"lease": "a", "digest": "00" * 32, "device": "d", "device_id": "i", "size_bytes": 1 << 20}
        | {"slab_bytes": 1 << 20, "host": "h", "owner": "o"},
    ),
    "mark": (
        lambda _: lambda content: [Mark.parse(b"a b - " + content)].clear(),
        (ValueError,),
        {"life": "", "in_use": True, "lost": 0, "name": "a", "state_dir": "/s", "since": "t", "layout": "raw"},
    ),
    "backup": (
        lambda f: _in_file(f / "backup.json", StateDirectory(f).read_record),
        (),
        {"device_id": "a", "backup": "/b", "marked": True, "layout": "raw"},
    ),
    "growth": (
        lambda f: _in_file(f / grow._NOTE_NAME, lambda: grow._read_note(StateDirectory(f))),
        (),
        {"device_id": "a", "from_bytes": 1, "to_bytes": 2, "backup": "/b"},
    ),
    "conversion": (
        lambda f: _in_file(f / convert._NOTE_NAME, lambda: convert._read_note(StateDirectory(f))),
        (),
        {"device_id": "a", "old": "/o", "new": "/n", "made": "m", "to": "log", "old_file": [1, 2], "lost": 0},
    ),
    "shards": (
        lambda f: _in_file(f / shards.FILE_NAME, lambda: shards.read_record(f)),
        (UserError,),
        {"shards": 2, "backup": "/b"},
    ),
    "news": (_news, (), {"kind": "k", "a": 1}),
    "leases": (
        lambda f: _in_file(f / "leases.json", lambda: LeaseBook(f / "leases.json").read("a")),
        (),
        {
            "device_id": "a",
            "leases": [
                {"lease": "l", "slabs": [1], "peer": ["h", 1], "token": "t", "export": "e", "address": ["h", 2]}
                | {"incarnation": "i", "ttl_s": 1, "size_bytes": 1, "rdma": False, "control": "", "over_rdma": False}
            ],
        },
    ),
    "remembered": (
        lambda f: _in_file(f / remembered.FILE_NAME, lambda: remembered.read(f)),
        (),
        {"file": None, "given": {"size": "1MiB"}, "values": {}, "changed": {"a": {"value": 1, "instead_of": 2}}}
        | {"added": ["h:1"], "removed": [], "discovered": []},
    ),
    "mutes": (
        lambda f: _in_file(f / "mutes", lambda: read_mutes(f / "mutes", 0.0)),
        (),
        [{"code": "PEER_DOWN", "only": "a", "until_s": 1}],
    ),
}


def _take(take: Callable[[bytes], None], known: tuple[type[Exception], ...], content: bytes) -> str:
    """What its reader says of it, if anything; what it may not raise comes through."""
    try:
        take(content)
    except known as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [DEEP, DEEP_MAPPING, BEYOND, b"", b"\xff\x00", b'"\\ud800"', b"null", b"[{}]"])
def test_damage(name: str, content: bytes, tmp_path: Path) -> None:
    """Nested deeper than can be read, a number beyond reason, another shape, nothing at all."""
    reader, known, _ = READERS[name]
    assert "\n" not in _take(reader(tmp_path), known, content)


def _changed(shape: object, value: object) -> list[object]:
    """The shape with value in the place of each thing in it."""
    if isinstance(shape, dict):
        return [value, *({**shape, key: new} for key, old in shape.items() for new in _changed(old, value))]
    if isinstance(shape, list):
        return [
            value,
            *([*shape[:at], new, *shape[at + 1 :]] for at in range(len(shape)) for new in _changed(shape[at], value)),
        ]
    return [value]


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(value=float("inf"))
@example(value=float("nan"))
@example(value=10**400)
@example(value={"a": []})
@given(value=values)
def test_wrong_values(name: str, value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any value in the place of any other, where all else is as it was written."""
    folder = tmp_path_factory.mktemp(name)
    reader, known, shape = READERS[name]
    take = reader(folder)
    for changed in _changed(shape, value):
        assert "\n" not in _take(take, known, json.dumps(changed).encode()), changed
