"""Lists of hosts in file_sd's shape: what is right is read, as JSON and as YAML, and anything else is none at all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infiniswap.shared.address import HostPort
from infiniswap.shared.file_sd import FILE_BYTES_MAX, TARGETS_MAX, parse

JSON, YAML = Path("peers.json"), Path("peers.yml")


def test_json_and_yaml() -> None:
    """Targets of all groups, each once; labels are let be; a host alone has the usual port."""
    found = {HostPort("node1", 7401), HostPort("10.0.0.2", 9000), HostPort("::1", 7401)}
    text = b'[{"targets": ["node1", "10.0.0.2:9000"], "labels": {"rack": "r1"}}, {"targets": ["[::1]", "node1:7401"]}]'
    assert parse(text, JSON) == found
    assert parse(text, YAML) == found, "JSON is YAML"
    yaml = b"- targets: [node1, '10.0.0.2:9000']\n  labels:\n    rack: r1\n- targets:\n  - '[::1]'\n"
    assert parse(yaml, YAML) == found
    assert parse(b"[]", JSON) == frozenset()
    assert parse(b'[{"targets": []}]', JSON) == frozenset()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it is not JSON"),
        (b'[{"targets": ["a"', "it is not JSON"),
        (b"null", "not a list of groups"),
        (b'{"targets": ["a"]}', "not a list of groups"),
        (b'["a"]', 'no list of "targets"'),
        (b'[{"targets": "a"}]', 'no list of "targets"'),
        (b'[{"targets": [1]}]', "a target is not HOST:PORT"),
        (b'[{"targets": ["a:b:c"]}]', "is not HOST:PORT"),
        (b'[{"targets": ["a:0"]}]', "port must be between"),
        (b'[{"targets": ["a"], "labels": 3}]', "no names with values"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"x" * (FILE_BYTES_MAX + 1), "more than 1 MiB"),
    ],
)
def test_refused(raw: bytes, words: str) -> None:
    """In a few words."""
    with pytest.raises(ValueError, match=words):
        parse(raw, JSON)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a list of groups"),
        (b"- targets: [a\n", "it is not YAML"),
        (b"a: &a [x]\nb: [*a, *a]\n", "aliases are not for lists"),
        (b"!!python/object/apply:os.system ['true']", "it is not YAML"),
        (b"- targets:\n  - 10\n", "a target is not HOST:PORT"),
        (b"\t- x", "it is not YAML"),
        (b"[" * 200_000, "are in each other|maximum nesting"),
        (b"{" * 200_000, "are in each other|maximum nesting"),
        (b"- " * 200_000, "more than 16 lists are in each other"),
        (b"? " * 200_000, "more than 16 lists are in each other"),
    ],
)
def test_refused_yaml(raw: bytes, words: str) -> None:
    """Nothing of it is run, and nothing grows: neither memory nor time."""
    begun_s = time.process_time()
    with pytest.raises(ValueError, match=words):
        parse(raw, YAML)
    assert time.process_time() - begun_s < 2  # it took the square of the depth once: 10 s for 20,000


def test_too_many() -> None:
    """A list without end is no list."""
    names = ",".join(f'"h{number}"' for number in range(TARGETS_MAX + 1))
    with pytest.raises(ValueError, match=f"more than {TARGETS_MAX}"):
        parse(f'[{{"targets": [{names}]}}]'.encode(), JSON)
