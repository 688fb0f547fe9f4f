/* Public boundary of the infiniswap data path.
 *
 * Two objects live behind it: isw_device (the block device: NBD server, page table, peers, backup) and isw_memory (the
 * memory daemon's NBD server over slab memory).  Python negotiates connections and decides where slabs go; everything a
 * page request needs happens behind this header, on threads the engine owns, in memory it took at start.
 *
 * Every function returns 0 (or a non-negative result) or a negative errno, may be called from any one thread at a time
 * per object, and never calls back.  News travel through an event ring with an eventfd; numbers through counter arrays
 * that are written with relaxed atomics and may be read at any time. */
#ifndef INFINISWAP_ENGINE_H
#define INFINISWAP_ENGINE_H

#include "infiniswap_log.h"

#include <stddef.h>
#include <stdint.h>

/* ---- limits; each queue and pool takes its bound from here or from the configuration ---- */
enum {
    ISW_PAGE_BYTES = 4096,
    ISW_OP_PAGES_MAX = 64,          /* pages that one internal operation covers */
    ISW_OPS = 2048,                 /* operations in flight, all connections together */
    ISW_REQUEST_BYTES_MAX = 32 << 20, /* largest READ or WRITE that a client may send */
    ISW_CONNECTION_REQUESTS_MAX = 512, /* requests in flight on one connection */
    ISW_PEERS_MAX = 64,
    ISW_EARLY_BYTES_MAX = 65536,    /* bytes a client may have sent behind its negotiation */
    ISW_EVENTS = 4096,
    ISW_HISTOGRAM_BUCKETS = 320,
    ISW_TRACES = 4096, /* requests that are remembered */
    ISW_RDMA_QUEUE_PAIRS = 2, /* of a peer: page-ins, page-outs */
    ISW_VERIFY_TOLD_MAX = 256,  /* differences of one pass that become events */
    ISW_MEASURE_DEPTH_MAX = 64, /* reads that a measurement has out */
};

/* ---- checksum of a page: keyed, so that only who knows the key can meet it (src/common/checksum.c) ---- */
enum { ISW_CHECKSUM_SEED_BYTES = 32, ISW_CHECKSUM_WORDS = ISW_PAGE_BYTES / 4 + 8 };
enum isw_checksum_way { ISW_CHECKSUM_PLAIN, ISW_CHECKSUM_SSE2, ISW_CHECKSUM_AVX2 }; /* all give the same */
struct isw_checksum_key { uint32_t words[ISW_CHECKSUM_WORDS]; uint64_t fold[5]; };
/* Fills all of the key with SHAKE256("infiniswap page checksum 1" and the seed).  -ENOTSUP: libcrypto has none. */
int isw_checksum_expand(const uint8_t *seed, struct isw_checksum_key *key);
uint32_t isw_checksum(const struct isw_checksum_key *key, const void *page); /* ISW_PAGE_BYTES */
uint32_t isw_checksum_by(enum isw_checksum_way way, const struct isw_checksum_key *key, const void *page); /* or the best there is */
enum isw_checksum_way isw_checksum_best(void);

/* ---- page table entry: 8 bytes a page, in the state file ---- */
struct isw_page {
    uint32_t checksum; /* isw_checksum of the remote copy; meaningful while ISW_PAGE_REMOTE or ISW_PAGE_WRITING */
    uint32_t meta;     /* ISW_PAGE_* flags, above them (>> ISW_PAGE_INDEX_SHIFT) an index that dies with the process */
};
enum {
    ISW_PAGE_REMOTE = 1u << 0,    /* the remote copy is current */
    ISW_PAGE_DISK = 1u << 1,      /* the backup copy is current */
    ISW_PAGE_WRITING = 1u << 2,   /* a write is under way: the remote copy is of this version or of the next */
    ISW_PAGE_PUNCH = 1u << 3,     /* reads as zero, but the backup must still be told */
    ISW_PAGE_LOST = 1u << 4,      /* no durable copy is left: the pending buffer has it or, without one, reads fail */
    ISW_PAGE_BUSY = 1u << 5,      /* volatile: owned by the operation in the index */
    ISW_PAGE_DISK_BUSY = 1u << 6, /* volatile: a backup write or punch of it is in flight */
    ISW_PAGE_DOUBTFUL = 1u << 7,  /* an fdatasync failed after the backup copy was written, and there is no other */
    ISW_PAGE_INDEX_SHIFT = 8,     /* volatile: pending buffer + 1, or the owning operation while BUSY */
    ISW_PAGE_PERSISTENT = 0x9f,
    ISW_LOST_PENDING = 0x444e4550, /* checksum of a LOST page whose pending buffer has it: after a power cut the backup's version counts */
};

/* What a write under way will leave: lets a restarted device tell which version a WRITING page holds remotely. */
struct isw_intent {
    uint64_t first_page;
    uint32_t pages; /* 0: free */
    uint32_t to_backup; /* 1: the backup is being written, so what it has may be the next version already */
    uint32_t checksum[ISW_OP_PAGES_MAX];
};

/* State file, written by the control side alone: this header, then at intents_offset isw_intent[ISW_OPS], then at pages_offset isw_page[size / 4096]. */
struct isw_state_header {
    char magic[8]; /* "ISWSTATE" */
    uint32_t version;
    uint32_t phase; /* 0: in use; 1: orderly stop, everything is on the backup; 2: starting, nothing was served yet */
    uint64_t size_bytes;
    uint64_t slab_bytes;
    char boot_id[40]; /* of the kernel that ran: after another boot the file is no longer to be trusted */
    char device_id[40];
    char life[40];     /* version 1 ended before it; also in the mark on the backup, or the two do not belong together */
    char previous[40]; /* the life in that mark before this one */
    /* Versions 2 and 3 ended here, with the crc. */
    uint8_t checksum_seed[ISW_CHECKSUM_SEED_BYTES]; /* secret, drawn with the file: what the pages' checksums are made with */
    uint32_t crc;      /* CRC32C of all before it */
    uint32_t reserved;
};
int isw_state_layout(uint64_t size_bytes, uint64_t *intents_offset, uint64_t *pages_offset, uint64_t *total_bytes);

uint32_t isw_crc32c(const void *data, size_t bytes);
enum isw_crc32c_way { ISW_CRC32C_TABLE, ISW_CRC32C_HARDWARE, ISW_CRC32C_VECTORS }; /* all give the same */
uint32_t isw_crc32c_by(enum isw_crc32c_way way, const void *data, size_t bytes); /* or the best there is */
enum isw_crc32c_way isw_crc32c_best(void);

/* ---- sealed pages: AES-256-GCM between the device and its peers ---- */
enum { ISW_SEAL_KEY_BYTES = 32, ISW_SEAL_SALT_BYTES = 32, ISW_SEAL_CHECK_BYTES = 16, ISW_SEAL_TAG_BYTES = 12 };
/* What a page at a peer was sealed with: 20 bytes a page, beside the page table. */
struct isw_seal {
    uint32_t serial[2]; /* lower half, upper half; 0: none */
    uint8_t tag[ISW_SEAL_TAG_BYTES];
};
/* File of seals, made by the control side with the state file it belongs to: this header, then at intents_offset
 * isw_seal[ISW_OPS][ISW_OP_PAGES_MAX], then at pages_offset isw_seal[size / 4096].  It outlives a killed process. */
struct isw_seals_header {
    char magic[8]; /* "ISWSEALS" */
    uint32_t version;
    uint32_t crc; /* CRC32C of all behind it but the serial */
    uint64_t size_bytes;
    char life[40]; /* the state file's when both were made */
    uint8_t salt[ISW_SEAL_SALT_BYTES];   /* random, new with the file: so the keys are new, whatever the root key is */
    uint8_t check[ISW_SEAL_CHECK_BYTES]; /* tells a wrong root key */
    uint32_t kept, reserved; /* kept: where the root key is: 0 nowhere else, 1 beside this file, 2 in a file of the user's */
    uint64_t serial; /* the last one taken, stored before it is used */
};
int isw_seals_layout(uint64_t size_bytes, uint64_t *intents_offset, uint64_t *pages_offset, uint64_t *total_bytes);

typedef struct isw_sealer isw_sealer;
/* check: NULL, or gets what tells a wrong root key.  NULL: libcrypto would not, or there is no memory. */
isw_sealer *isw_sealer_new(const uint8_t *root, const uint8_t *salt, uint8_t *check);
/* A serial may be given once in the life of a root key and salt.  sealed may be plain. */
int isw_sealer_seal(isw_sealer *sealer, uint64_t page, uint64_t serial, const uint8_t *plain, uint8_t *sealed, uint8_t *tag);
/* plain may be sealed.  -EBADMSG: it was not sealed so, and what is in plain is of no use. */
int isw_sealer_open(isw_sealer *sealer, uint64_t page, uint64_t serial, const uint8_t *tag, const uint8_t *sealed, uint8_t *plain);
void isw_sealer_free(isw_sealer *sealer);

/* ---- connections, for both servers ---- */
enum { /* what was negotiated */
    ISW_CONNECTION_STRUCTURED = 1u << 0,
    ISW_CONNECTION_ALLOCATION = 1u << 1, /* base:allocation is selected, as context 1 */
    ISW_CONNECTION_READ_ONLY = 1u << 2,
};
enum { ISW_CONTEXT_ALLOCATION = 1 };

/* ---- device ---- */
typedef struct isw_device isw_device;
enum { ISW_BACKUP_URING = 1, ISW_BACKUP_THREADS = 2 };
struct isw_device_config {
    uint64_t size_bytes; /* multiple of the page */
    uint64_t slab_bytes; /* power of two */
    uint64_t pending_limit_bytes;
    void *state;          /* mapping of the state file; outlives the device */
    uint64_t state_bytes;
    int state_fd;         /* the file behind it, the caller's until isw_device_free; -1: nothing would outlive a power cut */
    void *seals;          /* NULL, or the mapping of the file of seals: what goes to peers is sealed; outlives the device */
    uint64_t seals_bytes;
    const uint8_t *seal_key; /* root key, ISW_SEAL_KEY_BYTES; not looked at after the start */
    int backup_fd;        /* the engine dups it */
    isw_log *backup_log;  /* NULL: the backup is a raw image; else the caller's until isw_device_free, and in backup_fd */
    uint32_t backup_log_borrows; /* pages that it moves, from peers: 0: where its disk is slow, or ISW_BORROW_* */
    uint32_t backup_sparse;  /* 1: zeroed ranges are punched, 0: they stay allocated */
    uint32_t backup_engine;  /* 0: io_uring where it works, or ISW_BACKUP_* */
    uint32_t backup_depth;   /* backup operations in flight, 1 to 256 */
    uint32_t writeback_delay_ms; /* how long a page waits for company before it goes to the backup */
    uint32_t connections_max;
    uint32_t peers_max;   /* up to ISW_PEERS_MAX */
    uint32_t peer_timeout_ms; /* a peer that leaves a request unanswered for so long is lost */
    uint32_t peer_grace_ms; /* one whose connections broke may come back for so long before it is lost; 0: it is lost at once */
    uint32_t request_deadline_ms; /* what a peer has not answered by then goes another way; 0: nothing does */
    uint32_t prefetch_floor_us; /* 0: nothing is read before it is asked for; else from peers whose round trip is as long, and the backup */
    uint32_t hedge_floor_us; /* a page-in is asked of another copy, too, after so long at the earliest; 0: never */
    uint32_t client_stall_timeout_ms; /* a client that takes no answer for so long is disconnected */
    uint32_t lock_memory; /* 1: fail unless the engine's memory can be locked */
    uint32_t recovering;  /* 1: the state is a killed device's; what is lost in it the first FLUSH has to say */
};

enum isw_event_kind {
    ISW_EVENT_PEER_LOST = 1,  /* peer, value = errno, slab = number of slabs lost with it */
    ISW_EVENT_SLAB_RELEASED,  /* slab, peer: nothing refers to the remote slab any more */
    ISW_EVENT_SLAB_TOUCHED,   /* slab: first page-out to it since it became unmapped */
    ISW_EVENT_FLUSHED,        /* value = ticket of isw_device_flush, slab = errno or 0 */
    ISW_EVENT_MISMATCH,       /* slab, peer, value = page: a remote copy failed its checksum */
    ISW_EVENT_BACKUP_ERROR,   /* value = errno */
    ISW_EVENT_OVERFLOW,       /* events were dropped: read the tables anew */
    ISW_EVENT_SLAB_LOST,      /* slab, peer, value = errno: the peer refused it; the peer itself is still attached */
    ISW_EVENT_PEER_READY,     /* peer: its RDMA path has carried a page each way */
    ISW_EVENT_RDMA_LOST,      /* value = errno: the RDMA device is of no more use; its peers are lost with it */
    ISW_EVENT_SCRUBBED,       /* a scrub has come to the end of the device */
    ISW_EVENT_PEER_SLOW,      /* peer, value = 1: it answers too late and gets little to do; 0: not any more */
    ISW_EVENT_BACKUP_CUT,     /* the backup file was cut short; value = its size then, slab = pages lost by it */
    ISW_EVENT_STATE_ERROR,    /* value = errno of an fdatasync of the state file: a power cut may forget what is lost */
    ISW_EVENT_BROKEN,         /* slab = isw_invariant, value = where: told of the first; the counter has all */
    ISW_EVENT_PEER_HELD,      /* peer, value = errno: its connections broke; PEER_LOST follows unless it is resumed in time */
    ISW_EVENT_SLAB_MOVED,     /* slab, peer = the new one, value = pages it has: put it on record, then isw_device_slab_settle */
    ISW_EVENT_MOVE_FAILED,    /* slab, peer = the new one, value = errno: nothing refers to the slab there any more */
    ISW_EVENT_DIFFERS,        /* value = page, slab = isw_copy: found by a verification */
};
/* Which copy of a page a verification found wrong. */
enum isw_copy {
    ISW_COPY_REMOTE = 1, /* does not meet the checksum */
    ISW_COPY_BACKUP,
    ISW_COPY_RECORD,     /* both agree: it is the checksum that is wrong */
    ISW_COPY_UNREADABLE, /* the backup's cannot be read */
};
/* What must hold whatever happens; where it does not the device goes on (src/device/invariants.h). */
enum isw_invariant {
    ISW_INVARIANT_PAGE = 1,  /* only in test builds: flags of a page that do not go together */
    ISW_INVARIANT_BUFFER,    /* a pending buffer is in another state than whoever uses it expects */
    ISW_INVARIANT_EPOCH,     /* more has left an epoch than was in it */
    ISW_INVARIANT_TRANSFERS, /* more transfers of a slab have ended than began */
    ISW_INVARIANT_COUNT,     /* a count would go below zero */
};
struct isw_event {
    uint32_t kind;
    uint32_t peer;
    uint32_t slab;
    uint32_t attachment; /* which of the peer's; 0: it is about no peer */
    uint64_t value;
};
enum isw_slab_state { ISW_SLAB_UNMAPPED = 0, ISW_SLAB_MAPPED = 1, ISW_SLAB_DRAINING = 2 };
/* One per slab, kept by the engine, read by Python as a numpy structured array. */
struct isw_slab_view {
    uint64_t page_ins;  /* pages read, ever growing */
    uint64_t page_outs; /* pages written, ever growing */
    uint32_t state;     /* isw_slab_state */
    int32_t peer;       /* -1: none */
    uint32_t remote_pages;  /* remote copy current */
    uint32_t backup_pages;  /* backup copy current and no remote one */
    uint32_t pending_pages; /* not yet on the backup */
    uint32_t generation;
};

struct isw_peer_view {
    uint32_t attached;
    uint32_t in_flight;
    uint64_t reads, writes, bytes_in, bytes_out, failures, mismatches;
    uint64_t latency_total_ns, latency_count; /* of answered reads */
    uint64_t overdue;  /* requests that it had not answered by their deadline */
    uint32_t slow;     /* 1: it answers too late and gets little to do */
    uint32_t hedge_us; /* after which a page-in is asked of another copy, too; 0: not known yet */
    uint32_t attachment; /* how many times it was attached: news of an earlier one are not about this one */
    uint32_t held; /* 1: its connections broke, and its slabs are kept for a while (isw_device_peer_resume) */
};

enum isw_source {
    ISW_SOURCE_REMOTE, ISW_SOURCE_PENDING, ISW_SOURCE_BACKUP, ISW_SOURCE_ZERO, /* where reads were answered from */
    ISW_SOURCE_WRITE_REMOTE, ISW_SOURCE_WRITE_BACKUP, ISW_SOURCE_FLUSH, /* what writes and flushes waited for */
    ISW_SOURCES,
};

/* Latencies: how many fell into each bucket, and all of them together. */
struct isw_histogram {
    uint64_t total_ns;
    uint64_t counts[ISW_HISTOGRAM_BUCKETS];
};

/* A request that was answered, and when it was where.  Times are CLOCK_MONOTONIC as the loop's rounds see it; 0: that did not
 * happen to it. */
struct isw_trace {
    uint64_t number;      /* of all that were remembered, from 1 on */
    uint64_t arrived_ns;
    uint64_t locked_ns;   /* its (first) pages were its own: WRITE, and READ that met a write */
    uint64_t begun_ns;    /* its first transfer, to or from a peer or the backup, was handed in ... */
    uint64_t answered_ns; /* ... and the first one was answered */
    uint64_t done_ns;     /* its last answer was queued */
    uint64_t offset;
    uint32_t length;
    uint16_t command;     /* NBD_CMD_* */
    uint16_t source;      /* isw_source; ISW_SOURCES: none of them */
    int32_t peer;         /* of the first transfer; -1: there was none, or it was the backup's */
    int32_t error;        /* errno; 0: done */
};

#define ISW_DEVICE_COUNTERS(X) \
    X(reads_remote_pages) X(reads_pending_pages) X(reads_backup_pages) X(reads_zero_pages) X(read_requests) X(write_requests) \
    X(flush_requests) X(trim_requests) X(other_requests) X(write_remote_pages) X(write_backup_pages) X(promoted_pages) X(pending_pages) \
    X(pending_limit_pages) X(pending_peak_pages) X(pending_waits) X(backup_writes) X(backup_written_pages) X(backup_reads) X(backup_syncs) \
    X(backup_punched_pages) X(backup_errors) X(coalesced_pages) X(busy_waits) X(read_retries) X(write_failovers) X(read_failovers) \
    X(checksum_mismatches) X(lost_pages) X(peers_lost) X(slabs_lost) X(slabs_mapped) X(slabs_released) X(connections) X(connections_total) \
    X(protocol_errors) X(request_errors) X(in_flight) X(loops) X(backup_in_flight) X(punch_slabs) X(rdma_completions) \
    X(rdma_late_completions) X(rdma_sleeps) X(scrub_position_pages) X(scrub_checked_pages) X(scrub_remote_repairs) X(scrub_backup_repairs) \
    X(scrub_record_repairs) X(scrub_unreadable_pages) X(verify_remote_pages) X(verify_backup_pages) X(verify_wrong_remote) \
    X(verify_wrong_backup) X(verify_wrong_records) X(verify_unreadable_pages) X(verify_skipped_pages) X(only_remote_pages) \
    X(unreadable_pages) X(resynced_pages) X(overdue_page_ins) X(overdue_page_outs) X(hedged_reads) X(hedges_won) X(doubtful_pages) \
    X(backup_resting_pages) X(state_syncs) X(state_errors) X(peers_held) X(peers_resumed) X(broken_invariants) X(moves_begun) \
    X(moves_done) X(moves_failed) X(moved_pages) X(sealed_pages) X(opened_pages) X(prefetch_guesses) X(prefetch_hits) X(prefetch_wasted) \
    X(prefetch_dropped) X(prefetch_waits) X(prefetch_pauses)

enum isw_device_counter {
#define ISW_X(name) ISW_DEVICE_##name,
    ISW_DEVICE_COUNTERS(ISW_X)
#undef ISW_X
    ISW_DEVICE_COUNTER_COUNT
};

/* Takes all memory, starts the threads.  error gets a sentence on failure. */
isw_device *isw_device_start(const struct isw_device_config *config, char *error, size_t error_bytes);
/* The negotiated socket is the engine's from here on, also on failure.  early: what the client had already sent. */
int isw_device_connection_add(isw_device *device, int fd, uint32_t flags, const void *early, size_t early_bytes);
/* Two negotiated connections to the lease's export: page-ins travel on one, page-outs on the other. */
int isw_device_peer_attach(isw_device *device, uint32_t peer, int read_fd, int write_fd);
/* Its daemon has ended, though nothing has told that on its connections: they are closed, and it is held (peer_grace_ms).
 * -EAGAIN: it is not, because that is 0 or it has no slab; nothing has changed. */
int isw_device_peer_hold(isw_device *device, uint32_t peer);
/* A peer that is held is attached as any other, to the same lease at the same incarnation; this makes its slabs' copies count
 * again.  -ENOTCONN: it is not held any more, or not attached. */
int isw_device_peer_resume(isw_device *device, uint32_t peer);
/* Where a slab of a held peer lies now that its daemon has registered it anew. */
int isw_device_slab_region(isw_device *device, uint32_t slab, uint32_t peer, uint64_t address, uint32_t rkey);
/* A slab of a held peer that its daemon has no more: it alone is lost (ISW_EVENT_SLAB_LOST).  -ENOTCONN: it is not held there. */
int isw_device_slab_gone(isw_device *device, uint32_t slab, uint32_t peer);
/* Slabs still mapped there are lost, as if the peer had died; no event. */
int isw_device_peer_detach(isw_device *device, uint32_t peer);
/* No page of a slab that is not mapped is REMOTE when this returns: they are forgotten by and by else.  Called before a new place
 * goes on record, so that a process killed between that and isw_device_slab_map leaves no flags that speak of the old one. */
int isw_device_slab_forget(isw_device *device, uint32_t slab);
/* Slab i lies at offset i * slab_bytes of the peer's export.  adopt: 1 keeps ISW_PAGE_REMOTE flags found in the state. */
int isw_device_slab_map(isw_device *device, uint32_t slab, uint32_t peer, uint32_t adopt);
/* The same for a peer attached over RDMA: the slab lies at address in the peer's memory, and rkey opens it. */
int isw_device_slab_map_region(isw_device *device, uint32_t slab, uint32_t peer, uint32_t adopt, uint64_t address,
                               uint32_t rkey);
/* All slabs that outlived the last process are mapped: pages whose only copy is in another one are lost.  FLUSH waits for it. */
int isw_device_adoption_end(isw_device *device);
/* Drains, then reports ISW_EVENT_SLAB_RELEASED.  -EAGAIN: its peer is held. */
int isw_device_slab_unmap(isw_device *device, uint32_t slab);
/* Takes a slab that is MAPPED or DRAINING to another peer, with its pages: they are copied in the background while it is used
 * as ever, then it drains for a moment, and ISW_EVENT_SLAB_MOVED follows, or ISW_EVENT_MOVE_FAILED with the slab where and as
 * it was.  limit_ms: what is not copied by then and is on the backup is left behind; 0: a minute.  Called again with the
 * same peer it only sets the time anew.  -EBUSY: something refers still to where it moved last; -EAGAIN: too many move, or its peer is held. */
int isw_device_slab_move(isw_device *device, uint32_t slab, uint32_t peer, uint32_t limit_ms);
int isw_device_slab_move_region(isw_device *device, uint32_t slab, uint32_t peer, uint32_t limit_ms, uint64_t address,
                                uint32_t rkey);
/* -EALREADY: it has moved, and is to be settled. */
int isw_device_slab_move_cancel(isw_device *device, uint32_t slab);
/* After SLAB_MOVED, when the new peer is on record: page-outs go there from now on; SLAB_RELEASED of the old one follows.
 * -EINVAL: the new peer, or the slab there, was lost meanwhile. */
int isw_device_slab_settle(isw_device *device, uint32_t slab);
/* Everything acknowledged so far goes to the backup; ISW_EVENT_FLUSHED carries the ticket. */
int isw_device_flush(isw_device *device, uint64_t ticket);
/* Compares all copies with their checksums from the first page on, so many pages a second; a copy that is wrong is made anew
 * from the other.  0: ends a scrub that is going on.  ISW_EVENT_SCRUBBED follows at the end of the device. */
int isw_device_scrub(isw_device *device, uint32_t pages_per_s);
/* The same, with nothing changed: what is wrong is counted and, the first ISW_VERIFY_TOLD_MAX times, told (ISW_EVENT_DIFFERS).
 * Copies of pages that are not on the backup yet are looked at, too.  Ended as a scrub is. */
int isw_device_verify(isw_device *device, uint32_t pages_per_s);
int isw_device_event_fd(isw_device *device);
int isw_device_events(isw_device *device, struct isw_event *events, uint32_t events_max);
const struct isw_slab_view *isw_device_slabs(isw_device *device, uint32_t *count);
const struct isw_peer_view *isw_device_peers(isw_device *device, uint32_t *count);
const uint64_t *isw_device_counters(isw_device *device, uint32_t *count);
const char *isw_device_counter_name(uint32_t counter);
/* [ISW_SOURCES] */
const struct isw_histogram *isw_device_histograms(isw_device *device);
/* [peers_max][2]: answered page-ins, answered page-outs. */
const struct isw_histogram *isw_device_peer_histograms(isw_device *device);
/* Requests that take less are not remembered from now on: at many thousands a second all would push out those that matter, and
 * cost more than a hundredth of the loop's instructions.  0, as at the start: all are. */
void isw_device_trace_least(isw_device *device, uint64_t least_ns);
/* Requests remembered with a number above after, of the last ISW_TRACES the oldest first; returns how many.  May be called
 * beside everything but isw_device_free; what is overwritten meanwhile is left out. */
uint32_t isw_device_traces(isw_device *device, uint64_t after, struct isw_trace *out, uint32_t most);
uint64_t isw_histogram_bucket_floor_ns(uint32_t bucket);
int isw_device_backup_engine(isw_device *device); /* ISW_BACKUP_* in use */
/* No new connections; requests in flight are answered; pending pages reach the backup and are synced.
 * -ETIMEDOUT: something is still pending; the device goes on and may be stopped again. */
int isw_device_stop(isw_device *device, uint32_t timeout_ms);
/* Only after a stop; a device that would not stop is ended here with what is pending lost. */
void isw_device_free(isw_device *device);

/* ---- RDMA: another way to reach a peer.  Needs libibverbs, which is looked for in isw_device_rdma_open. ---- */
struct isw_rdma_port {
    uint32_t mtu_bytes; /* of the port now */
    uint32_t lid;       /* 0 on Ethernet */
    uint32_t reads_max; /* READs that one queue pair may have outstanding */
    uint32_t queue_depth;
    uint32_t inline_bytes; /* up to which a write is copied into its work request */
};
struct isw_rdma_path {
    uint8_t gid[16];      /* the other end's */
    uint32_t gid_index;   /* our own */
    uint32_t global_route; /* 1: packets carry GIDs; 0: LIDs alone */
    uint32_t lid;         /* the other end's */
    uint32_t mtu_bytes;
    uint32_t reads_max;
    uint32_t ack_timeout; /* 4.096 us * 2^this, retries times more after the first */
    uint32_t retries, rnr_timer, rnr_retries, hop_limit;
    uint32_t number[ISW_RDMA_QUEUE_PAIRS], psn[ISW_RDMA_QUEUE_PAIRS]; /* the other end's */
    uint32_t own_psn[ISW_RDMA_QUEUE_PAIRS];
    uint64_t probe_address; /* a page of the peer's memory that tries the path out */
    uint32_t probe_rkey;
};
/* Opens a port of an RDMA device and registers the engine's buffers with it, which pins them.  poll_us: how long the loop
 * asks for a completion before it sleeps.  error gets a sentence on failure. */
int isw_device_rdma_open(isw_device *device, const char *name, uint32_t port, uint32_t poll_us, struct isw_rdma_port *out,
                         char *error, size_t error_bytes);
/* Peers attached through it are lost, with their events. */
int isw_device_rdma_close(isw_device *device);
/* Makes a peer's queue pairs anew and tells their numbers. */
int isw_device_rdma_prepare(isw_device *device, uint32_t peer, uint32_t *numbers);
/* Connects them to the other end's.  May take seconds (address resolution), so it may run in a thread of its own, one at a
 * time, beside all calls but isw_device_rdma_close, isw_device_free and those about the same peer. */
int isw_device_rdma_connect(isw_device *device, uint32_t peer, const struct isw_rdma_path *path);
/* Attaches the peer and tries both queue pairs: ISW_EVENT_PEER_READY or ISW_EVENT_PEER_LOST follows within peer_timeout_ms. */
int isw_device_peer_attach_rdma(isw_device *device, uint32_t peer);

/* ---- memory daemon ---- */
typedef struct isw_memory isw_memory;

struct isw_memory_config {
    uint32_t threads;
    uint32_t exports_max;
    uint32_t connections_max;
    uint32_t client_stall_timeout_ms;
};

#define ISW_MEMORY_COUNTERS(X) \
    X(read_requests) X(write_requests) X(trim_requests) X(other_requests) X(read_pages) X(write_pages) \
    X(refused_requests) X(protocol_errors) X(connections) X(connections_total) X(loops)

enum isw_memory_counter {
#define ISW_X(name) ISW_MEMORY_##name,
    ISW_MEMORY_COUNTERS(ISW_X)
#undef ISW_X
    ISW_MEMORY_COUNTER_COUNT
};

isw_memory *isw_memory_start(const struct isw_memory_config *config, char *error, size_t error_bytes);
/* An export of slabs * slab_bytes with nothing mapped: returns its number. */
int isw_memory_export_open(isw_memory *memory, uint64_t slab_bytes, uint32_t slabs);
/* Ends the export's connections; returns when no thread can touch its memory any more. */
int isw_memory_export_close(isw_memory *memory, uint32_t export_number);
/* base: slab_bytes of memory; fd, fd_offset: the memfd behind it, so that TRIM can free pages (-1: TRIM zeroes). */
int isw_memory_slab_map(isw_memory *memory, uint32_t export_number, uint32_t slab, void *base, int fd, uint64_t fd_offset);
/* Returns when no thread can touch the slab any more. */
int isw_memory_slab_unmap(isw_memory *memory, uint32_t export_number, uint32_t slab);
int isw_memory_connection_add(isw_memory *memory, uint32_t export_number, int fd, uint32_t flags, const void *early,
                              size_t early_bytes);
/* Connections open on the export now. */
int isw_memory_export_connections(isw_memory *memory, uint32_t export_number);
/* READs and WRITEs of mapped slabs that came in on the export since it was opened; negative: no such export. */
int64_t isw_memory_export_requests(isw_memory *memory, uint32_t export_number);
const uint64_t *isw_memory_counters(isw_memory *memory, uint32_t *count);
const char *isw_memory_counter_name(uint32_t counter);
/* Ends all connections and threads and frees. */
void isw_memory_stop(isw_memory *memory);

/* ---- measuring, for tools: these take memory and threads of their own, and return when they are done ---- */
struct isw_measured {
    uint64_t reads, elapsed_ns;
    uint64_t histogram[ISW_HISTOGRAM_BUCKETS]; /* latencies */
};
/* Reads pages at these offsets (bytes), in turn and again from the first, depth at a time, for limit_ms or until *stop.  The
 * connection was negotiated with simple replies and has nothing out, before and after; it blocks.  -EIO: the server answered
 * with an error; -EPROTO: with something else; -ETIMEDOUT: not at all. */
int isw_measure_nbd(int fd, const uint64_t *offsets, uint32_t count, uint32_t depth, uint32_t limit_ms, const int32_t *stop,
                    struct isw_measured *found);
/* The same of a file or block device, each read by a thread of its own.  -EINVAL, too, where O_DIRECT does not allow it. */
int isw_measure_file(int fd, const uint64_t *offsets, uint32_t count, uint32_t depth, uint32_t limit_ms, const int32_t *stop,
                     struct isw_measured *found);

#endif
