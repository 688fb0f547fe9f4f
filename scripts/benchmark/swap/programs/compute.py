"""A numpy job: goes over the blocks of an array in random order, checks each and adds to it.

Usage: compute.py MIB. Fills an array of MIB, says `ready`; then for each line `SECONDS` on stdin computes for so long
and answers with a JSON object on one line: operations (blocks of 256 KiB), seconds, p50_us, p99_us. Ends at the end of
stdin.
"""

import json
import sys
import time

import numpy as np

BLOCK = 1 << 15  # numbers of 8 bytes


def main() -> int:
    """0 when every number was what it should be."""
    blocks = int(sys.argv[1]) << 2
    array = np.arange(blocks * BLOCK, dtype=np.uint64)
    added = np.zeros(blocks, np.uint64)
    steps = np.arange(BLOCK, dtype=np.uint64)
    rng = np.random.default_rng(1)
    print("ready", flush=True)
    for line in sys.stdin:
        times_ns: list[int] = []
        begun_s = time.monotonic()
        end_s = begun_s + float(line)
        while time.monotonic() < end_s:
            block = int(rng.integers(blocks))
            before_ns = time.perf_counter_ns()
            part = array[block * BLOCK : (block + 1) * BLOCK]
            if not np.array_equal(part, steps + (np.uint64(block * BLOCK) + added[block])):
                print(f"block {block} is wrong", file=sys.stderr)
                return 1
            part += np.uint64(1)
            added[block] += np.uint64(1)
            times_ns.append(time.perf_counter_ns() - before_ns)
        p50, p99 = np.percentile(times_ns, [50, 99]) / 1000 if times_ns else (0.0, 0.0)
        took_s = time.monotonic() - begun_s
        answer = {"operations": len(times_ns), "seconds": took_s, "p50_us": float(p50), "p99_us": float(p99)}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
