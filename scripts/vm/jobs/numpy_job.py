"""Computes on an array larger than its memory limit and checks every number: numpy_job.py MIB UNTIL PROGRESS.

Each pass goes over the array's blocks in another order, checks each against what it must hold by now and adds the
pass's number to it. Ends with a last check once the file UNTIL exists; PROGRESS receives the number of passes done.
"""

import sys
import time
from pathlib import Path

import numpy as np

BLOCK = 1 << 15  # numbers of 8 bytes: 256 KiB at once
PASSES_MAX = 10_000


def main() -> int:
    """0 when everything was right to the end."""
    size, until, progress = int(sys.argv[1]) << 17, Path(sys.argv[2]), Path(sys.argv[3])
    fresh = progress.with_suffix(".new")
    rng = np.random.default_rng(1)
    array = np.arange(size, dtype=np.uint64)
    blocks = size // BLOCK
    added, begun = 0, time.monotonic()
    for number in range(1, PASSES_MAX):
        last = until.exists()
        for block in rng.permutation(blocks):
            part = array[block * BLOCK : (block + 1) * BLOCK]
            expected = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.uint64) + np.uint64(added)
            if not np.array_equal(part, expected):
                where = int(np.flatnonzero(part != expected)[0]) + int(block) * BLOCK
                print(f"pass {number}: number {where} is {array[where]}, not {where + added}", flush=True)
                return 1
            part += np.uint64(number)
        added += number
        fresh.write_text(f"{number}\n")
        fresh.replace(progress)
        if last:
            print(f"{number} passes over {size >> 17} MiB right, {time.monotonic() - begun:.1f} s", flush=True)
            return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
