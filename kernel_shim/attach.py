"""`infiniswap device attach`: from a device service's UNIX socket to /dev/nbdN, and to swap when that is wanted."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infiniswap.kernel_shim import journal, kernel_nbd, reserve, swap, sysfs, users, zswap
from infiniswap.kernel_shim.attach_options import CONNECTIONS_DEFAULT, CONNECTIONS_MAX, DEAD_CONN_TIMEOUT_S_DEFAULT
from infiniswap.kernel_shim.journal import Note
from infiniswap.kernel_shim.sysfs import NbdDevice
from infiniswap.nbd import client
from infiniswap.nbd.protocol import TransmissionFlag
from infiniswap.shared.errors import ExitCode, UserError

TIMEOUT_S_DEFAULT = 10
NEGOTIATION_TIMEOUT_S = 30.0
NODE_TIMEOUT_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """What to attach and how.

    index None: the kernel's choice. timeout_s: a request unanswered for so long is sent again on another socket (and
    its socket given up); it must exceed what the service needs to fail over by itself. dead_conn_timeout_s: how long
    requests wait for a restarted service before they fail, which kills programs whose pages are out. deadline_ms:
    within that the service answers every request, None where it does not tell. zswap: what is asked of the tier before
    it, None for nothing.
    """

    name: str
    socket_path: Path
    runtime_dir: Path
    index: int | None = None
    connections: int = CONNECTIONS_DEFAULT
    timeout_s: int = TIMEOUT_S_DEFAULT
    dead_conn_timeout_s: int = DEAD_CONN_TIMEOUT_S_DEFAULT
    swap: bool = False
    priority: int | None = None
    discard: bool = True
    deadline_ms: int | None = None
    zswap: zswap.Wanted | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """A device that the kernel now has."""

    device: NbdDevice
    swap: bool


@dataclass(frozen=True, slots=True)
class KernelConnections:
    """Connections in transmission, for the kernel, and what the export is like; flags as in the NBD protocol."""

    sockets: tuple[socket.socket, ...]
    size_bytes: int
    flags: int

    def close(self) -> None:
        """Let go of our side; the kernel keeps its own reference to those it took."""
        for sock in self.sockets:
            sock.close()


def timeout_for(deadline_ms: int | None) -> int:
    """The kernel's time-out in seconds for a service that answers every request within deadline_ms.

    Twice as long: the kernel counts from when it hands a request to the socket, and gives up the whole connection.
    """
    return max(TIMEOUT_S_DEFAULT, math.ceil(2 * (deadline_ms or 0) / 1000))


def too_short(timeout_s: float, deadline_ms: int | None) -> bool:
    """Whether the kernel would give connections up before the service has had its time to answer by other ways."""
    return deadline_ms is not None and timeout_s * 1000 <= deadline_ms


def check(request: AttachRequest) -> None:
    """UserError for values out of range."""
    if not 1 <= request.connections <= CONNECTIONS_MAX:
        raise UserError(f"--connections must be between 1 and {CONNECTIONS_MAX}")
    if request.timeout_s < 1:
        # Without a time-out the kernel never gives a socket up, so a killed service could never be replaced.
        raise UserError("--timeout must be at least 1 second")
    if too_short(request.timeout_s, request.deadline_ms):
        deadline_s, right = (request.deadline_ms or 0) / 1000, timeout_for(request.deadline_ms)
        raise UserError(
            f"--timeout {request.timeout_s} is not longer than the {deadline_s:g} s that a request may take: the "
            f"kernel would give up connections that are well; {right} is right"
        )
    if request.dead_conn_timeout_s <= request.timeout_s:
        raise UserError("--dead-conn-timeout must be longer than --timeout, or a restart would come too late")
    if request.priority is not None and not 0 <= request.priority <= swap.PRIORITY_MAX:
        raise UserError(f"--priority must be between 0 and {swap.PRIORITY_MAX}")
    if request.priority is not None and not request.swap:
        raise UserError("--priority is for --swap only")
    if request.zswap is not None:
        if not request.swap:
            raise UserError("--zswap is for --swap only")
        zswap.check(request.zswap)


async def negotiate(
    socket_path: Path, name: str, connections: int, timeout_s: float = NEGOTIATION_TIMEOUT_S
) -> KernelConnections:
    """Open connections to the device service and choose its export on each. UserError when the service is not there.

    Fewer than asked for when the export does not let clients use several connections.
    """
    try:
        return await _negotiate(socket_path, name, connections, timeout_s)
    except (client.NegotiationError, OSError) as error:
        raise _unreachable(error, socket_path, name) from None


async def _negotiate(socket_path: Path, name: str, connections: int, timeout_s: float) -> KernelConnections:
    sockets: list[socket.socket] = []
    size_bytes, flags = 0, 0
    try:
        async with asyncio.timeout(timeout_s):
            while len(sockets) < connections:
                sock, export = await client.connect(str(socket_path), name, timeout_s)
                sock.setblocking(True)
                sockets.append(sock)
                size_bytes, flags = export.size_bytes, int(export.flags)
                if not flags & TransmissionFlag.CAN_MULTI_CONN:
                    break
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return KernelConnections(tuple(sockets), size_bytes, flags)


def _unreachable(error: Exception, socket_path: Path, name: str) -> UserError:
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        way_out = f"start it with `infiniswap device serve {name}`"
        return UserError(f"device '{name}' is not running (nobody serves {socket_path}): {way_out}", ExitCode.NOT_FOUND)
    if isinstance(error, TimeoutError):
        return UserError(f"device '{name}' does not answer on {socket_path}", ExitCode.FAILED)
    return UserError(f"device '{name}' at {socket_path}: {error}", ExitCode.FAILED)


def clean_up(
    name: str, runtime_dir: Path, root: Path = Path("/"), say: Callable[[str], None] = lambda _line: None
) -> int | None:
    """Undo what an attach that was killed half-way left; returns the index it had got, if any. Hold the journal's lock.

    A device that is in use as swap is not touched: that attach had come to its end but for the note. zswap is put back
    where no device is left that it was switched on for, which say hears.
    """
    note = journal.read(runtime_dir, name)
    undone = None if note is None or note.stage == "attached" else _undo_half(name, note, runtime_dir, root)
    told = zswap.leave(runtime_dir, None if note is None or undone is None else note.identifier, root)
    if told is not None:
        say(told)
    return undone


def _undo_half(name: str, note: Note, runtime_dir: Path, root: Path) -> int | None:
    undone: int | None = None
    for device in sysfs.read_nbd_devices(root):
        if not device.connected or device.backend != note.identifier:
            continue
        if sysfs.swap_on(device, root):
            journal.write(runtime_dir, name, Note("attached", note.identifier, device.index))
            return None
        kernel_nbd.disconnect(device.index, exclusive=True)
        undone = device.index
    journal.remove(runtime_dir, name)
    return undone


def wait_for_node(index: int, size_bytes: int, timeout_s: float = NODE_TIMEOUT_S, root: Path = Path("/")) -> NbdDevice:
    """The device once sysfs shows its size and the node is there; UserError at the deadline."""
    limit = time.monotonic() + timeout_s
    entry, node = root / f"sys/block/nbd{index}", root / f"dev/nbd{index}"
    while True:
        device = sysfs.read_nbd_device(entry)
        if device and device.connected and device.size_bytes == size_bytes and _is_block_device(node):
            return device
        if time.monotonic() >= limit:
            shown = "no entry in /sys/block" if device is None else f"{device.size_bytes} of {size_bytes} bytes"
            raise UserError(
                f"/dev/nbd{index} did not appear within {timeout_s:g} s ({shown}); is devtmpfs on /dev?",
                ExitCode.FAILED,
            )
        time.sleep(_POLL_S)


def _is_block_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def attach(
    request: AttachRequest,
    *,
    say: Callable[[str], None] = lambda _line: None,
    negotiated: Callable[[AttachRequest], KernelConnections] | None = None,
    open_connections: Callable[[], int] | None = None,
    root: Path = Path("/"),
) -> Attached:
    """Do it. UserError for everything a user can mend; whatever went wrong, no half-attached device is left.

    say: hears what the user should know although it is no error. open_connections: how many NBD connections the service
    has; while there are any, somebody else has the device. negotiated and root stand in for negotiate() and the file
    system in tests.
    """
    check(request)
    kernel_nbd.require_kernel(root=root)
    if request.zswap is not None:
        zswap.require(root)
    with journal.locked(request.runtime_dir, request.name):
        cleaned = clean_up(request.name, request.runtime_dir, root, say)
        if cleaned is not None:
            say(f"cleaned up /dev/nbd{cleaned}, which an interrupted attach had left")
        existing = sysfs.attached(request.name, root, request.socket_path)
        if existing is not None:
            raise UserError(f"device '{request.name}' is attached already, as {existing.path}", ExitCode.IN_USE)
        if open_connections is not None:
            check_unused(request.name, open_connections, root)
        connections = (negotiated or _negotiate_now)(request)
        try:
            if request.swap and open_connections is None:
                check_not_foreign(connections.size_bytes, root)
            return _connect(request, connections, say, root)
        finally:
            connections.close()


def check_unused(name: str, open_connections: Callable[[], int], root: Path = Path("/")) -> None:
    """UserError IN_USE while anybody is connected: two kernel devices over one export would each cache their own."""
    count = users.count_open(open_connections)
    if count:
        raise UserError(f"device '{name}' is in use: {users.describe(count, root)}; disconnect first", ExitCode.IN_USE)


def check_not_foreign(size_bytes: int, root: Path = Path("/")) -> None:
    """UserError IN_USE when others have attached a device of this size, which may be this one."""
    for device in sysfs.foreign(root):
        if device.size_bytes == size_bytes:
            raise UserError(
                f"{device.path}, attached by others, has the same size and may be this very device; it was not made "
                f"swap. Disconnect it first (`nbd-client -d {device.path}`)",
                ExitCode.IN_USE,
            )


def _negotiate_now(request: AttachRequest) -> KernelConnections:
    return asyncio.run(negotiate(request.socket_path, request.name, request.connections))


def _connect(
    request: AttachRequest, connections: KernelConnections, say: Callable[[str], None], root: Path
) -> Attached:
    if len(connections.sockets) < request.connections:
        say(f"the export allows one connection only; --connections {request.connections} was not used")
    if connections.size_bytes % kernel_nbd.BLOCK_BYTES:
        raise UserError(f"the export's size is no multiple of {kernel_nbd.BLOCK_BYTES} bytes", ExitCode.REFUSED)
    count = len(connections.sockets)
    identifier = str(sysfs.Identifier(request.name, count, os.path.realpath(request.socket_path)))
    journal.write(request.runtime_dir, request.name, Note("connecting", identifier))
    try:
        index = kernel_nbd.connect(
            connections.sockets,
            index=request.index,
            size_bytes=connections.size_bytes,
            server_flags=connections.flags,
            timeout_s=request.timeout_s,
            dead_conn_timeout_s=request.dead_conn_timeout_s,
            identifier=identifier,
        )
        device = wait_for_node(index, connections.size_bytes, root=root)
        if request.swap:
            swap.check_empty(device)
            if request.zswap is not None:  # before the first page goes out, and after the kernel shows whose it is
                say(zswap.join(identifier, request.zswap, request.runtime_dir, root))
            swap.start(device, priority=request.priority, discard=request.discard)
            if (advice := reserve.complaint(root)) is not None:
                say(advice)
        journal.write(request.runtime_dir, request.name, Note("attached", identifier, index))
        return Attached(device, request.swap)
    except BaseException as error:
        _undo(request, error, say, root)
        raise


def _undo(request: AttachRequest, cause: BaseException, say: Callable[[str], None], root: Path) -> None:
    try:
        clean_up(request.name, request.runtime_dir, root, say)
    except UserError as second:
        say(f"cleaning up after '{cause}' failed too: {second}")
