"""Goes over more memory than its limit and checks all of it, again and again: block_job.py MIB UNTIL PROGRESS [REST].

Each pass goes over the blocks in another order, checks each against what was written to it last and writes its own:
the number of block and pass, over and over. Once the file UNTIL exists it checks all blocks and ends; PROGRESS
receives the number of passes done. After each block it rests for REST times as long as that took, for what else goes
on in the machine. The standard library alone, because whatever else it imported would take its part of the limit, and
of an emulated machine's time.
"""

import random
import struct
import sys
import time
from pathlib import Path

BLOCK = 256 << 10
STAMP = struct.Struct("<QQ")
PASSES_MAX = 10_000
REST_MAX_S = 2.0


def content(block: int, number: int) -> bytes:
    """What a block holds after a pass."""
    return STAMP.pack(block, number) * (BLOCK // STAMP.size)


def is_right(part: memoryview, block: int, number: int) -> bool:
    """Whether a block holds what a pass left; says what it holds instead."""
    expected = content(block, number)
    if bytes(part) == expected:  # a memoryview would compare byte by byte, which takes longer than paging
        return True
    at = next(at for at in range(0, BLOCK, 16) if part[at : at + 16] != expected[at : at + 16])
    print(f"block {block} of pass {number} holds {part[at : at + 16].hex()} at {at}", flush=True)
    return False


def main() -> int:
    """0 when everything was right to the end."""
    blocks, until, progress = (int(sys.argv[1]) << 20) // BLOCK, Path(sys.argv[2]), Path(sys.argv[3])
    rest = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    fresh = progress.with_suffix(".new")
    order, draw, begun = list(range(blocks)), random.Random(1), time.monotonic()
    memory = memoryview(bytearray(blocks * BLOCK))
    parts = [memory[block * BLOCK : (block + 1) * BLOCK] for block in range(blocks)]
    written = [0] * blocks  # by which pass
    for block in order:
        parts[block][:] = content(block, 0)
    for number in range(1, PASSES_MAX):
        draw.shuffle(order)
        for block in order:
            block_begun = time.monotonic()
            if until.exists():
                if not all(is_right(parts[block], block, written[block]) for block in order):
                    return 1
                taken_s = time.monotonic() - begun
                print(f"all of {blocks * BLOCK >> 20} MiB right after {number - 1} passes, {taken_s:.1f} s")
                return 0
            if not is_right(parts[block], block, written[block]):
                return 1
            parts[block][:] = content(block, number)
            written[block] = number
            time.sleep(min(rest * (time.monotonic() - block_begun), REST_MAX_S))
        fresh.write_text(f"{number}\n")
        fresh.replace(progress)
    return 2


if __name__ == "__main__":
    sys.exit(main())
