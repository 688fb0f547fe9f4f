"""A program that takes memory when it is told to, and knows what is in it: python -m tests.support.hog.

Reads one order a line: "MIB SECONDS" takes so much, spread over so long (0: as fast as the kernel can give it), "check"
looks at every byte. Answers each with "done" or "wrong". Takes HOG_MIB_MAX at most, and ends with its stdin.
"""

from __future__ import annotations

import mmap
import sys
import time

MIB = 1 << 20
HOG_MIB_MAX = 4096


def take(held: list[memoryview], mib: int, seconds: float) -> None:
    """Another mib, within seconds; what is taken at once is written to afterwards."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    begun_s = time.monotonic()
    # One system call that touches every page: no program gets memory faster on one core.
    memory = memoryview(mmap.mmap(-1, mib * MIB, flags=flags if seconds else flags | mmap.MAP_POPULATE))
    for count in range(mib):
        memory[count * MIB : (count + 1) * MIB] = content(len(held))
        held.append(memory[count * MIB : (count + 1) * MIB])
        if seconds:
            time.sleep(max(0.0, begun_s + seconds * (count + 1) / mib - time.monotonic()))


def content(number: int) -> bytes:
    """What stands in the MiB of that number."""
    return (number + 1).to_bytes(8, "little") * (MIB // 8)


def main() -> int:
    """0 at the end of the orders."""
    held: list[memoryview] = []
    for line in sys.stdin:
        match line.split():
            case ["check"]:
                right = all(memory == content(number) for number, memory in enumerate(held))
                print("done" if right else "wrong", flush=True)
            case [mib, seconds] if len(held) + int(mib) <= HOG_MIB_MAX:
                take(held, int(mib), float(seconds))
                print("done", flush=True)
            case _:
                print("wrong", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
