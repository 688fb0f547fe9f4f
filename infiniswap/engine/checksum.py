"""The checksum of a page as the engine makes it: for recovery, and for whoever checks the engine."""

from __future__ import annotations

from typing import Any

from infiniswap.engine import _engine

ffi: Any = _engine.ffi
lib: Any = _engine.lib

SEED_BYTES: int = lib.ISW_CHECKSUM_SEED_BYTES
WAYS = {lib.ISW_CHECKSUM_PLAIN: "plain", lib.ISW_CHECKSUM_SSE2: "sse2", lib.ISW_CHECKSUM_AVX2: "avx2"}
_PAGE_BYTES: int = lib.ISW_PAGE_BYTES


class PageChecksum:
    """Checksums of pages by the key that a seed leads to: who does not know that cannot meet one on purpose."""

    def __init__(self, seed: bytes) -> None:
        """seed: SEED_BYTES; ValueError for others, OSError where libcrypto has no SHAKE256."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        self._key = ffi.new("struct isw_checksum_key *")
        if lib.isw_checksum_expand(ffi.from_buffer(seed), self._key) < 0:
            raise OSError("libcrypto has no SHAKE256")

    def __call__(self, page: bytes | bytearray | memoryview) -> int:
        """Of one page, 32 bits; ValueError for another length."""
        return int(lib.isw_checksum(self._key, _whole(page)))

    def by(self, way: int, page: bytes | bytearray | memoryview) -> int:
        """The same by one of WAYS, or by the best that this processor has."""
        return int(lib.isw_checksum_by(way, self._key, _whole(page)))


def best_way() -> str:
    """How this processor does it, one of WAYS."""
    return WAYS[lib.isw_checksum_best()]


def _whole(page: bytes | bytearray | memoryview) -> Any:
    buffer = ffi.from_buffer(page)
    if len(buffer) != _PAGE_BYTES:
        raise ValueError(f"a page has {_PAGE_BYTES} bytes")
    return buffer
