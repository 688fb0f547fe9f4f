"""Keeps a process that serves swap from waiting for the memory that it is about to give: rules of swap over userspace.

set_io_flusher: allocations of the thread (and of threads and programs it starts) do not write pages out, prctl(2)
PR_SET_IO_FLUSHER, kernel 5.6. lock_memory: no page of the process is taken away, mlockall(2). set_oom_score_adj: the
out-of-memory killer takes everyone else first, proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError

PR_SET_IO_FLUSHER = 57
MCL_CURRENT = 1
MCL_FUTURE = 2
OOM_SCORE_ADJ_MIN = -1000
STACK_BYTES = 1 << 20
_PTHREAD_ATTR_BYTES = 64  # sizeof(pthread_attr_t) is 56 on x86-64 and 64 on arm64
PF_MEMALLOC_NOIO = 0x80000
PF_LOCAL_THROTTLE = 0x100000
IO_FLUSHER_FLAGS = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE

_libc = ctypes.CDLL(None, use_errno=True)


class ProtectionError(OSError):
    """A rule could not be kept; the message names it and the way out."""


def set_io_flusher() -> bool:
    """Mark the calling thread as one that others' page-outs wait for; False without CAP_SYS_RESOURCE."""
    return bool(_libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)


def prepare() -> None:
    """What must be done before numpy is imported: its linear algebra starts threads of its own, with large buffers."""
    set_io_flusher()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def lock_memory() -> None:
    """Lock all present and future memory; ProtectionError when the limit or a missing capability forbids it."""
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        number = ctypes.get_errno()
        way_out = "raise it with `ulimit -l unlimited` or systemd's LimitMEMLOCK=infinity, or run as root"
        raise ProtectionError(number, f"memory cannot be locked ({os.strerror(number)}): {way_out}")


def limit_stacks(stack_bytes: int = STACK_BYTES) -> None:
    """Give threads that start from now on smaller stacks: locked memory is memory used, however little they need."""
    attributes = ctypes.create_string_buffer(_PTHREAD_ATTR_BYTES)
    _libc.pthread_attr_init(attributes)
    _libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(stack_bytes))
    _libc.pthread_setattr_default_np(attributes)
    threading.stack_size(stack_bytes)


def set_oom_score_adj(value: int = OOM_SCORE_ADJ_MIN, proc: Path = Path("/proc")) -> None:
    """Set the process's oom_score_adj; ProtectionError when lowering it is not allowed."""
    try:
        (proc / "self/oom_score_adj").write_text(f"{value}\n")
    except OSError as error:
        raise ProtectionError(
            error.errno or errno.EPERM, f"oom_score_adj cannot be set to {value}: run as root"
        ) from None


def protect() -> list[str]:
    """Keep every rule that a process can keep by itself; call it at start, before there are threads.

    Returns a sentence per rule that could not be kept but whose breach is no certain deadlock. ProtectionError when
    memory cannot be locked: such a process must not serve swap.
    """
    lacking: list[str] = []
    if not set_io_flusher():
        lacking.append("PR_SET_IO_FLUSHER was refused (CAP_SYS_RESOURCE is missing): page-outs may wait for each other")
    try:
        set_oom_score_adj()
    except ProtectionError as error:
        lacking.append(str(error.strerror))
    limit_stacks()
    lock_memory()
    return lacking


def protect_service(log: logging.Logger) -> None:
    """Keep the rules of a process that serves swap, or that starts one again; what is lacking is logged. UserError."""
    try:
        for lacking in protect():
            log.warning("%s", lacking)
    except ProtectionError as error:
        raise UserError(f"--lock-memory: {error.strerror}", ExitCode.RESOURCES) from None
