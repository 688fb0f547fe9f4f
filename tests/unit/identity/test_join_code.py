"""The code of an invitation: it comes back however it is typed, and what was mistyped is found."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infiniswap.identity.join_code import FINGERPRINT_BYTES, SECRET_BYTES, JoinCode
from infiniswap.shared.errors import UserError

CODES = st.builds(
    JoinCode,
    st.binary(min_size=FINGERPRINT_BYTES, max_size=FINGERPRINT_BYTES),
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
)
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@given(CODES, st.sampled_from(["", " ", "-", "  "]), st.booleans(), st.booleans())
def test_it_comes_back(code: JoinCode, separator: str, lower: bool, look_alikes: bool) -> None:
    """Groups, case and characters that look alike make no difference."""
    text = code.text.replace("-", separator)
    if look_alikes:
        text = text.replace("0", "O").replace("1", "l")
    assert JoinCode.parse(f" {text.lower() if lower else text}\n") == code


@given(CODES, st.integers(0, 43), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_found(code: JoinCode, at: int, other: str) -> None:
    """Wherever it stands, whatever it is."""
    plain = code.text.replace("-", "")
    assume(plain[at] != other)
    with pytest.raises(UserError, match="mistyped"):
        JoinCode.parse(plain[:at] + other + plain[at + 1 :])


@given(CODES, st.integers(0, 42))
def test_neighbours_exchanged_are_found(code: JoinCode, at: int) -> None:
    """Two characters in the wrong order."""
    plain = code.text.replace("-", "")
    assume(plain[at] != plain[at + 1])
    with pytest.raises(UserError, match="mistyped"):
        JoinCode.parse(plain[:at] + plain[at + 1] + plain[at] + plain[at + 2 :])


@given(st.text(max_size=80))
def test_anything_else_is_one_line(text: str) -> None:
    """No code, and not what it says: it may be half of one, and lines are kept in logs."""
    with pytest.raises(UserError) as caught:
        JoinCode.parse(text)
    assert "\n" not in str(caught.value)
    assert len(text.strip()) < 2 or text.strip() not in str(caught.value)


def test_what_it_names() -> None:
    """A server by 128 bits of its certificate's SHA-256; each has a secret of its own, which repr does not show."""
    one, other = JoinCode.of(b"certificate"), JoinCode.of(b"certificate")
    assert one.fingerprint == hashlib.sha256(b"certificate").digest()[:16] == other.fingerprint
    assert len(one.secret) == 10
    assert one.secret != other.secret
    assert one.is_of(b"certificate")
    assert not one.is_of(b"certificate ")
    assert repr(one.secret) not in repr(one)


def test_what_is_proven() -> None:
    """One body, for one purpose, to one server, by who has the secret."""
    code = JoinCode(b"f" * 16, b"s" * 10)
    proof = code.proof("join", b"body")
    assert code.is_proven("join", b"body", proof)
    for purpose, body, other in (
        ("joined", b"body", code),
        ("join", b"bodY", code),
        ("join", b"body", JoinCode(b"F" * 16, b"s" * 10)),
        ("join", b"body", JoinCode(b"f" * 16, b"S" * 10)),
    ):
        assert not other.is_proven(purpose, body, proof)
    assert not code.is_proven("join", b"body", "")
    assert not code.is_proven("join", b"body", "\udc80ä")
