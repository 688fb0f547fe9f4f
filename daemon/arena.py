"""The daemon's slab memory: one memfd, mapped once, cut into blocks by the buddy allocator.

A memfd (memfd_create(2)) is memory that the kernel fills in page by page on first touch and takes back by punching
holes. Freed blocks are punched out: the host has its memory back at once, and who gets the block next sees zeroes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

from infiniswap.daemon.allocator import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BuddyAllocator
from infiniswap.shared.errors import ExitCode, UserError

log = logging.getLogger(__name__)

HUGE_PAGES_FOLDER = Path("/sys/kernel/mm/hugepages")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_FALLOC_FL_PUNCH_HOLE = 2
_MADV_POPULATE_WRITE = 23  # linux/mman.h
_MFD_HUGE_SHIFT = 26  # linux/memfd.h: log2 of the huge page size goes above this bit


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free length bytes of the file at offset, which read as zeroes afterwards (fallocate(2)); OSError otherwise.

    By ctypes, because the os module has no fallocate with a mode; the GIL is released meanwhile.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mode = ctypes.c_int(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE)
    while libc.fallocate64(ctypes.c_int(fd), mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, f"punching {length} bytes at {offset}: {os.strerror(code)}")


def huge_page_bytes(folder: Path = HUGE_PAGES_FOLDER) -> int:
    """The smallest huge page of this host that a slab can be made of; UserError when it has none."""
    names = folder.glob("hugepages-*kB") if folder.is_dir() else []
    sizes = [int(found[1]) * 1024 for name in names if (found := re.fullmatch(r"hugepages-(\d+)kB", name.name))]
    usable = [size for size in sizes if BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX]
    if not usable:
        raise UserError("this kernel has no huge pages: start without --huge-pages", ExitCode.RESOURCES)
    return min(usable)


def free_huge_bytes(folder: Path = HUGE_PAGES_FOLDER) -> int:
    """Memory in huge pages that nobody has taken; UserError when the kernel has none."""
    page_bytes = huge_page_bytes(folder)
    try:
        pages = int((folder / f"hugepages-{page_bytes >> 10}kB" / "free_hugepages").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the huge pages of this host cannot be counted: {error}", ExitCode.RESOURCES) from error
    return pages * page_bytes


class Arena:
    """total_bytes of memory, handed out in blocks that are zero when they are handed out.

    Invariant: a block is free in the allocator only when its memory reads as zeroes (release() clears it before that).
    Not thread-safe, but for clear(), which may run in another thread on a block that nobody else touches, and for
    populate().
    """

    def __init__(
        self,
        total_bytes: int,
        *,
        huge_pages: bool = False,
        punch: Callable[[int, int, int], None] = punch_hole,
        fd: int | None = None,
    ) -> None:
        """total_bytes: a multiple of 1 MiB, and of the huge page if those are wanted. UserError without memory.

        fd: an arena's from before, of the same size and pages, which belongs to this one now. What is in it stays, and
        all of it is free in the allocator though it does not read as zeroes yet, which restart.take_up() sees to.
        """
        self.page_bytes = huge_page_bytes() if huge_pages else mmap.PAGESIZE
        self.huge_pages = huge_pages
        minimum = max(BLOCK_BYTES_MIN, self.page_bytes)
        if total_bytes < minimum or total_bytes % minimum:
            raise UserError(f"the memory to lend ({total_bytes} bytes) must be a positive multiple of {minimum} bytes")
        self.total_bytes = total_bytes
        self._punch = punch
        try:
            self.fd = self._create() if fd is None else fd
            try:
                self._map = mmap.mmap(self.fd, total_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            except BaseException:
                os.close(self.fd)
                raise
        except (OSError, ValueError) as error:
            raise self._no_memory(error) from error
        self.allocator = BuddyAllocator(total_bytes, minimum_bytes=minimum)
        for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):
            with contextlib.suppress(OSError):  # a kernel without the advice loses only the nicety
                self._map.madvise(advice)
        self._base = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._base)

    def _create(self) -> int:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if self.huge_pages:
            flags |= os.MFD_HUGETLB | (self.page_bytes.bit_length() - 1) << _MFD_HUGE_SHIFT
        fd = os.memfd_create("infiniswap-slabs", flags)
        try:
            os.ftruncate(fd, self.total_bytes)
            # Nobody who gets hold of the descriptor can shrink the file and turn the mapping into a SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def occupied_bytes(self) -> int:
        """Memory of the host that the arena really occupies now."""
        return os.fstat(self.fd).st_blocks * 512

    def clear(self, offset: int, length: int) -> None:
        """Make the block read as zeroes and give its memory back to the host; OSError when neither way works.

        Huge pages stay with the arena: punched out, their reservation would be lost, and the next touch a SIGBUS.
        """
        if not self.huge_pages:
            try:
                self._punch(self.fd, offset, length)
            except OSError as error:
                log.warning("%s; zeroing it by hand", error)
            else:
                return
        ctypes.memset(self.address + offset, 0, length)

    def populate(self, offset: int, length: int) -> None:
        """Have the block's pages there, whatever is in them; OSError when the host has no memory for them.

        By ctypes, which lets go of the GIL: registering memory whose pages are there takes a fraction of the time.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self.address + offset)
        while libc.madvise(address, ctypes.c_size_t(length), ctypes.c_int(_MADV_POPULATE_WRITE)) != 0:
            code = ctypes.get_errno()
            if code == errno.EINVAL:  # before Linux 5.14: allocates the pages just as well, and changes none
                os.posix_fallocate(self.fd, offset, length)
                return
            if code not in (errno.EINTR, errno.EAGAIN):
                raise OSError(code, f"populating {length} bytes at {offset}: {os.strerror(code)}")

    def close(self) -> None:
        """Unmap and free everything; nobody may touch the memory any more."""
        if self.fd < 0:
            return
        del self._base
        self._map.close()
        os.close(self.fd)
        self.fd = -1

    def _no_memory(self, error: Exception) -> UserError:
        if self.huge_pages:
            pages = -(-self.total_bytes // self.page_bytes)
            return UserError(
                f"not enough free huge pages: {pages} of {self.page_bytes >> 10} kB are needed ({error}); "
                f"reserve them with 'sysctl vm.nr_hugepages={pages}' or start without --huge-pages",
                ExitCode.RESOURCES,
            )
        return UserError(f"cannot take {self.total_bytes} bytes of memory: {error}", ExitCode.RESOURCES)
