"""Every metric of a daemon: what it is called, what it means, which of DaemonMetrics.numbers() it comes from."""

from __future__ import annotations

from dataclasses import fields

from infiniswap.daemon.gate import GateCounts
from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.shared.metric_table import family, parts
from infiniswap.shared.tls_accept import HandshakeCounts

PREFIX = "infiniswapd_"
REQUEST_TYPES = {kind: f"engine_{kind}_requests" for kind in ("read", "write", "trim", "other")}

FAMILIES = (
    family("start_time_seconds", "When the daemon started, in seconds since 1970."),
    family("leases", "Leases held by devices now."),
    family("slabs", "Slabs mapped for devices now."),
    family("lending", "1 while new slabs are lent, 0 while the daemon is cordoned or drained."),
    family("memory_limit_bytes", "Memory that the daemon may lend at the most (--memory)."),
    family("memory_total_bytes", "Memory that is lent or could be lent now."),
    family("memory_free_bytes", "Memory that could be mapped now."),
    family("memory_used_bytes", "Memory promised to leases or on its way back."),
    family(
        "memory_lapsed_bytes", "Memory kept for leases that have lapsed; it is free, too, for it is given up on demand."
    ),
    family("memory_occupied_bytes", "Memory of the host that slabs really occupy."),
    family("host_total_bytes", "Memory of the host, or of the daemon's cgroup."),
    family("host_available_bytes", "Memory that the host could give to programs without swapping."),
    family(
        "host_percpu_bytes",
        "Free memory in lists of the processors, which host_available_bytes counts and the kernel's MemAvailable does "
        "not; 0 as long as nothing would have to come back without it.",
    ),
    family(
        "host_smoothed_bytes",
        "Memory that the host would have available with nothing lent, falling at once and rising as an average.",
    ),
    family(
        "host_headroom_bytes",
        "Memory kept free for the host now: --headroom, up to twice that while tasks wait for it.",
    ),
    family("host_lendable_bytes", "Memory that slabs may take in all; what is lent beyond it is asked back."),
    family("host_missing_bytes", "Memory that slabs would have to give back now for --headroom to be free."),
    family("host_swap_used_bytes", "Swap in use on the host."),
    family(
        "host_pressure_ratio",
        "Share of the last 10 s in which some task waited for memory.",
        "host_pressure_percent",
        scale=0.01,
    ),
    family("host_pressure_triggers", "Pressure files by which the kernel tells the daemon at once that tasks wait."),
    family("host_pressure_events_total", "Times that the kernel told that tasks wait for memory."),
    family("host_looks_total", "Times that the host's memory was looked at."),
    family(
        "host_hard_pressed_total",
        "Times that lent memory was taken at once because less than half of the headroom was left.",
    ),
    family("host_fuses", "Fuses in place: processes that the OOM killer takes first."),
    family("host_fuses_blown_total", "Fuses that the OOM killer took; with each a share of lent memory went."),
    family("leases_granted_total", "Leases granted."),
    family("leases_refused_total", "Leases refused."),
    family("leases_throttled_total", "Leases refused because their address had asked for too many within a second."),
    family(
        "over_quota_total",
        "Leases, slabs and page connections refused because their host, by its certificate or else its address, has "
        "as many as it may (--quota).",
    ),
    family("leases_released_total", "Leases given back by their devices."),
    family("leases_expired_total", "Leases ended for want of heartbeats."),
    family("leases_revived_total", "Leases taken up again by their devices after their time had run out."),
    family(
        "leases_renewed_by_pages_total",
        "Half lives of leases without a heartbeat that they outlived because their pages moved.",
    ),
    family("unproven_calls_total", "Calls about a lease that came without its token.", "unproven"),
    family(
        "stolen_token_calls_total",
        "Calls with the token of a lease, and a certificate of another host than the one that took it.",
        "leases_of_others",
    ),
    family("slabs_mapped_total", "Slabs mapped for devices."),
    family("slabs_released_total", "Slabs taken back, for whatever reason."),
    family("maps_refused_total", "Slabs not mapped for want of memory."),
    family("cleared_bytes_total", "Memory cleared before it was lent again."),
    family(
        "eviction_notices_total",
        "Notices to devices to give up slabs, because the host needs memory or is drained.",
        "notices",
    ),
    parts(
        "evicted_slabs_total",
        "Slabs that came back because of a notice: given up by their device, or taken because it did not.",
        "how",
        {"notice": "evicted", "force": "evicted_by_force"},
    ),
    family(
        "ask_timeouts_total", "Times that a device did not tell in time how active its slabs are; they count as cold."
    ),
    family("streams_opened_total", "Streams that devices opened."),
    parts(
        "streams_ended_total",
        "Streams ended by the daemon: the device opened another, or did not take its messages.",
        "why",
        {"replaced": "streams_replaced", "overrun": "streams_overrun"},
    ),
    family("stream_nonsense_total", "Messages of devices that could not be used."),
    family("rdma_ready", "1 while pages can travel by RDMA."),
    family("rdma_queue_pairs", "Queue pairs connected with devices."),
    family("rdma_regions", "Slabs registered for RDMA, pooled ones included."),
    family("rdma_pooled_regions", "Slabs registered in advance that wait to be mapped.", "rdma_pooled"),
    family("rdma_paths_opened_total", "RDMA paths opened."),
    family("rdma_regions_registered_total", "Slabs registered for RDMA."),
    family("rdma_regions_deregistered_total", "Slabs deregistered."),
    family("rdma_pool_hits_total", "Slabs mapped that had been registered in advance."),
    family("rdma_pool_misses_total", "Slabs that had to be registered while a device waited."),
    family("rdma_devices_lost_total", "RDMA devices that vanished while they were in use."),
    parts("requests_total", "Requests of devices over TCP; over RDMA the daemon sees none.", "type", REQUEST_TYPES),
    family("read_bytes_total", "Data read by devices over TCP.", "engine_read_pages", scale=PAGE_BYTES),
    family("written_bytes_total", "Data written by devices over TCP.", "engine_write_pages", scale=PAGE_BYTES),
    family("refused_requests_total", "Requests for slabs that are not mapped.", "engine_refused_requests"),
    family("connections", "Connections for page I/O that are open.", "engine_connections"),
    family("connections_opened_total", "Connections for page I/O that were opened.", "engine_connections_total"),
    family(
        "protocol_errors_total", "Things that clients did and NBD forbids; they are cut off.", "engine_protocol_errors"
    ),
    parts(
        "handshakes_refused_total",
        "Connections of control that were not let in, by what was wrong with the other end; without --tls-dir there "
        "is none.",
        "why",
        {one.name: f"handshakes_{one.name}" for one in fields(HandshakeCounts)},
    ),
    parts(
        "roles_refused_total",
        "Requests refused because the names in the certificate give no right to look, borrow or drain, or because it "
        "counts no more (out).",
        "role",
        {one.name: f"roles_{one.name}" for one in fields(GateCounts)},
    ),
    parts(
        "control_connections_ended_total",
        "Connections of control that were ended: no request came in time, they were idle, they made room for others, "
        "or there was no room for them.",
        "why",
        {"silent": "door_ended_silent", "idle": "door_ended_idle", "gave_way": "door_gave_way", "full": "door_refused"},
    ),
    parts(
        "page_connections_ended_total",
        "Connections for page I/O that came to nothing: no room, no export, they made room for others, their address "
        "opens too many a second, or their lease has enough.",
        "why",
        {
            "full": "door_pages_refused",
            "failed": "door_pages_failed",
            "gave_way": "door_pages_gave_way",
            "flooded": "door_pages_flooded",
            "lease": "page_connections_refused",
        },
    ),
    family("loops_total", "Rounds of the data path's loops.", "engine_loops"),
)
