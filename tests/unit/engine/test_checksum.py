"""Page checksums: the engine's are those of another implementation, and no two pages have the same by too many keys."""

from __future__ import annotations

import hashlib
import os
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.engine.checksum import SEED_BYTES, WAYS, PageChecksum, best_way

WORDS, SHIFT = PAGE_BYTES // 4, 8


def by_the_book(seed: bytes, page: bytes) -> int:
    """Two passes of NH (RFC 4418's, w = 32) over pairs of words, folded by a multilinear hash."""
    drawn = hashlib.shake_256(b"infiniswap page checksum 1" + seed).digest(4 * (WORDS + SHIFT) + 40)
    key = [int(word) for word in np.frombuffer(drawn, "<u4", WORDS + SHIFT)]
    fold = [int(word) for word in np.frombuffer(drawn, "<u8", 5, 4 * (WORDS + SHIFT))]
    words = [int(word) for word in np.frombuffer(page, "<u4")]
    halves = []
    for first in (0, SHIFT):
        sums = [(word + secret) % 2**32 for word, secret in zip(words, key[first:], strict=False)]
        nh = sum(a * b for a, b in zip(sums[::2], sums[1::2], strict=True)) % 2**64
        halves += [nh % 2**32, nh >> 32]
    return (fold[4] + sum(secret * half for secret, half in zip(fold, halves, strict=False))) % 2**64 >> 32


@pytest.mark.parametrize("page", [bytes(PAGE_BYTES), b"\xff" * PAGE_BYTES, os.urandom(PAGE_BYTES)])
def test_another_implementation(page: bytes) -> None:
    """With a random seed, in every way that the engine has."""
    seed = os.urandom(SEED_BYTES)
    expected, checksum = by_the_book(seed, page), PageChecksum(seed)
    assert checksum(page) == checksum(bytearray(page)) == expected
    assert [checksum.by(way, memoryview(page)) for way in WAYS] == [expected] * len(WAYS)
    assert best_way() in WAYS.values()


def test_vectors() -> None:
    """Those that the engine's own test has (test_checksum.c)."""
    counted = bytes(range(SEED_BYTES))
    assert by_the_book(bytes(SEED_BYTES), bytes(PAGE_BYTES)) == 0xB87A7FA8
    assert by_the_book(counted, b"\xff" * PAGE_BYTES) == 0xD0D0429E
    assert by_the_book(counted, bytes(i * 7 % 251 for i in range(PAGE_BYTES))) == 0x77A89F16


def test_nothing_but_a_seed_and_a_page() -> None:
    """Other lengths are refused: nothing is read beyond an end."""
    with pytest.raises(ValueError, match="seed"):
        PageChecksum(bytes(31))
    with pytest.raises(ValueError, match="page"):
        PageChecksum(bytes(32))(bytes(4095))


def nh_small(message: tuple[int, ...], keys: NDArray[np.uint8], bits: int, first: int) -> NDArray[np.uint16]:
    """One pass with words of so few bits, for every key at once."""
    total = np.zeros(len(keys), np.uint16)
    for i in range(0, len(message), 2):
        a = (keys[:, first + i].astype(np.uint16) + message[i]) % (1 << bits)
        b = (keys[:, first + i + 1].astype(np.uint16) + message[i + 1]) % (1 << bits)
        total += a * b
    return total % (1 << 2 * bits)


def test_the_bound_of_two_passes_in_small() -> None:
    """Words of 2 bits, two pairs, keys shifted by a pair: no two messages collide by more than 2^-4 of all keys."""
    bits = 2
    keys = np.array(list(product(range(1 << bits), repeat=6)), np.uint8)
    messages = list(product(range(1 << bits), repeat=4))
    both = np.array([nh_small(m, keys, bits, 0) << 8 | nh_small(m, keys, bits, 2) for m in messages])
    for number, hashes in enumerate(both[:-1]):
        collisions = np.count_nonzero(both[number + 1 :] == hashes, axis=1)
        assert collisions.max() <= len(keys) >> 2 * bits


def test_the_bound_of_the_fold_in_small() -> None:
    """Halves of 2 bits, secrets of 4: two inputs share the upper 2 bits of the sum by a quarter of all keys."""
    secrets = np.array(list(product(range(16), repeat=3)))
    inputs = list(product(range(4), repeat=2))
    folded = np.array([(secrets @ np.array([*each, 1])) % 16 >> 2 for each in inputs])
    for number, values in enumerate(folded[:-1]):
        assert np.count_nonzero(folded[number + 1 :] == values, axis=1).max() <= len(secrets) // 4
