"""How tables of the engine lie in memory, for numpy: struct isw_slab_view, isw_peer_view, isw_histogram, isw_trace."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infiniswap.engine import _engine

SLAB_DTYPE = np.dtype(
    [
        ("page_ins", "<u8"),
        ("page_outs", "<u8"),
        ("state", "<u4"),
        ("peer", "<i4"),
        ("remote_pages", "<u4"),
        ("backup_pages", "<u4"),
        ("pending_pages", "<u4"),
        ("generation", "<u4"),
    ]
)
PEER_DTYPE = np.dtype(
    [
        ("attached", "<u4"),
        ("in_flight", "<u4"),
        ("reads", "<u8"),
        ("writes", "<u8"),
        ("bytes_in", "<u8"),
        ("bytes_out", "<u8"),
        ("failures", "<u8"),
        ("mismatches", "<u8"),
        ("latency_total_ns", "<u8"),
        ("latency_count", "<u8"),
        ("overdue", "<u8"),
        ("slow", "<u4"),
        ("hedge_us", "<u4"),
        ("attachment", "<u4"),
        ("held", "<u4"),
    ]
)
HISTOGRAM_DTYPE = np.dtype([("total_ns", "<u8"), ("counts", "<u8", (_engine.lib.ISW_HISTOGRAM_BUCKETS,))])
TRACE_DTYPE = np.dtype(
    [
        ("number", "<u8"),
        ("arrived_ns", "<u8"),
        ("locked_ns", "<u8"),
        ("begun_ns", "<u8"),
        ("answered_ns", "<u8"),
        ("done_ns", "<u8"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("command", "<u2"),
        ("source", "<u2"),
        ("peer", "<i4"),
        ("error", "<i4"),
    ]
)


def take_traces(device: Any, after: int) -> NDArray[Any]:
    """A copy of the requests that an isw_device (or NULL, after its end) remembers with a number above after."""
    taken = np.zeros(_engine.lib.ISW_TRACES, TRACE_DTYPE)
    if device == _engine.ffi.NULL:
        return taken[:0]
    out = _engine.ffi.from_buffer("struct isw_trace[]", taken)
    return taken[: _engine.lib.isw_device_traces(device, after, out, len(taken))]
