/* The device's data path, seen from inside.  One thread (the loop) owns everything here; nothing is locked.
 *
 *   client (nbd_connection) -> request -> operations of at most 64 pages -> transfers to a peer or the backup
 *
 * Each kind of thing comes from a pool of fixed size.  Whoever finds a pool empty waits: a client is not read, an
 * operation stands in a list; giving back wakes them. */
#ifndef ISW_DEVICE_H
#define ISW_DEVICE_H

#include "backup.h"
#include "bounds.h"
#include "counters.h"
#include "events.h"
#include "histogram.h"
#include "infiniswap_engine.h"
#include "mailbox.h"
#include "nbd_connection.h"
#include "transfer.h"

#include <stdbool.h>

/* What an epoll event is about: kind in the upper half, number in the lower. */
enum loop_source {
    LOOP_MAILBOX, LOOP_BACKUP, LOOP_CLIENT, LOOP_PEER_READ, LOOP_PEER_WRITE, LOOP_RDMA, LOOP_RDMA_ASYNC
};

enum op_kind { OP_READ, OP_WRITE, OP_ZERO, OP_STATUS, OP_PROMOTE, OP_RESYNC, OP_SCRUB, OP_HEDGE };

enum op_stage {
    STAGE_NEW,      /* WRITE: its payload is still coming */
    STAGE_LOCK,     /* wants its pages for itself */
    STAGE_FETCH,    /* fills data */
    STAGE_REMOTE,   /* on its way to the peer */
    STAGE_BACKUP,   /* waits until no backup write of its pages is in flight, then writes them itself */
    STAGE_DONE,
};

enum { SOURCE_BIT_REMOTE = 1, SOURCE_BIT_PENDING = 2, SOURCE_BIT_BACKUP = 4 };

struct client;
struct slab;

/* One NBD request of a client. */
struct request {
    struct client *client;
    uint64_t cookie, offset, started_ns;
    uint32_t length;
    uint32_t issued; /* bytes that have an operation */
    uint16_t command, flags;
    uint32_t ops;    /* operations not finished */
    int error;       /* the first one */
    uint32_t sources; /* SOURCE_BIT_* */
    uint32_t late_pages; /* pending buffers of those kept for writes that are answered late */
    bool all_issued, header_sent;
    uint64_t epoch;
    uint64_t losses_told; /* FLUSH: of which others had been told when it came */
    struct request *next; /* free list, or flush queue */
};

struct op {
    enum op_kind kind;
    enum op_stage stage;
    bool locked;    /* its pages are BUSY and point here */
    bool careful;   /* READ that met a concurrent write: goes under the lock */
    bool exclusive; /* the next to write these pages to the backup: write-behind leaves them to it (disk_idle) */
    uint32_t pages;
    uint64_t first; /* page */
    uint32_t skip, bytes; /* payload: offset in the first page, length */
    uint32_t filled;      /* WRITE: payload bytes here */
    uint32_t tag;         /* own index */
    struct request *request; /* NULL: the engine's own */
    struct client *client;   /* in whose share it counts; NULL: in nobody's */
    uint64_t done, flying; /* one bit a page */
    uint32_t transfers;    /* in flight */
    int error;
    uint8_t *data; /* read buffer ... */
    uint32_t room; /* ... of so many pages */
    uint64_t cursor;  /* ZERO: pages handled; STATUS: bytes looked at */
    uint64_t order;   /* ZERO: its number; WRITE: of the last ZERO before it */
    struct op *next_zeroing, **link_zeroing; /* ZERO: until it has handled all of its pages */
    uint64_t losing;  /* WRITE: pages whose old version went meanwhile: lost, should it fail */
    struct op *twin;  /* page-in: the HEDGE that asks another copy; HEDGE: for whom */
    uint64_t twin_done;      /* HEDGE: pages that were done before it began ... */
    uint32_t twin_transfer;  /* ... and the transfer that takes long */
    struct transfer *orphan; /* WRITE: that left it and still sends its buffers */
    bool unsure;      /* WRITE: the remote copy may be of either version.  PROMOTE, RESYNC: left to end by itself */
    struct op *next;  /* in whatever list it waits */
    struct op *waiters, **waiters_end; /* operations that want a page of this one */
    struct isw_intent *intent;
    uint32_t pending[ISW_OP_PAGES_MAX]; /* while locked: what the page's index was */
    uint32_t buffer[ISW_OP_PAGES_MAX];  /* WRITE, RESYNC: new contents, index + 1 */
};

#include "writeback.h"

#include "client.h"

struct flush_queue {
    struct request *first, **end;
};

struct scrub { /* op_scrub.c */
    bool running;
    uint32_t pages_per_s, in_flight;
    uint64_t at;      /* page at which it goes on */
    uint64_t next_ns; /* when the rate allows more */
};

struct device {
    struct isw_device_config config;
    uint64_t pages;
    uint32_t slab_pages, slab_shift, slabs;
    struct isw_page *page;
    struct isw_intent *intents;
    uint64_t counters[ISW_DEVICE_COUNTER_COUNT];
    uint64_t histograms[ISW_SOURCES][ISW_HISTOGRAM_BUCKETS];
    struct isw_slab_view *slab_views;
    struct isw_peer_view *peer_views;
    struct slab *slab;
    struct event_ring events;

    pthread_t thread;
    struct mailbox mailbox;
    int epoll_fd;
    uint64_t now_ns, tick_ns;
    bool stopping, stop_flushing, ending;
    bool stopped; /* under stop_lock: a control thread waits for it */
    struct request stop_flush;
    pthread_mutex_t stop_lock;
    pthread_cond_t stop_signal;

    struct client *clients;
    struct client *ready, **ready_end;
    struct client *line_first, **line_end; /* starved clients: who has waited longest, or got least, is first */
    bool resources_freed; /* starved clients are worth another try */
    bool clients_starved; /* there may be some */
    bool called;          /* calls were served this round, at its end */
    bool peers_unsent;    /* transfers were handed in after peers_send had its turn */
    uint32_t clients_used;

    struct request *requests, *free_requests;
    uint32_t requests_free;
    struct flush_queue late; /* done, to be answered when there is room in the pending buffers */
    struct op *ops, *free_ops;
    uint32_t ops_free;
    struct transfer *transfers, *free_transfers;
    struct op *runnable, **runnable_end;          /* to be gone on with */
    struct op *scanning, **scanning_end;          /* TRIM and BLOCK_STATUS with pages left, one slice after the other */
    uint32_t scan_left;                           /* pages that they may look at in this round */
    struct op *zeroing;                           /* TRIM that has begun, newest first ... */
    uint64_t zero_order;                          /* ... and how many have begun ever */
    struct op *transfer_waiters, **transfer_waiters_end; /* no transfer or no backup slot was free */
    uint32_t *sequence;

    uint8_t *small_buffers, *large_buffers;
    uint8_t *free_small, *free_large; /* linked through their first bytes */
    uint32_t small_free, large_free;
    uint64_t hedge_due_ns;  /* when a page-in will have taken too long, at the earliest */
    uint32_t hedge_credit;  /* each answer of a peer gives some, each hedge takes HEDGE_COST */

    uint8_t *buffer_data; /* [buffers][4096] */
    struct page_buffer *buffer;
    uint32_t buffers, buffers_free, free_buffer; /* index + 1 */
    uint32_t dirty_first, dirty_last;            /* index + 1: oldest, newest */
    uint64_t epoch, epoch_done; /* current; all below epoch_done are on the backup */
    uint32_t epoch_count[EPOCHS];

    struct backup *backup;
    struct run *runs, *free_runs;
    uint32_t runs_in_flight, direct_in_flight; /* write-behind; reads and write-throughs */
    uint64_t backup_pause_ns; /* write-behind rests until then where nothing succeeds */
    uint32_t backup_failures;  /* in a row */
    uint32_t resting_first;    /* buffer + 1: pages that the backup would not take */
    uint64_t wake_ns;          /* when they are looked at again */
    bool wake_all;             /* the disk took nothing for a while, and takes something again */
    uint64_t punch_failed_ns;
    struct backup_file_watch watch;
    struct unsynced unsynced;
    struct flush_queue flush_waiting, flush_syncing;
    struct backup_request sync;
    bool sync_in_flight;
    uint32_t sync_failures;
    uint64_t sync_pause_ns; /* after a failure */
    struct slab *punch_first, **punch_end;
    bool punch_more; /* there is more to look at, now */
    struct slab *mover_first, **mover_end;
    struct slab *forget_first, **forget_end;
    uint32_t movers_in_flight;
    struct slab *resync_first, **resync_end;
    uint32_t resync_slabs, resyncs_in_flight;
    uint32_t resync_buffers; /* with its operations, or waiting for the backup */
    uint32_t draining;     /* slabs that are being given up */
    bool resync_more;      /* there is more to look at, now */
    bool resync_held;      /* pages wait for resync, so this epoch is not over: */
    uint64_t resync_epoch;
    uint64_t losses, losses_told; /* pages lost; those of which a FLUSH has told */
    struct scrub scrub;

    struct peer *peers;
    struct rdma *rdma; /* NULL: no RDMA device is open */
    uint8_t *probe_pages; /* two a peer; first of what is registered with it */
    void *arena;
    size_t arena_bytes;
};

/* pages.c: the page table and the pools of buffers */
struct op *page_owner(const struct device *d, uint64_t page); /* NULL: nobody */
uint32_t page_pending(const struct device *d, uint64_t page);
void page_set_pending(struct device *d, uint64_t page, uint32_t buffer);
void page_set_flags(struct device *d, uint64_t page, uint32_t set, uint32_t clear);
/* It reads as zero, and is to be zeroed on the backup; who waits for that epoch waits for it. */
void page_set_punch(struct device *d, uint64_t page, uint64_t epoch, uint32_t set, uint32_t clear);
uint64_t page_punch_epoch(const struct device *d, uint64_t page);
void page_set_remote(struct device *d, uint64_t page, uint32_t crc, uint32_t clear);
bool pages_lock(struct device *d, struct op *op); /* false: parked at the owner of one of them */
void pages_unlock(struct device *d, struct op *op);
uint64_t pages_sequence(const struct device *d, uint64_t first, uint32_t pages);
void pages_touch_sequence(struct device *d, uint64_t first, uint64_t pages);
void pages_recount(struct device *d);
bool page_only_remote(const struct device *d, uint64_t page);
void page_forget_remote(struct device *d, uint64_t page);
void pages_lost(struct device *d, uint64_t pages); /* the last copy of so many */

/* pool.c */
struct op *op_take(struct device *d, enum op_kind kind, uint64_t first, uint32_t pages);
void op_give(struct device *d, struct op *op);
void op_untake(struct device *d, struct op *op);
struct request *request_take(struct device *d);
void request_give(struct device *d, struct request *request);
struct transfer *transfer_take(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages);
void transfer_give(struct device *d, struct transfer *transfer);
bool read_buffer_take(struct device *d, struct op *op);
void read_buffer_give(struct device *d, struct op *op);
uint32_t buffer_take(struct device *d, uint64_t page); /* index + 1, or 0 */
uint32_t buffers_for_clients(const struct device *d);
uint32_t buffers_for_resync(const struct device *d);
void buffer_give(struct device *d, uint32_t buffer);
static inline uint8_t *buffer_data(const struct device *d, uint32_t buffer)
{
    return d->buffer_data + (uint64_t)(buffer - 1) * ISW_PAGE_BYTES;
}

/* op.c, op_read.c, op_write.c, op_zero.c, op_move.c, op_resync.c, op_scrub.c */
void op_runnable(struct device *d, struct op *op);
void op_wake_waiters(struct device *d, struct op *owner);
void op_scan(struct device *d, struct op *op);
void op_wait_for(struct op *op, struct op *owner);
void op_wait_for_transfer(struct device *d, struct op *op);
void ops_run(struct device *d);
void ops_scan(struct device *d);
void op_transferred(struct device *d, struct transfer *transfer, int error);
bool op_transfer(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages);
uint8_t *op_page(const struct device *d, const struct op *op, uint32_t at);
void op_fetch(struct device *d, struct op *op);
void op_fetched(struct device *d, struct transfer *transfer, int error);
bool op_is_elsewhere(const struct device *d, const struct op *op); /* all pages that it still waits for */
void op_read_run(struct device *d, struct op *op);
void op_write_run(struct device *d, struct op *op);
void op_write_transferred(struct device *d, struct transfer *transfer, int error);
void op_write_disk_idle(struct device *d, struct op *op);
void op_write_overdue(struct device *d, struct transfer *transfer);
void op_write_orphan_ended(struct device *d, struct transfer *transfer);
void op_zero_begin(struct device *d, struct op *op);
uint32_t op_zero_run(struct device *d, struct op *op, uint32_t pages_max); /* how many pages it looked at */
bool op_zero_is_ahead(struct device *d, struct op *op); /* of that WRITE, which is parked at it */
uint32_t op_status_run(struct device *d, struct op *op, uint32_t pages_max);
void op_move_run(struct device *d, struct op *op);
void op_resync_transferred(struct device *d, struct transfer *transfer, int error);
void op_resync_overdue(struct device *d, struct op *op);
void op_move_transferred(struct device *d, struct transfer *transfer, int error);
void op_move_overdue(struct device *d, struct op *op);
void movers_start(struct device *d);
void scrub_begin(struct device *d, uint32_t pages_per_s);
void scrub_run(struct device *d);
void op_scrub_transferred(struct device *d, struct transfer *transfer, int error);
void movers_add(struct device *d, uint64_t page);
void resync_start(struct device *d);
void resync_add(struct device *d, uint32_t slab);

/* loop.c */
void *loop_run(void *device);
void loop_round(struct device *d); /* by itself: for tests that bring their own clock and no thread */
int loop_watch(struct device *d, int fd, enum loop_source source, uint32_t number);
uint64_t clock_ns(void);

/* op_hedge.c */
bool op_hedge(struct device *d, struct transfer *transfer);
void op_hedge_run(struct device *d, struct op *op);
void op_hedge_transferred(struct device *d, struct transfer *transfer, int error);
void op_unhedge(struct op *op); /* it has all it wanted */

/* peer_slow.c */
void peers_hedge(struct device *d);

/* peer.c */
void peer_submit(struct device *d, uint32_t peer, struct transfer *transfer);
void peers_send(struct device *d);
void peers_take_down(struct device *d);
void peers_check_time(struct device *d, bool anew); /* anew: this process stood still */
void peer_down(struct device *d, struct peer *peer, int error, bool tell);

/* peer_tcp.c */
void peer_open_tcp(struct peer *peer, int read_fd, int write_fd);
void peer_event(struct device *d, struct peer_link *link, uint32_t events);

/* Adds a page to a vector of count elements, to its last one where they adjoin; returns the new count. */
static inline uint32_t vector_append(struct iovec *iov, uint32_t count, uint8_t *page)
{
    if (count && (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == page) {
        iov[count - 1].iov_len += ISW_PAGE_BYTES;
        return count;
    }
    iov[count] = (struct iovec){page, ISW_PAGE_BYTES};
    return count + 1;
}
/* A slow link takes one transfer at a time, to see whether it still is; what has another way goes there instead.  Page-outs
 * of clients do not try it: promotion does. */
static inline bool link_takes(const struct peer_link *link)
{
    return !link->pace.slow || !(link->in_flight.count || link->unsent.count);
}
static inline bool buffer_is_large(const struct device *d, const uint8_t *data)
{
    return data >= d->large_buffers && data < d->large_buffers + (size_t)LARGE_BUFFERS * ISW_OP_PAGES_MAX * ISW_PAGE_BYTES;
}
static inline uint32_t slab_of(const struct device *d, uint64_t page)
{
    return (uint32_t)(page >> d->slab_shift);
}
static inline uint64_t page_bits(uint32_t at, uint32_t pages)
{
    return (pages == 64 ? ~0ull : (1ull << pages) - 1) << at;
}
static inline void epoch_add(struct device *d, uint64_t epoch)
{
    d->epoch_count[epoch % EPOCHS]++;
}
static inline void epoch_remove(struct device *d, uint64_t epoch)
{
    d->epoch_count[epoch % EPOCHS]--;
}
static inline void tally(struct device *d, enum isw_device_counter counter, uint64_t by)
{
    count64(&d->counters[counter], by);
}
static inline void untally(struct device *d, enum isw_device_counter counter, uint64_t by)
{
    uncount64(&d->counters[counter], by);
}

#endif
