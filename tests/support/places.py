"""Where a page of a device stands in the file of its backup, whichever way that is kept.

Of a log by a reader of its own: it knows the format alone (ARCHITECTURE.md; log_format.h) and goes by what its chunks
say, not by the map, so it may be asked while a device writes there.
"""

from __future__ import annotations

import struct
from pathlib import Path

from infiniswap.engine.binding import crc32c

PAGE_BYTES = 4096
_SEGMENT_BLOCKS = 512
_MAP_ENTRIES = 680
_MAGIC, _VERSION = b"ISWLOG01", 1
_SUPERBLOCK = struct.Struct("<8sII16sQQ")  # magic, version, crc, id, generation, size_bytes
_HEADER = struct.Struct("<8sII16sQQQQQII")  # ..., sequence, previous, completed, durable, next, entries, pages
_ENTRY = struct.Struct("<QII")  # page and kind, crc, from
_PAGE, _COPY, _TRIM = 1, 2, 3


def places(backup: Path, size_bytes: int) -> dict[int, int]:
    """Offset in the file by page; of a log those pages alone that have a place. What nobody synced yet counts, too."""
    content = memoryview(backup.read_bytes())
    for block in (0, 1):
        magic, version, _, log_id, _, device_bytes = _SUPERBLOCK.unpack_from(content, block * PAGE_BYTES)
        if magic == _MAGIC:
            assert (version, device_bytes) == (_VERSION, size_bytes)
            return _log_places(content, log_id, size_bytes // PAGE_BYTES)
    return {page: page * PAGE_BYTES for page in range(size_bytes // PAGE_BYTES)}


def place_of(backup: Path, size_bytes: int, page: int) -> int:
    """Of one page; KeyError where it has none."""
    return places(backup, size_bytes)[page]


def _log_places(content: memoryview, log_id: bytes, pages: int) -> dict[int, int]:
    front = 2 + 2 * (-(-pages // _MAP_ENTRIES))
    first_segment = -(-front // _SEGMENT_BLOCKS) * _SEGMENT_BLOCKS
    chunks = []
    for block in range(first_segment, len(content) // PAGE_BYTES):
        header = bytes(content[block * PAGE_BYTES :][:PAGE_BYTES])
        magic, version, crc, found_id, sequence, *_, entries, _ = _HEADER.unpack_from(header)
        ours = (magic, version, found_id) == (b"ISWCHUNK", _VERSION, log_id)
        if ours and crc32c(header[:12] + bytes(4) + header[16:]) == crc:
            chunks.append((sequence, block, entries, header))
    found: dict[int, int] = {}
    for _, at, entries, header in sorted(chunks):
        block = at
        for index in range(entries):
            page_kind, crc, copied_from = _ENTRY.unpack_from(header, _HEADER.size + index * _ENTRY.size)
            page, kind = page_kind & (1 << 56) - 1, page_kind >> 56
            if kind == _TRIM:
                for gone in range(page, page + crc):
                    found.pop(gone, None)
                continue
            block += 1
            # A copy counts while the page is where it was copied from, which may be written over by now.
            source = (first_segment + copied_from - 1) * PAGE_BYTES
            if kind == _PAGE or found.get(page, source) == source:
                found[page] = block * PAGE_BYTES
    return found
