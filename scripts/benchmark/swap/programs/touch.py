"""Touches pages at random and times each touch that had to wait for a page to come back from swap.

Usage: touch.py MIB. Fills MIB of memory, says `ready`; then for each line `SECONDS` on stdin touches pages for so
long and answers with a JSON object on one line: operations (touches that faulted), seconds, p50_us, p99_us. Each page
is checked; one in four is changed. Half of a page is random: compression makes one page of two. Ends at the end of
stdin.
"""

import json
import mmap
import random
import resource
import sys
import time

PAGE = 4096
RANDOM_BYTES = PAGE // 2
CHANGED = 0.25


def major_faults() -> int:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def percentile(ordered: list[int], share: float) -> float:
    """Of nanoseconds in ascending order, as microseconds; 0 of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 if ordered else 0.0


def main() -> int:
    """0 when every page held what it should."""
    pages = int(sys.argv[1]) << 8
    memory = mmap.mmap(-1, pages * PAGE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    versions = [0] * pages
    draw = random.Random(1)
    for page in range(pages):
        memory[page * PAGE : page * PAGE + 8] = page.to_bytes(8, "little")
        memory[(page + 1) * PAGE - RANDOM_BYTES : (page + 1) * PAGE] = draw.randbytes(RANDOM_BYTES)
    print("ready", flush=True)
    for line in sys.stdin:
        waits_ns: list[int] = []
        begun_s = time.monotonic()
        end_s = begun_s + float(line)
        faults = major_faults()
        while time.monotonic() < end_s:
            page = draw.randrange(pages)
            at = page * PAGE
            before_ns = time.perf_counter_ns()
            value = memory[at : at + 8]
            took_ns = time.perf_counter_ns() - before_ns
            now = major_faults()
            if now != faults:
                waits_ns.append(took_ns)
            if int.from_bytes(value, "little") != page + (versions[page] << 32):
                print(f"page {page} holds {value!r}", file=sys.stderr)
                return 1
            if draw.random() < CHANGED:
                versions[page] += 1
                memory[at : at + 8] = (page + (versions[page] << 32)).to_bytes(8, "little")
            faults = now
        waits_ns.sort()
        answer = {
            "operations": len(waits_ns),
            "seconds": time.monotonic() - begun_s,
            "p50_us": percentile(waits_ns, 0.5),
            "p99_us": percentile(waits_ns, 0.99),
        }
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
