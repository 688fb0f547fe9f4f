"""Sealed pages as the engine makes them, page by page: for recovery, and for whoever checks the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infiniswap.engine import _engine

ffi: Any = _engine.ffi
lib: Any = _engine.lib

KEY_BYTES: int = lib.ISW_SEAL_KEY_BYTES
SALT_BYTES: int = lib.ISW_SEAL_SALT_BYTES
CHECK_BYTES: int = lib.ISW_SEAL_CHECK_BYTES
TAG_BYTES: int = lib.ISW_SEAL_TAG_BYTES
SEAL_DTYPE = np.dtype([("serial", "<u4", (2,)), ("tag", "u1", (TAG_BYTES,))])
_PAGE_BYTES: int = lib.ISW_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class SealsLayout:
    """Offsets in the file of seals, bytes."""

    intents_offset: int
    pages_offset: int
    total_bytes: int


def seals_layout(size_bytes: int) -> SealsLayout:
    """Layout of the file of seals of a device of size_bytes (a multiple of the page; else ValueError)."""
    out = ffi.new("uint64_t[3]")
    if lib.isw_seals_layout(size_bytes, out, out + 1, out + 2) < 0:
        raise ValueError(f"{size_bytes} is no size of a device")
    return SealsLayout(out[0], out[1], out[2])


class Sealer:
    """AES-256-GCM for pages, with keys from a root key and a salt. Not thread-safe."""

    def __init__(self, root: bytes | bytearray, salt: bytes) -> None:
        """root: KEY_BYTES, salt: SALT_BYTES; ValueError for others, OSError where libcrypto has no such cipher."""
        if len(root) != KEY_BYTES or len(salt) != SALT_BYTES:
            raise ValueError("a root key and a salt have 32 bytes each")
        check = ffi.new("uint8_t[]", CHECK_BYTES)
        self._sealer = lib.isw_sealer_new(ffi.from_buffer(root), ffi.from_buffer(salt), check)
        if self._sealer == ffi.NULL:
            raise OSError("libcrypto has no AES-256-GCM")
        self.check = bytes(ffi.buffer(check))  # tells a wrong root key

    def seal(self, page: int, serial: int, plain: bytes) -> tuple[bytes, bytes]:
        """The sealed page and its tag. A serial may be given once in the life of a root key and salt."""
        sealed, tag = ffi.new("uint8_t[]", _PAGE_BYTES), ffi.new("uint8_t[]", TAG_BYTES)
        if lib.isw_sealer_seal(self._sealer, page, serial, ffi.from_buffer(plain), sealed, tag) < 0:
            raise OSError("libcrypto would not seal a page")
        return bytes(ffi.buffer(sealed)), bytes(ffi.buffer(tag))

    def open(self, page: int, serial: int, tag: bytes, sealed: bytes | memoryview) -> bytes | None:
        """What the sealed page reads as; None: it was not sealed so."""
        plain = ffi.new("uint8_t[]", _PAGE_BYTES)
        buffer = ffi.from_buffer(sealed)
        if self._sealer == ffi.NULL or len(buffer) != _PAGE_BYTES or len(tag) != TAG_BYTES:
            return None
        if lib.isw_sealer_open(self._sealer, page, serial, ffi.from_buffer(tag), buffer, plain) < 0:
            return None
        return bytes(ffi.buffer(plain))

    def close(self) -> None:
        """Wipe the keys."""
        lib.isw_sealer_free(self._sealer)
        self._sealer = ffi.NULL
