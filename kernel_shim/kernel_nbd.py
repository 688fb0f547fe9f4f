"""Calls on kernel nbd through a worker process, each with a deadline and with errors a user can act on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infiniswap.kernel_shim import commands, kernel_call
from infiniswap.kernel_shim.kernel_call import CALL_TIMEOUT_S, KernelError, NoAnswerError
from infiniswap.shared.errors import ExitCode, UserError

BLOCK_BYTES = 4096
KERNEL_MIN = (5, 14)  # NBD_ATTR_BACKEND_IDENTIFIER


def call(request: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S, *, fds: Sequence[int] = ()) -> dict[str, Any]:
    """One operation of worker.py. KernelError when the kernel refuses, UserError when it does not answer in time."""
    try:
        return kernel_call.call(request, timeout_s, fds=fds)
    except NoAnswerError as error:
        if not error.timed_out:
            raise UserError(f"nbd {request['operation']} failed: {error}", ExitCode.FAILED) from None
        raise UserError(
            f"the kernel has not finished nbd {request['operation']} after {timeout_s:g} s; see `dmesg | grep nbd`, "
            "and run `infiniswap device detach` when it has",
            ExitCode.FAILED,
        ) from None


def kernel_version(release: str) -> tuple[int, int]:
    """(major, minor) of uname's release; (0, 0) when it does not look like one."""
    parts = release.replace("-", ".").split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def require_root(what: str) -> None:
    """UserError, which says what was to be done, unless this process is root's."""
    if os.geteuid() != 0:
        raise UserError(f"{what} a device needs root: run it with sudo", ExitCode.RESOURCES)


def require_kernel(*, timeout_s: float = CALL_TIMEOUT_S, root: Path = Path("/")) -> None:
    """UserError unless this process may attach devices here; loads module nbd when it is not."""
    require_root("attaching")
    release = os.uname().release
    if kernel_version(release) < KERNEL_MIN:
        raise UserError(
            f"kernel {release} is too old for attach: 5.14 is needed; nbd-client works on it", ExitCode.REFUSED
        )
    if (root / "sys/module/nbd").exists():
        return
    # udev opens every node that appears; devices made beforehand and partition scans race with CONNECT.
    done = commands.run(["modprobe", "nbd", "nbds_max=0", "max_part=0"], timeout_s)
    if done.code != 0 and not (root / "sys/module/nbd").exists():
        raise UserError(
            f"this kernel has no nbd module ({done.reason}): install the distribution's kernel image and run "
            "`modprobe nbd nbds_max=0 max_part=0`",
            ExitCode.NOT_FOUND,
        )


def connect(
    sockets: Sequence[socket.socket],
    *,
    index: int | None,
    size_bytes: int,
    server_flags: int,
    timeout_s: int,
    dead_conn_timeout_s: int,
    identifier: str,
    call_timeout_s: float = CALL_TIMEOUT_S,
) -> int:
    """CONNECT; returns the device's number. UserError for what the user can mend."""
    descriptors = [sock.fileno() for sock in sockets]
    request = {
        "operation": "connect",
        "sockets": descriptors,
        "index": index,
        "size_bytes": size_bytes,
        "block_size_bytes": BLOCK_BYTES,
        "server_flags": server_flags,
        "timeout_s": timeout_s,
        "dead_conn_timeout_s": dead_conn_timeout_s,
        "identifier": identifier,
    }
    try:
        return int(call(request, call_timeout_s, fds=descriptors)["index"])
    except KernelError as error:
        raise _explained(error, index) from None


def _explained(error: KernelError, index: int | None) -> UserError:
    if error.number == errno.EBUSY and index is not None:
        return UserError(f"/dev/nbd{index} is in use: choose another --index, or auto", ExitCode.IN_USE)
    if error.number in (errno.EPERM, errno.EACCES):
        return UserError(
            "the kernel refuses: attaching needs CAP_SYS_ADMIN in the initial user namespace", ExitCode.RESOURCES
        )
    if error.number in (errno.ENOENT, errno.ENOTSUP):
        return UserError(
            "the kernel has no nbd netlink family: run `modprobe nbd nbds_max=0 max_part=0`", ExitCode.NOT_FOUND
        )
    return UserError(f"the kernel refused to attach: {error}; see `dmesg | grep nbd`", ExitCode.FAILED)


def disconnect(index: int, *, exclusive: bool, timeout_s: float = CALL_TIMEOUT_S) -> None:
    """DISCONNECT. exclusive: refuse with UserError IN_USE when anyone uses the device."""
    node = f"/dev/nbd{index}" if exclusive else None
    try:
        call({"operation": "disconnect", "index": index, "node": node}, timeout_s)
    except KernelError as error:
        if error.number == errno.EBUSY:
            raise UserError(
                f"/dev/nbd{index} is in use: unmount it first; nothing was disconnected", ExitCode.IN_USE
            ) from None
        raise UserError(f"the kernel refused to disconnect /dev/nbd{index}: {error}", ExitCode.FAILED) from None
