"""Sealed pages are AES-256-GCM with keys of RFC 5869, as a second implementation makes them of the standards alone."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.engine.sealer import CHECK_BYTES, SALT_BYTES, TAG_BYTES, Sealer, seals_layout

ROOT, SALT = bytes(range(32)), bytes(range(100, 132))
PLAIN = bytes(i * 7 % 251 for i in range(PAGE_BYTES))


def master(root: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """HKDF-SHA256 (RFC 5869): the master key and the check."""
    extracted = hmac.digest(salt, root, hashlib.sha256)
    first = hmac.digest(extracted, b"infiniswap sealed pages 1\x01", hashlib.sha256)
    second = hmac.digest(extracted, first + b"infiniswap sealed pages 1\x02", hashlib.sha256)
    return first, second[:CHECK_BYTES]


def key_of(number: int) -> bytes:
    """The key for serials whose upper half is number."""
    cipher = Cipher(algorithms.AES(master(ROOT, SALT)[0]), modes.ECB()).encryptor()
    block = number.to_bytes(8, "little") + bytes(7)
    return cipher.update(block + b"\x01") + cipher.update(block + b"\x02")


@pytest.mark.parametrize("serial", [1, 2, 0xFFFFFFFF, 1 << 32, (5 << 32) + 77, (1 << 64) - 1])
@pytest.mark.parametrize("page", [0, 1, (1 << 32) - 1])
def test_as_another_implementation(page: int, serial: int) -> None:
    """What is sealed here is what the other one seals, and each opens what the other sealed."""
    sealer = Sealer(ROOT, SALT)
    sealed, tag = sealer.seal(page, serial, PLAIN)
    nonce, beside = bytes(4) + serial.to_bytes(8, "little"), page.to_bytes(8, "little")
    other = AESGCM(key_of(serial >> 32)).encrypt(nonce, PLAIN, beside)
    assert sealed == other[:PAGE_BYTES]
    assert tag == other[PAGE_BYTES:][:TAG_BYTES]
    assert sealer.open(page, serial, other[PAGE_BYTES:][:TAG_BYTES], other[:PAGE_BYTES]) == PLAIN
    assert sealer.open(page ^ 1, serial, tag, sealed) is None
    assert sealer.open(page, serial ^ 1, tag, sealed) is None
    sealer.close()


def test_check_is_derived_beside_the_key() -> None:
    """The check tells the root key and the salt, and no key follows from it: it is another block of the derivation."""
    sealer = Sealer(ROOT, SALT)
    assert sealer.check == master(ROOT, SALT)[1]
    sealer.close()
    assert len(SALT) == SALT_BYTES


def test_odd_values_are_refused() -> None:
    """Keys, pages and sizes of a wrong length are no crash."""
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(ROOT[:-1], SALT)
    with pytest.raises(ValueError, match="size of a device"):
        seals_layout(PAGE_BYTES + 1)
    sealer = Sealer(ROOT, SALT)
    assert sealer.open(1, 1, bytes(TAG_BYTES), b"short") is None
    assert sealer.open(1, 0, bytes(TAG_BYTES), PLAIN) is None
    sealer.close()


def test_memory_is_what_was_promised() -> None:
    """20 bytes a page beside the table's 8: 7 MiB a GiB."""
    layout = seals_layout(1 << 30)
    assert layout.total_bytes - layout.pages_offset == 5 << 20
