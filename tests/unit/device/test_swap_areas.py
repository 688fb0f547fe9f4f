"""Only a log that holds a swap area is told as one: whatever else is there may be somebody's data."""

from __future__ import annotations

import os
from pathlib import Path

from infiniswap.device.swap_areas import swap_areas
from infiniswap.engine.log_binding import Log, format_log, log_file_bytes

SIZE_BYTES = 4 << 20
PAGE_BYTES = 4096
HEADER = bytes(PAGE_BYTES - 10) + b"SWAPSPACE2"


def make_log(path: Path, first_page: bytes | None) -> None:
    """A log of a device that begins so; None: nothing was ever written."""
    with path.open("w+b") as file:
        os.truncate(file.fileno(), log_file_bytes(SIZE_BYTES))
        format_log(file.fileno(), SIZE_BYTES)
        log = Log(file.fileno())
        if first_page is not None:
            log.write(0, first_page)
            log.sync()
        log.close()


def test_logs_that_are_swap_areas(tmp_path: Path) -> None:
    """Those of two shards are found; a file system, a hibernated system, an empty, a damaged and a raw one are not."""
    make_log(tmp_path / "swap0.log~0", HEADER)
    make_log(tmp_path / "swap0.log~1", HEADER)
    make_log(tmp_path / "files", bytes(1080) + b"\x53\xef" + bytes(PAGE_BYTES - 1082))
    make_log(tmp_path / "hibernated", bytes(PAGE_BYTES - 10) + b"S1SUSPEND\0")
    make_log(tmp_path / "empty", None)
    make_log(tmp_path / "damaged", HEADER)
    with (tmp_path / "damaged").open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * (2 * PAGE_BYTES - 8))
    (tmp_path / "raw").write_bytes(HEADER)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("swap0.log~0")
    os.mkfifo(tmp_path / "fifo")
    assert list(swap_areas(tmp_path)) == ["swap0.log~0", "swap0.log~1"]
