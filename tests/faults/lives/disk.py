"""The disk under a device, and its state directory and boot: faults on command in the real process (disk_shim.c)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from tests.support.load import PAGE_BYTES

SOURCE = Path(__file__).with_name("disk_shim.c")
LIBRARY = SOURCE.parents[3] / "build" / "lives" / "disk_shim.so"
_PAGES_MAX = 16384
_PATH_BYTES = 256


class CONTROL(ctypes.Structure):
    """struct control of disk_shim.c."""

    _fields_ = (
        ("image", ctypes.c_char * _PATH_BYTES),
        ("shadow", ctypes.c_char * _PATH_BYTES),
        ("state", ctypes.c_char * _PATH_BYTES),
        ("boot_id", ctypes.c_char * _PATH_BYTES),
        ("image_dev", ctypes.c_uint64),
        ("image_ino", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("write_errno", "write_every", "read_errno", "read_every")),
        *((name, ctypes.c_int32) for name in ("sync_errno", "sync_left", "delay_us", "delay_every")),
        *((name, ctypes.c_int32) for name in ("state_errno", "state_nth", "state_all")),
        *((name, ctypes.c_uint32) for name in ("writes", "reads", "syncs", "state_ops", "faults")),
        ("dirty", ctypes.c_uint8 * _PAGES_MAX),
    )


def build() -> Path:
    """The preloaded library, compiled when its source is newer."""
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        new = LIBRARY.with_name(f"{LIBRARY.name}.{os.getpid()}")
        flags = ["-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", new, SOURCE], check=True, timeout=120)
        new.rename(LIBRARY)
    return LIBRARY


def run_preloaded(module: str, arguments: list[str]) -> None:
    """Become `python -m module arguments` with the library preloaded, unless that is so already."""
    library = str(build())
    if os.environ.get("LD_PRELOAD") != library:
        # One thread alone: what is imported must not leave others behind that a fork would lose.
        environment = {**os.environ, "LD_PRELOAD": library, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


class Disk:
    """The image with its shadow (what a power cut leaves), and the control page of one device."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Everything is in folder and works."""
        self.image = folder / "vol.img"
        self.control_path = folder / "control"
        self._shadow = folder / "shadow.img"
        self._boot_id = folder / "boot_id"
        self._random = Random(seed)
        with self._shadow.open("wb") as file:
            file.truncate(_PAGES_MAX * PAGE_BYTES)
        with self.control_path.open("w+b") as file:
            file.truncate(ctypes.sizeof(CONTROL))
            self._mapping = mmap.mmap(file.fileno(), ctypes.sizeof(CONTROL))
        self.control = CONTROL.from_buffer(self._mapping)
        self.control.image = os.fsencode(self.image)
        self.control.shadow = os.fsencode(self._shadow)
        self.control.state = os.fsencode(folder / "state")
        self.control.boot_id = os.fsencode(self._boot_id)
        self.new_boot()

    def new_boot(self) -> None:
        """From now on programs see another boot id."""
        digits = f"{self._random.getrandbits(128):032x}"
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        self._boot_id.write_text("-".join(parts) + "\n")

    def set(self, **fields: int) -> None:
        """Faults, as the fields of the control page."""
        for name, value in fields.items():
            setattr(self.control, name, value)

    def heal(self) -> None:
        """Nothing fails any more."""
        for name in ("write_errno", "read_errno", "sync_errno", "delay_us", "state_errno", "state_nth", "state_all"):
            setattr(self.control, name, 0)

    def fail_state(self, nth: int, *, all_after: bool, error: int = errno.ENOSPC) -> None:
        """The Nth change in the state directory from now fails, and all that follow."""
        self.set(state_errno=error, state_nth=self.control.state_ops + nth, state_all=all_after)

    def power_cut(self) -> int:
        """What was written since the last fdatasync is there or not, page by page; returns how many pages went."""
        gone = 0
        with self.image.open("r+b") as image, self._shadow.open("r+b") as shadow:
            pages = -(-os.fstat(image.fileno()).st_size // PAGE_BYTES)
            for page in range(pages):
                offset = page * PAGE_BYTES
                durable = os.pread(shadow.fileno(), PAGE_BYTES, offset)
                found = os.pread(image.fileno(), PAGE_BYTES, offset)
                if found == durable[: len(found)]:
                    continue
                if self.control.dirty[page] and self._random.random() < 0.5:
                    os.pwrite(shadow.fileno(), found, offset)
                else:
                    os.pwrite(image.fileno(), durable[: len(found)], offset)
                    gone += 1
        ctypes.memset(ctypes.addressof(self.control.dirty), 0, _PAGES_MAX)
        return gone

    def close(self) -> None:
        """Let go of the control page."""
        del self.control
        self._mapping.close()
