"""The typed face of the engine says the same as its header: layouts, constants, checksum, errors."""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from infiniswap.device import backup_health, device, mapper, moving, rdma_paths, scrub
from infiniswap.engine import binding
from infiniswap.engine.binding import DeviceEngine, DeviceParameters, ffi, lib
from infiniswap.engine.memory_binding import MemoryEngine

NEWS_FOR_NOBODY = {
    binding.EventKind.FLUSHED: "answers DeviceEngine.flush, which the device does not call: its clients send FLUSH"
}

SIZE = 4 << 20


@pytest.mark.parametrize(
    ("dtype", "struct"),
    [
        (binding.PAGE_DTYPE, "isw_page"),
        (binding.INTENT_DTYPE, "isw_intent"),
        (binding.SLAB_DTYPE, "isw_slab_view"),
        (binding.PEER_DTYPE, "isw_peer_view"),
    ],
)
def test_layouts_are_the_headers(dtype: np.dtype[np.void], struct: str) -> None:
    """Each numpy type has the size of its struct and every field at its place."""
    assert dtype.itemsize == ffi.sizeof(f"struct {struct}")
    fields = ffi.typeof(f"struct {struct}").fields
    assert dtype.names == tuple(name for name, _ in fields)
    for name, field in fields:
        assert dtype.fields is not None
        assert dtype.fields[name][1] == field.offset, name


def test_constants_are_the_headers() -> None:
    """Enumerations of Python carry the values of C."""
    for flag in binding.PageFlag:
        assert int(flag) == getattr(lib, f"ISW_PAGE_{flag.name}")
    for kind in binding.EventKind:
        assert int(kind) == getattr(lib, f"ISW_EVENT_{kind.name}")
    for invariant in binding.Invariant:
        assert int(invariant) == getattr(lib, f"ISW_INVARIANT_{invariant.name}")
    for state in binding.SlabState:
        assert int(state) == getattr(lib, f"ISW_SLAB_{state.name}")
    for flag_ in ("STRUCTURED", "ALLOCATION", "READ_ONLY"):
        assert int(binding.ConnectionFlag[flag_]) == getattr(lib, f"ISW_CONNECTION_{flag_}")
    assert len(binding.SOURCES) == lib.ISW_SOURCES
    assert set(binding.PageFlag) == {flag for flag in binding.PageFlag if int(flag) & lib.ISW_PAGE_PERSISTENT}


@pytest.mark.parametrize("name", sorted(name for name in dir(lib) if name.startswith("ISW_EVENT_")))
def test_news_of_every_kind_are_handled(name: str) -> None:
    """Python knows each kind of news that the engine tells of, and does something about it or says why not."""
    kind = binding.EventKind(getattr(lib, name))
    assert name == f"ISW_EVENT_{kind.name}"
    if kind in NEWS_FOR_NOBODY:
        return
    handlers = (
        device.Device._handle,
        mapper.Mapper.handle,
        moving.Moves.handle,
        rdma_paths.Initiator.handle,
        scrub.Scrub.handle,
        backup_health.BackupHealth.handle,
    )
    assert any(f"EventKind.{kind.name}" in inspect.getsource(handler) for handler in handlers)


def test_news_of_an_attachment_before_are_past() -> None:
    """News that a peer was lost do not concern the lease that it has got since; news of no peer are never past."""
    peers = np.zeros(2, binding.PEER_DTYPE)
    peers["attachment"] = [3, 1]
    assert binding.Event(binding.EventKind.PEER_LOST, 0, 0, 0, attachment=2).is_past(peers)
    assert not binding.Event(binding.EventKind.PEER_LOST, 0, 0, 0, attachment=3).is_past(peers)
    assert not binding.Event(binding.EventKind.PEER_LOST, 1, 0, 0, attachment=1).is_past(peers)
    assert not binding.Event(binding.EventKind.BACKUP_ERROR, 0, 0, 5).is_past(peers)


def test_checksum_is_crc32c() -> None:
    """The check value of CRC-32C, from any kind of buffer."""
    assert binding.crc32c(b"123456789") == 0xE3069283
    assert binding.crc32c(bytearray(32)) == 0x8A9136AA
    assert binding.crc32c(memoryview(b"0123456789")[1:]) == 0xE3069283


def test_histogram_floors_ascend() -> None:
    """Bucket edges ascend, and a minute has a bucket."""
    floors = binding.histogram_floors_ns()
    assert np.all(np.diff(floors.astype(np.float64)) > 0)
    assert floors[-1] > 60e9


def test_state_layout_refuses_odd_sizes() -> None:
    """Only multiples of the page have a layout, and parts follow each other."""
    layout = binding.state_layout(SIZE)
    assert 0 < layout.intents_offset < layout.pages_offset < layout.total_bytes
    assert layout.total_bytes - layout.pages_offset >= SIZE // 4096 * 8
    for size in (0, 100, 4097):
        with pytest.raises(OSError, match="state layout"):
            binding.state_layout(size)


@pytest.fixture
def backup_fd() -> Iterator[int]:
    """An empty backup in memory."""
    fd = os.memfd_create("backup")
    os.truncate(fd, SIZE)
    yield fd
    os.close(fd)


def parameters(backup_fd: int, **changes: int) -> DeviceParameters:
    """A small device."""
    values = {"size_bytes": SIZE, "slab_bytes": 1 << 20, "pending_limit_bytes": 1 << 20, **changes}
    return DeviceParameters(backup_fd=backup_fd, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slab_bytes": 3 << 20}, "power of two"),
        ({"size_bytes": SIZE + 1}, "multiple of the page"),
        ({"pending_limit_bytes": 4096}, "pending limit"),
        ({"backup_depth": 0}, "backup depth"),
        ({"connections_max": 0}, "connections"),
        ({"peer_timeout_ms": 0}, "time-outs"),
        ({"size_bytes": SIZE * 1024}, "state file"),
    ],
)
def test_wrong_parameters_are_named(backup_fd: int, changes: dict[str, int], sentence: str) -> None:
    """A device that cannot start says in words what is wrong."""
    state = mmap.mmap(-1, binding.state_layout(SIZE).total_bytes)
    with pytest.raises(OSError, match=sentence):
        DeviceEngine(parameters(backup_fd, **changes), state)


def test_views_outlive_the_device(backup_fd: int) -> None:
    """Counters and tables can be read after close; a second close does nothing."""
    state = mmap.mmap(-1, binding.state_layout(SIZE).total_bytes)
    device = DeviceEngine(parameters(backup_fd), state)
    assert device.backup_engine in ("io_uring", "threads")
    assert device.counter("pending_limit_pages") == 256
    assert list(device.slabs["peer"]) == [-1] * 4
    assert device.stop(5000)
    device.close()
    device.close()
    assert device.counter("pending_limit_pages") == 256
    assert len(device.slabs) == 4
    assert device.histograms.sum() == 0


def test_memory_engine_refuses_what_does_not_exist() -> None:
    """Calls about exports and slabs that are not there raise OSError."""
    memory = MemoryEngine(1)
    export = memory.open_export(1 << 20, 2)
    with pytest.raises(OSError, match="unmap slab 0"):
        memory.unmap_slab(export, 0)
    with pytest.raises(OSError, match="close export"):
        memory.close_export(export + 1)
    assert memory.export_connections(export) == 0
    memory.close_export(export)
    memory.close()
    memory.close()
    assert memory.counter("connections_total") == 0
