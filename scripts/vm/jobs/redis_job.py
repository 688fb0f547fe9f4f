"""Fills a redis-server and reads every key back: redis_job.py SOCKET KEYS VALUE_BYTES fill|check.

Speaks RESP (redis.io/docs/reference/protocol-spec) itself, a batch of commands at a time.
"""

import hashlib
import random
import socket
import sys

BATCH = 200


def value(number: int, size: int) -> bytes:
    """What key `number` holds: random bytes that can be told anew."""
    seed = hashlib.sha256(b"%d" % number).digest()
    return (seed * (size // len(seed) + 1))[:size]


def command(*words: bytes) -> bytes:
    """A command as an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def main() -> int:
    """0 when redis answered everything right."""
    keys, size, verb = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    numbers = list(range(keys))
    if verb == "check":
        random.Random(2).shuffle(numbers)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        answers = sock.makefile("rb")
        for first in range(0, keys, BATCH):
            batch = numbers[first : first + BATCH]
            if verb == "fill":
                sock.sendall(b"".join(command(b"SET", b"key:%d" % n, value(n, size)) for n in batch))
            else:
                sock.sendall(b"".join(command(b"GET", b"key:%d" % n) for n in batch))
            for number in batch:
                line = answers.readline()
                good = line == (b"+OK\r\n" if verb == "fill" else b"$%d\r\n" % size)
                if good and verb == "check":
                    good = answers.read(size + 2)[:size] == value(number, size)
                if not good:
                    print(f"{verb} key {number}: {line!r}", flush=True)
                    return 1
    print(f"{verb}: {keys} keys of {size} bytes right", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
