"""Every metric of a device: what it is called, what it means, and which number it comes from.

Names of numbers are those of the engine's counters (engine/include/infiniswap_engine.h) and of Metrics.facts().
"""

from __future__ import annotations

from infiniswap.device.limits import PAGE_BYTES
from infiniswap.shared.metric_table import family, parts

PREFIX = "infiniswap_"
READ_SOURCES = {source: f"reads_{source}_pages" for source in ("remote", "pending", "backup", "zero")}
REQUEST_TYPES = {kind: f"{kind}_requests" for kind in ("read", "write", "flush", "trim", "other")}
SCRUB_COPIES = {"peer": "scrub_remote_repairs", "backup": "scrub_backup_repairs", "checksum": "scrub_record_repairs"}

VERIFIED_COPIES = {"peer": "verify_remote_pages", "backup": "verify_backup_pages"}
WRONG_COPIES = {
    "peer": "verify_wrong_remote",
    "backup": "verify_wrong_backup",
    "checksum": "verify_wrong_records",
    "unreadable": "verify_unreadable_pages",
}

DEVICE_FAMILIES = (
    family("size_bytes", "Size of the device."),
    family("slabs", "Slabs of the device, mapped or not."),
    family("mapped_slabs", "Slabs that have memory at a peer now."),
    parts(
        "read_bytes_total",
        "Data read by clients, by where it came from: a peer's memory, memory that waits for the backup, the backup, "
        "or nowhere because it was never written.",
        "source",
        READ_SOURCES,
        scale=PAGE_BYTES,
    ),
    parts(
        "written_bytes_total",
        "Data written by clients, by what the writer waited for: a peer's memory, or the backup.",
        "target",
        {"remote": "write_remote_pages", "backup": "write_backup_pages"},
        scale=PAGE_BYTES,
    ),
    parts("requests_total", "Requests of NBD clients; trim counts zeroing, too.", "type", REQUEST_TYPES),
    family("requests_in_flight", "Requests under way.", "in_flight"),
    family("request_errors_total", "Requests that were answered with an error."),
    family("connections", "NBD connections that are open."),
    family("connections_opened_total", "NBD connections that were opened.", "connections_total"),
    family("protocol_errors_total", "Things that clients did and NBD forbids; the client is cut off."),
    family(
        "pending_bytes",
        "Data that is acknowledged and waits in memory for the backup; a peer has it as well, or FLUSH waits.",
        "pending_pages",
        scale=PAGE_BYTES,
    ),
    family("pending_limit_bytes", "Where writers wait (--pending-limit).", "pending_limit_pages", scale=PAGE_BYTES),
    family("pending_peak_bytes", "The most that was pending so far.", "pending_peak_pages", scale=PAGE_BYTES),
    family("pending_waits_total", "Writes that waited because the pending limit was reached."),
    family("sealed_bytes_total", "Data sealed for peers (--encrypt).", "sealed_pages", scale=PAGE_BYTES),
    family("opened_bytes_total", "Sealed data of peers that was opened.", "opened_pages", scale=PAGE_BYTES),
    family(
        "only_remote_bytes",
        "Data that only a peer has, after a restart: it is on its way to the backup, and lost if that peer goes now.",
        "only_remote_pages",
        scale=PAGE_BYTES,
    ),
    family("resynced_bytes_total", "Such data read back for the backup.", "resynced_pages", scale=PAGE_BYTES),
    family("promoted_bytes_total", "Data of the backup put at a peer again.", "promoted_pages", scale=PAGE_BYTES),
    family("moves_begun_total", "Slabs that were to be taken to another peer with their pages."),
    family("moves_done_total", "Slabs that were taken to another peer with their pages."),
    family("moves_failed_total", "Moves that the new peer failed, or that were called off; the slab stayed."),
    family("moved_bytes_total", "Data copied from peer to peer, some more than once.", "moved_pages", scale=PAGE_BYTES),
    parts(
        "backup_operations_total",
        "Operations of the backup: reads, writes, and fdatasync.",
        "type",
        {"read": "backup_reads", "write": "backup_writes", "sync": "backup_syncs"},
    ),
    family("backup_operations_in_flight", "Operations of the backup under way.", "backup_in_flight"),
    family("backup_written_bytes_total", "Data written to the backup.", "backup_written_pages", scale=PAGE_BYTES),
    family("backup_punched_bytes_total", "Data punched out of the backup.", "backup_punched_pages", scale=PAGE_BYTES),
    family("backup_errors_total", "Operations of the backup that failed."),
    family("backup_degraded", "1 while something is wrong with the backup; the log and 'device check' say what."),
    family("backup_bytes", "Size of the backup: of a log more than that of the device."),
    family("backup_log_live_bytes", "Data that a log holds (--backup-layout log).", "log_live_pages", scale=PAGE_BYTES),
    family("backup_log_segments", "Segments of a log.", "log_segments"),
    family("backup_log_free_segments", "Those that nothing is in; cleaning makes more.", "log_free_segments"),
    family("backup_log_cleaned_segments_total", "Segments of a log that were cleaned.", "log_cleaned_segments"),
    family(
        "backup_log_borrowed_bytes_total",
        "Of what cleaning a log moved: what came from peers and memory instead of its disk.",
        "log_borrowed_pages",
        scale=PAGE_BYTES,
    ),
    family("backup_log_checkpoints_total", "Times that a log's map was written.", "log_checkpoints"),
    family(
        "backup_log_torn_pages",
        "Pages that were under way to a log when its last writer ended: their versions before count.",
        "log_torn_pages",
    ),
    family(
        "backup_log_bad_pages_total",
        "Pages read from a log that did not meet their checksum: they read as errors until they are written again.",
        "log_bad_pages",
    ),
    family("backup_resting_pages", "Pages that the backup did not take and that are tried again."),
    family("doubtful_pages", "Pages whose only copy is on the backup though an fdatasync failed; FLUSH fails."),
    family("lost_pages_total", "Pages that lost their last copy."),
    family("unreadable_pages", "Pages without any copy now: they read as errors until they are written again."),
    family("state_syncs_total", "Syncs of the state file, which pages that are lost or written again need."),
    family("state_errors_total", "Syncs of the state file that failed."),
    family("slabs_to_punch", "Slabs with zeroed pages that are still to be punched out of the backup.", "punch_slabs"),
    family("coalesced_bytes_total", "Data written anew before the backup had it.", "coalesced_pages", scale=PAGE_BYTES),
    family("busy_waits_total", "Requests that waited for another on the same page."),
    family("read_retries_total", "Reads that met a write of the same page and were done again."),
    parts(
        "failovers_total",
        "Pages that a peer failed to give or to take and that went another way.",
        "type",
        {"read": "read_failovers", "write": "write_failovers"},
    ),
    parts(
        "overdue_transfers_total",
        "What peers had not answered by --request-deadline-ms, so that the backup took its place.",
        "type",
        {"read": "overdue_page_ins", "write": "overdue_page_outs"},
    ),
    family("hedged_reads_total", "Reads that took a peer unusually long and were asked of another copy, too."),
    family("hedges_won_total", "Hedged reads where the other copy was first."),
    family("prefetch_guesses_total", "Pages asked for before anybody wanted them (--prefetch)."),
    family("prefetch_hits_total", "Such pages that were read then."),
    family("prefetch_waits_total", "Reads that waited for such a page because it was on its way."),
    family("prefetch_wasted_total", "Such pages that nobody read."),
    family("prefetch_dropped_total", "Such pages that were written before they were read, or that did not come."),
    family("prefetch_pauses_total", "Times that guessing paused because fewer than half of its pages were read."),
    family("checksum_mismatches_total", "Pages that came back from a peer changed; they were read elsewhere."),
    family("peers_lost_total", "Peers given up by the data path, with the slabs that they held."),
    family("peers_held_total", "Peers whose connections broke and whose slabs were kept for --peer-grace-ms."),
    family("peers_resumed_total", "Such peers that came back in time."),
    family("slabs_lost_total", "Slabs whose remote memory went with a peer, or was refused by it."),
    family("slabs_mapped_total", "Slabs that got remote memory."),
    family("slabs_released_total", "Slabs whose remote memory was given back."),
    family("eviction_notices_total", "Notices of donors that need memory back."),
    parts(
        "evicted_slabs_total",
        "Slabs that donors wanted back: given up after a notice, found taken by force, or not held here at all.",
        "how",
        {"notice": "eviction_evicted", "force": "eviction_taken", "unknown": "eviction_unknown"},
    ),
    family("rdma_completions_total", "Work that RDMA devices completed."),
    family("rdma_late_completions_total", "Completions of RDMA paths that had been given up; they change nothing."),
    family("rdma_sleeps_total", "Times that the data path slept until an RDMA completion came."),
    family("scrub_position_bytes", "How far the scrub is.", "scrub_position_pages", scale=PAGE_BYTES),
    family("scrub_checked_bytes_total", "Data compared by scrubs.", "scrub_checked_pages", scale=PAGE_BYTES),
    parts("scrub_repairs_total", "What scrubs mended, by which of the copies was wrong.", "copy", SCRUB_COPIES),
    family("scrub_unreadable_pages_total", "Pages that scrubs found wrong and could not mend."),
    parts("verified_bytes_total", "Copies that verifying looked at.", "copy", VERIFIED_COPIES, scale=PAGE_BYTES),
    parts("verify_differences_total", "Copies that verifying found wrong and left as they are.", "copy", WRONG_COPIES),
    family("verify_skipped_pages_total", "Pages that verifying left out because they were being written."),
    family("loops_total", "Rounds of the data path's loop."),
    family("broken_invariants_total", "Contradictions in the data path's own accounts; please report any."),
)

WATCH_FAMILIES = (
    parts(
        "nbd_connections",
        "Connections of the kernel device to this service: open, or dead and to be replaced.",
        "state",
        {"open": "nbd_open", "dead": "nbd_dead"},
    ),
    family("nbd_connections_replaced_total", "Connections given to the kernel device anew."),
)

# Told by the parent of a device with shards.
SHARD_FAMILIES = (
    family("shard_up", "1 while this shard serves and answers.", "serves"),
    family("shard_restarts_total", "Times that this shard was started again after it had been killed.", "restarts"),
)

PEER_FAMILIES = (
    family("peer_up", "1 while a lease is held at this peer."),
    family("peer_slow", "1 while this peer answers too late, so that its pages go to and come from the backup."),
    family("peer_rdma", "1 while this peer's pages travel over RDMA."),
    family("peer_stream", "1 while this peer tells on a stream what a poll would tell later.", "stream"),
    family("peer_slabs", "Slabs at this peer.", "slabs"),
    family("peer_in_flight", "Requests to this peer under way.", "in_flight"),
    family("peer_free_bytes", "Memory that this peer could lend us now, as it last said.", "free_bytes"),
    family("peer_total_bytes", "Memory that this peer lends or could lend to anybody, as it last said.", "total_bytes"),
    parts("peer_requests_total", "Transfers from and to this peer.", "type", {"read": "reads", "write": "writes"}),
    family("peer_read_bytes_total", "Data read from this peer.", "bytes_in"),
    family("peer_written_bytes_total", "Data written to this peer.", "bytes_out"),
    family("peer_failures_total", "Transfers, and requests to its control API, that this peer failed.", "failures"),
    family("peer_mismatches_total", "Pages that this peer gave back changed.", "mismatches"),
    family("peer_overdue_total", "Transfers that this peer had not answered by --request-deadline-ms.", "overdue"),
)

# Of these, numbers are the sources of binding.SOURCES.
DURATIONS = (
    parts(
        "read_duration_seconds",
        "Time from a READ's arrival to its answer, by where its data came from (of several the slowest kind).",
        "source",
        {source: source for source in READ_SOURCES},
    ),
    parts(
        "write_duration_seconds",
        "Time from a WRITE's arrival to its answer, by what it waited for: a peer, or the backup.",
        "target",
        {"remote": "write_remote", "backup": "write_backup"},
    ),
    family("flush_duration_seconds", "Time from a FLUSH's arrival to its answer.", "flush"),
)
PEER_DURATION = parts(
    "peer_duration_seconds",
    "Time from when a transfer was handed in, or posted over RDMA, until this peer answered it.",
    "type",
    {"read": "read", "write": "write"},
)
