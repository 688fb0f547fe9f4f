"""How tables of the engine lie in memory, for numpy: struct isw_histogram and struct isw_trace."""

from __future__ import annotations

import numpy as np

from infiniswap.engine import _engine

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
