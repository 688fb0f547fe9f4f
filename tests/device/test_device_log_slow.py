"""A log on a slow disk takes what it moves from donors and memory, by itself; and nothing is another page for it."""

from __future__ import annotations

import itertools
import random
import subprocess
import time
from pathlib import Path

from tests.support.backups import read_backup
from tests.support.services import Services

MIB = 1 << 20
SIZE = 8 * MIB
PAGE_BYTES = 4096
LIMIT_S = 90
SOURCE = Path(__file__).with_name("slow_reads.c")


def test_what_moves_is_lent(services: Services, short_path: Path) -> None:
    """Cleaning takes pages from the donor once reads prove slow; device, copies and log are what was written."""
    slow = short_path / "slow_reads.so"
    flags = ["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-D_GNU_SOURCE"]
    subprocess.run(["gcc", *flags, "-o", slow, SOURCE], check=True, timeout=120)
    options = ("--backup-layout", "log", "--backup-engine", "threads", "--map", "eager")
    prefix = ("env", f"LD_PRELOAD={slow}")
    device = services.device("vol", *options, size="8MiB", peers=[services.daemon()], prefix=prefix)
    model, draw = bytearray(SIZE), random.Random(5)
    limit = time.monotonic() + LIMIT_S
    with device.connect() as client:
        # How often the cleaner finds its donor quick, and its disk slow, is the machine's matter.
        for turn in itertools.count():
            pages = draw.randint(1, 32)
            first = draw.randrange(SIZE // PAGE_BYTES - pages) * PAGE_BYTES
            part = slice(first, first + pages * PAGE_BYTES)
            model[part] = draw.randbytes(pages * PAGE_BYTES)
            client.write(first, bytes(model[part]))
            if turn % 100:
                continue
            status = device.get("/v1/status")
            if status["log_borrowed_pages"] > 2000:
                break
            assert time.monotonic() < limit, status
        client.flush()
        assert b"".join(client.read(at, MIB) for at in range(0, SIZE, MIB)) == model
    done = services.command("device", "verify", "vol")
    assert done.returncode == 0, done.stdout + done.stderr
    assert device.stop() == 0
    assert read_backup(device.backup, SIZE) == model
