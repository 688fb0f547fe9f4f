"""Goes over more memory than its limit and checks all of it, again and again: block_job.py MIB UNTIL PROGRESS.

Each pass goes over the blocks in another order, checks each against what the pass before wrote and writes its own: the
number of block and pass, over and over. Ends with a last pass once the file UNTIL exists; PROGRESS receives the number
of passes done. The standard library alone, because whatever else it imported would take its part of the limit, and of
an emulated machine's time.
"""

import random
import struct
import sys
import time
from pathlib import Path

BLOCK = 256 << 10
STAMP = struct.Struct("<QQ")
PASSES_MAX = 10_000


def content(block: int, number: int) -> bytes:
    """What a block holds after a pass."""
    return STAMP.pack(block, number) * (BLOCK // STAMP.size)


def main() -> int:
    """0 when everything was right to the end."""
    blocks, until, progress = (int(sys.argv[1]) << 20) // BLOCK, Path(sys.argv[2]), Path(sys.argv[3])
    fresh = progress.with_suffix(".new")
    order, draw, begun = list(range(blocks)), random.Random(1), time.monotonic()
    memory = memoryview(bytearray(blocks * BLOCK))
    for block in order:
        memory[block * BLOCK : (block + 1) * BLOCK] = content(block, 0)
    for number in range(1, PASSES_MAX):
        last = until.exists()
        draw.shuffle(order)
        for block in order:
            part = memory[block * BLOCK : (block + 1) * BLOCK]
            expected = content(block, number - 1)
            if part != expected:
                at = next(at for at in range(0, BLOCK, 16) if part[at : at + 16] != expected[at : at + 16])
                print(f"pass {number}: block {block} holds {part[at : at + 16].hex()} at {at}", flush=True)
                return 1
            part[:] = content(block, number)
        fresh.write_text(f"{number}\n")
        fresh.replace(progress)
        if last:
            print(f"{number} passes over {blocks * BLOCK >> 20} MiB right, {time.monotonic() - begun:.1f} s")
            return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
