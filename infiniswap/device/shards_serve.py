"""The parent of a device with shards: starts them, keeps them running, answers for all of them, stops them.

No page passes through it. It may be killed at any time: the shards serve on, and the next parent takes them up. A shard
that is killed is started again, for as long as it takes; one that ends in order ends the whole, with its exit code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

from infiniswap.device import remembered
from infiniswap.device.config import DeviceConfig
from infiniswap.device.last_start import Described
from infiniswap.device.loss import told_loss
from infiniswap.device.shard_process import ShardProcess, find
from infiniswap.device.shards import FILE_NAME, Record, check_backups, read_record, shard_arguments
from infiniswap.device.shards_api import ShardsApi
from infiniswap.device.shards_kept import parts_there, rest_of_first_start
from infiniswap.device.shards_news import ShardsNews
from infiniswap.device.startup import hold_name, make_directory
from infiniswap.device.state import stopped_in_order
from infiniswap.kernel_shim.protection import protect_service
from infiniswap.nbd.listener import open_tcp_socket, open_unix_socket, sockets_from_environment
from infiniswap.shared.device_client import living_shards
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import HttpServer
from infiniswap.shared.metrics_server import serve_metrics
from infiniswap.shared.notify import notify
from infiniswap.shared.output import announce
from infiniswap.shared.paths import device_state_dir, lock_file
from infiniswap.shared.private_files import STATE_FOLDER, LockedError, check_folder, take_lock
from infiniswap.shared.shard_names import shard_name, shard_path

log = logging.getLogger(__name__)

AGAIN_S, AGAIN_S_MAX = 0.5, 30.0  # between two tries to start a shard that was killed
WELL_S = 60.0  # one that served for so long is started again at once
HELD_S = 120.0  # how long a start waits for a shard that an earlier parent left starting or stopping
EXTENSION_S = 30.0  # of the service manager's time for a stop, asked for again and again
_LOOK_S = 0.25


class Shard:
    """One of them, whatever process serves it."""

    def __init__(self, described: Described, number: int) -> None:
        """Nothing runs yet."""
        self._described = described
        self._config: DeviceConfig = described.loaded.config
        self.number = number
        self.name = shard_name(self._config.name, number)
        self.folder = device_state_dir(self._config.state_dir, self.name)
        self.process: ShardProcess | None = None
        self.state = "starting"  # serving, stopping, dead; stopped: in order, as it was told to
        self.why = ""  # it is dead
        self.uri = ""
        self.restarts = 0

    async def start(self, *, first: bool) -> None:
        """Until it serves: one that serves already is taken up, one that is just ending or starting waited for.

        first: of this parent's life. UserError: it does not start, or is another one than is meant.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + HELD_S
        while True:
            found = await asyncio.to_thread(find, self.name, self._config.runtime_dir)
            if found is not None and found[1].get("state") == "serving":
                return self._take_up(*found)
            if found is not None:
                found[0].close()
            elif not self._held():
                return await self._start(first)
            if loop.time() >= until_s:
                way_out = f"start '{self._config.name}' later"
                raise UserError(f"'{self.name}' neither serves nor ends: {way_out}", ExitCode.IN_USE)
            await asyncio.sleep(_LOOK_S)

    def _held(self) -> bool:
        """Whether a process has its name that does not answer: one that is only starting, or just ending."""
        path = lock_file(self._config.runtime_dir, self.name)
        try:
            fd = take_lock(path)
        except LockedError:
            return True
        except OSError:
            return False  # its own start says what is wrong
        path.unlink(missing_ok=True)
        os.close(fd)
        return False

    async def _start(self, first: bool) -> None:
        """--accept-backup is for a shard that is refused without: of one that is well, it would drop newer pages."""
        if not (first and self._config.accept_backup):
            return await self._run(shard_arguments(self._config, self._described.sources, self.number, first=first))
        try:
            await self._run(shard_arguments(self._config, self._described.sources, self.number, accept=False))
        except UserError as error:
            if error.code != ExitCode.REFUSED or self.state == "stopping":
                raise
            log.warning("'%s' begins with what is on its backup, as --accept-backup says: %s", self.name, error)
            await self._run(shard_arguments(self._config, self._described.sources, self.number))

    async def _run(self, arguments: list[str]) -> None:
        self.process = ShardProcess.start(self.name, arguments)
        try:
            self.uri = await self.process.ready()
        except UserError:
            self._let_go()
            raise
        if self.state != "stopping":  # it was told to meanwhile
            self.state, self.why = "serving", ""

    def _take_up(self, process: ShardProcess, status: dict[str, Any]) -> None:
        config = self._config
        wanted = {
            "size_bytes": config.size_bytes // config.shards,
            "slab_bytes": config.slab_bytes,
            "backup": str(shard_path(config.backup, self.number)),
        }
        for key, value in wanted.items():
            if status.get(key) != value:
                process.close()
                raise UserError(
                    f"'{self.name}' serves already, with {key} {status.get(key)} and not {value}: start "
                    f"'{config.name}' as it was started before, and stop it in order",
                    ExitCode.IN_USE,
                )
        self.process, self.uri, self.state, self.why = process, str(status["uri"]), "serving", ""
        log.info("'%s' serves already, as process %d, and is taken up as it is", self.name, process.pid)

    async def ended(self) -> int | None:
        """Wait for the end of its process; its exit code (None: not known, negative: a signal)."""
        assert self.process is not None
        code = await self.process.ended()
        in_order = self.state == "stopping" and stopped_in_order(self.folder)
        self.state, self.why = ("stopped", "") if in_order else ("dead", self.process.how_ended())
        self._let_go()
        return code

    @property
    def runs(self) -> bool:
        """Whether it can be asked how it is."""
        return self.process is not None and self.state in ("serving", "stopping")

    def stop(self) -> None:
        """Begin its orderly stop, once."""
        if self.process is not None and self.state != "stopping":
            self.process.send(signal.SIGTERM)
            self.state = "stopping"

    def leave(self) -> None:
        """Let its process go on without us."""
        self._let_go()

    def reload(self) -> None:
        """Have it read its files again."""
        if self.process is not None:
            self.process.send(signal.SIGHUP)

    def _let_go(self) -> None:
        if self.process is not None:
            self.process.close()
        self.process = None


class Parent:
    """The shards of one device."""

    def __init__(self, described: Described) -> None:
        """Nothing runs yet."""
        self.described = described
        self.config = described.loaded.config
        self.shards = [Shard(described, number) for number in range(self.config.shards)]
        self.begun_s = asyncio.get_running_loop().time()
        self.stopping = asyncio.Event()
        self._code: int = ExitCode.OK
        self.news = ShardsNews(self.config.runtime_dir)
        self._down: set[Shard] = set()  # that were killed, and do not serve again yet

    async def start(self) -> None:
        """All of them, at the same time. UserError of the first that does not start; the others are stopped then.

        Not those that were taken up: they served without a parent, and go on so.
        """
        tasks = [asyncio.create_task(shard.start(first=True)) for shard in self.shards]
        waiting = asyncio.create_task(self.stopping.wait())
        try:
            while not self.stopping.is_set() and (pending := [task for task in tasks if not task.done()]):
                done, _ = await asyncio.wait([*pending, waiting], return_when=asyncio.FIRST_COMPLETED)
                if any(task is not waiting and task.exception() is not None for task in done):
                    break
            failed = [error for task in tasks if task.done() and (error := task.exception()) is not None]
            if failed or self.stopping.is_set():
                await self._stop_starting(tasks)
            if failed:
                raise failed[0]
        finally:
            waiting.cancel()

    async def _stop_starting(self, tasks: list[asyncio.Task[None]]) -> None:
        for shard, task in zip(self.shards, tasks, strict=True):
            if shard.process is None:
                task.cancel()  # it waits for another one's end
            elif shard.process.found and not self.stopping.is_set():
                shard.leave()
            shard.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end_all()

    async def _end_all(self) -> None:
        """Stop all of them, at the same time, and wait."""
        running = [shard for shard in self.shards if shard.process is not None]
        served = {shard for shard in running if shard.state == "serving"}  # one that only starts may die of the signal
        for shard in running:
            shard.stop()
        for shard, code in zip(running, await asyncio.gather(*(shard.ended() for shard in running)), strict=True):
            if code is None:  # another parent's child: only what it left tells
                bad = stopped_in_order(shard.folder) is False or told_loss(shard.folder)
                code = ExitCode.FAILED if bad else ExitCode.OK  # noqa: PLW2901
            elif code < 0 and shard in served:
                log.error("'%s' did not end in order: it was %s", shard.name, shard.why)
            if code:
                self._code = self._code or (code if code > 0 else ExitCode.FAILED)

    async def run(self) -> int:
        """Keep them until a stop is asked for; the exit code."""
        for shard in self.shards:
            self.news.serves(shard.name)
        self._tell_manager()
        keepers = [asyncio.create_task(self._keep(shard)) for shard in self.shards]
        await self.stopping.wait()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        notify("STOPPING=1")
        patience = asyncio.create_task(self._ask_for_patience())
        await self._end_all()
        patience.cancel()
        for shard in sorted(self._down, key=lambda shard: shard.number):
            if stopped_in_order(shard.folder):
                continue  # it had come back at the last moment
            log.error(
                "'%s' was not stopped in order: it had died, and did not serve again before the stop; start '%s' again "
                "on this boot, or what is not on its backup yet is lost",
                shard.name,
                self.config.name,
            )
            self._code = self._code or ExitCode.FAILED
        return self._code

    def _tell_manager(self) -> None:
        """How it stands, for who asks systemctl."""
        down = ", ".join(shard.name for shard in sorted(self._down, key=lambda shard: shard.number))
        without = f", without {down} now" if down else ""
        name, number = self.config.name, len(self.shards)
        notify(f"STATUS=serving {name} as {number} shards{without}, parent {os.getpid()}")

    async def _ask_for_patience(self) -> None:
        """The service manager hears of this process alone; each shard ends by itself after its stop_timeout_s."""
        while True:
            notify(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}")
            await asyncio.sleep(EXTENSION_S / 3)

    def request_stop(self, reason: str) -> None:
        """Begin an orderly stop of all; again and again changes nothing."""
        if not self.stopping.is_set():
            log.info("stopping: %s", reason)
        self.stopping.set()

    def reload(self) -> None:
        """SIGHUP: the shards read their files again."""
        for shard in self.shards:
            shard.reload()

    async def _keep(self, shard: Shard) -> None:
        loop, pause_s = asyncio.get_running_loop(), AGAIN_S
        while True:
            begun_s = loop.time()
            code = await shard.ended()
            if code is not None and code >= 0:
                self._code = code
                self.request_stop(f"'{shard.name}' has ended by itself, with exit code {code}")
                return
            log.error("'%s' has died (%s): what is on it waits until it serves again", shard.name, shard.why)
            self._down.add(shard)
            self.news.died(shard.name, shard.why)
            self._tell_manager()
            pause_s = AGAIN_S if loop.time() - begun_s >= WELL_S else pause_s
            while shard.state == "dead":
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_S_MAX)
                try:
                    await shard.start(first=False)
                except UserError as error:
                    shard.why = str(error)
                    log.error("'%s' does not start: %s; it is tried again", shard.name, error)
            self._down.discard(shard)
            shard.restarts += 1
            self.news.restarted(shard.name)
            self._tell_manager()
            log.info("'%s' serves again", shard.name)


def _keep_record(config: DeviceConfig, described: Described, there: set[Path], undo: ExitStack) -> bool:
    """Whether this is the first start. there: what exists of the shards."""
    folder = config.device_dir
    check_folder(folder, *STATE_FOLDER)
    make_directory(folder.parent, 0o755, undo)
    make_directory(folder, 0o700, undo)
    record, before = Record(config.shards, str(config.backup)), read_record(folder)
    if before is None:
        undo.callback(_forget_unused, config, there)
    else:
        undo.callback(_put_back, folder, before, remembered.read(folder))
    try:
        if before != record:
            record.write(folder)
        described.remembered.write(folder)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}", ExitCode.RESOURCES) from None
    return before is None


def _forget_unused(config: DeviceConfig, there: set[Path]) -> None:
    """The first start failed: the record goes, unless something is kept of a shard, or was made."""
    names = [shard_name(config.name, number) for number in range(config.shards)]
    if not any((config.state_dir / name).exists() for name in names) and parts_there(config) <= there:
        for name in (FILE_NAME, remembered.FILE_NAME):
            (config.device_dir / name).unlink(missing_ok=True)


def _put_back(folder: Path, record: Record, known: remembered.Remembered | None) -> None:
    """The start failed: its name alone means what it meant before. Written first, for who is killed leaves shards."""
    try:
        record.write(folder)
        if known is not None:
            known.write(folder)
    except OSError as error:
        log.warning("the options of the last start cannot be put back into %s: %s", folder, error.strerror)


def _open_metrics(config: DeviceConfig) -> socket.socket | None:
    """Where they are served. UserError; but shards that serve without a parent get one all the same."""
    if config.metrics_listen is None:
        return None
    try:
        return open_tcp_socket(config.metrics_listen.host, config.metrics_listen.port)
    except UserError as error:
        if not living_shards(config.runtime_dir, config.name):
            raise
        log.warning("metrics are not served until '%s' is started anew: %s", config.name, error)
        return None


async def serve_shards(described: Described) -> int:
    """Serve until SIGTERM, SIGINT or a stop through the control socket; the exit code.

    Prints `ready URI…`, one URI a shard, on stdout once clients can connect to all of them.
    """
    config = described.loaded.config
    if config.lock_memory:
        protect_service(log)
    parent = Parent(described)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, parent.request_stop, f"got {signal.Signals(number).name}")
    loop.add_signal_handler(signal.SIGHUP, parent.reload)
    async with AsyncExitStack() as cleanup:
        if passed := sockets_from_environment():
            for sock in passed:
                sock.close()
            raise UserError("a device with shards takes no sockets from socket activation; start it without")
        undo = cleanup.enter_context(ExitStack())
        hold_name(config, cleanup.enter_context(ExitStack()), undo)
        metrics_socket = _open_metrics(config)
        if metrics_socket is not None:
            cleanup.callback(metrics_socket.close)
        check_backups(config)
        there = parts_there(config)
        is_first = _keep_record(config, described, there, undo)
        try:
            await parent.start()
        except UserError as error:
            rest = rest_of_first_start(config, there) if is_first else ""
            raise UserError(f"{error}; {rest}" if rest else str(error), error.code) from None
        if parent.stopping.is_set():
            rest = rest_of_first_start(config, there) if is_first else ""
            log.info("stopped before the device served%s", f"; {rest}" if rest else "")
            return ExitCode.OK
        undo.pop_all()
        api = ShardsApi(parent)
        server = HttpServer(api.application(), open_unix_socket(config.control_path, lock_dir=config.runtime_dir))
        await server.start()
        cleanup.push_async_callback(server.close)
        cleanup.push_async_callback(parent.news.close)
        if metrics_socket is not None:
            await serve_metrics(api.exposition, metrics_socket, cleanup)
        announce(f"ready {' '.join(shard.uri for shard in parent.shards)}")
        notify("READY=1")
        code = await parent.run()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return code
