/* The device's data path.  One thread (the loop) owns everything here; nothing is locked.
 *
 *   client (nbd_connection) -> request -> operations of at most 64 pages -> transfers to a peer or the backup
 *
 * Each kind of thing comes from a pool of fixed size.  Whoever finds a pool empty waits: a client is not read, an
 * operation stands in a list; giving back wakes them.  What one file keeps stands in a struct of its header. */
#ifndef ISW_DEVICE_H
#define ISW_DEVICE_H

#include "backup_watch.h"
#include "client.h"
#include "counters.h"
#include "events.h"
#include "flush.h"
#include "histogram.h"
#include "invariants.h"
#include "mailbox.h"
#include "moving.h"
#include "op_lend.h"
#include "op_move.h"
#include "op_resync.h"
#include "op_scrub.h"
#include "op_zero.h"
#include "page_ins.h"
#include "peer_slow.h"
#include "pending.h"
#include "pool.h"
#include "prefetch.h"
#include "punch.h"
#include "seals.h"
#include "slab.h"
#include "state_sync.h"
#include "trace.h"
#include "unsynced.h"
#include "writeback.h"

struct stop {
    bool begun, flushing, ending;
    bool done; /* under the lock: a control thread waits for it */
    struct request flush;
    pthread_mutex_t lock;
    pthread_cond_t signal;
};

struct device {
    struct isw_device_config config;
    uint64_t pages;
    uint32_t slab_pages, slab_shift, slabs;
    struct isw_page *page;
    struct isw_intent *intents;
    uint64_t counters[ISW_DEVICE_COUNTER_COUNT];
    struct isw_histogram histograms[ISW_SOURCES];
    struct isw_histogram (*peer_histograms)[2]; /* page-ins, page-outs */
    struct trace trace;
    struct isw_slab_view *slab_views;
    struct isw_peer_view *peer_views;
    struct event_ring events;

    pthread_t thread;
    struct mailbox mailbox;
    int epoll_fd;
    uint64_t now_ns, tick_ns, backup_seen_ns;
    struct stop stop;
    struct invariants invariants;
    bool resources_freed; /* starved clients are worth another try */
    bool called;          /* calls were served this round, at its end */
    bool backup_done;     /* the backup has something for us: another round */
    bool peers_unsent;    /* transfers were handed in after peers_send had its turn */

    struct client *clients;
    struct client_turns turns;
    uint32_t clients_used;
    struct request_queue late; /* done, to be answered when there is room in the pending buffers */

    struct pools pool;
    struct request *requests;
    struct op *ops;
    struct transfer *transfers;
    uint8_t *small_buffers, *large_buffers; /* read buffers */
    uint8_t *buffer_data;                   /* pending buffers: [buffers][4096] ... */
    struct page_buffer *buffer;             /* ... and what each is */
    uint32_t buffers;
    struct isw_checksum_key *checksum_key;
    struct seals seals;
    uint32_t *sequence;

    struct slab *slab;
    struct forgetting forgetting;
    struct trims trims;
    uint32_t draining; /* slabs that are being given up */

    struct schedule schedule;
    struct zeroing zeroing;
    struct movers movers;
    struct loans loans;
    struct moves moves;
    struct resync resync;
    struct scrub scrub;
    struct hedging hedging;
    struct prefetch prefetch;

    struct dirty_queue dirty;
    struct resting resting;
    struct epochs epochs;
    struct flush flush;
    struct state_sync state_sync;
    struct punches punches;
    struct writeback writeback;
    struct page_ins page_ins;
    struct unsynced unsynced;
    struct backup *backup;
    struct backup_file_watch watch;
    uint32_t direct_in_flight; /* operations' own reads and writes of the backup; write-behind counts its own */
    uint32_t writes_through;   /* WRITEs that are to be answered from the backup: in flight, behind older writes of their pages, or without room */

    struct peer *peers;
    uint32_t peers_held;
    struct rdma *rdma; /* NULL: no RDMA device is open */
    uint8_t *probe_pages; /* two a peer; first of what is registered with it */
    void *arena;
    size_t arena_bytes;
};

static inline uint32_t slab_of(const struct device *d, uint64_t page)
{
    return (uint32_t)(page >> d->slab_shift);
}
/* Page I/O may be asked of it now: it has not just failed, and is not held. */
static inline bool peer_up(const struct peer *peer)
{
    return !peer->failed && !peer->hold.until_ns;
}
/* It has remote memory that is to be had, and is not being given up. */
static inline bool slab_mapped(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state == ISW_SLAB_MAPPED && peer_up(&d->peers[view->peer]);
}
/* Its peer may come back with it. */
static inline bool slab_on_hold(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state != ISW_SLAB_UNMAPPED && d->peers[view->peer].hold.until_ns;
}
/* Pages of it can be read from its peer, also while it drains. */
static inline bool slab_reachable(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state != ISW_SLAB_UNMAPPED && peer_up(&d->peers[view->peer]);
}
static inline uint8_t *buffer_data(const struct device *d, uint32_t buffer)
{
    return d->buffer_data + (uint64_t)(buffer - 1) * ISW_PAGE_BYTES;
}
static inline uint8_t *sealed_data(const struct device *d, uint32_t buffer)
{
    return d->seals.data + (uint64_t)(buffer - 1) * ISW_PAGE_BYTES;
}
static inline uint32_t page_checksum(const struct device *d, const uint8_t *page)
{
    return isw_checksum(d->checksum_key, page);
}
static inline struct page_buffer *buffer_at(struct device *d, uint32_t buffer)
{
    return &d->buffer[buffer - 1];
}
static inline void epoch_add(struct device *d, uint64_t epoch)
{
    d->epochs.count[epoch % EPOCHS]++;
}
static inline void epoch_remove(struct device *d, uint64_t epoch)
{
    if (must_hold(d, d->epochs.count[epoch % EPOCHS], ISW_INVARIANT_EPOCH, epoch))
        d->epochs.count[epoch % EPOCHS]--;
}
static inline void tally(struct device *d, enum isw_device_counter counter, uint64_t by)
{
    count64(&d->counters[counter], by);
}
static inline void untally(struct device *d, enum isw_device_counter counter, uint64_t by)
{
    if (must_hold(d, d->counters[counter] >= by, ISW_INVARIANT_COUNT, counter))
        uncount64(&d->counters[counter], by);
}

#endif
