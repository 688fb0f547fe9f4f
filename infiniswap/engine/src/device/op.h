/* Operations: at most 64 pages of a request, or of the engine's own work. */
#ifndef ISW_OP_H
#define ISW_OP_H

#include "infiniswap_engine.h"
#include "transfer.h"

#include <stdbool.h>

struct backup_loan;
struct client;
struct device;
struct request;

enum op_kind { OP_READ, OP_WRITE, OP_ZERO, OP_STATUS, OP_PROMOTE, OP_RESYNC, OP_SCRUB, OP_HEDGE, OP_COPY, OP_PREFETCH, OP_LEND };

enum op_stage {
    STAGE_NEW,      /* WRITE: its payload is still coming */
    STAGE_LOCK,     /* wants its pages for itself */
    STAGE_FETCH,    /* fills data */
    STAGE_REMOTE,   /* on its way to the peer */
    STAGE_BACKUP,   /* waits until no backup write of its pages is in flight, then writes them itself */
    STAGE_DONE,
};

struct op {
    enum op_kind kind;
    enum op_stage stage;
    bool locked;    /* its pages are BUSY and point here */
    bool careful;   /* READ that met a concurrent write: goes under the lock */
    bool unguessed; /* READ that does not wait for guesses any more */
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
    uint64_t cursor;  /* ZERO: pages handled; STATUS: bytes looked at; SCRUB, COPY: the pages' write counters as it began; PROMOTE: its run */
    uint64_t order;   /* ZERO: its number; WRITE: of the last ZERO before it; COPY: of its move; SCRUB: 1: of remote copies alone */
    struct op *next_zeroing, **link_zeroing; /* ZERO: until it has handled all of its pages */
    uint64_t losing;  /* WRITE: pages whose old version went meanwhile: lost, should it fail; SCRUB: that no seal of ours opens */
    struct op *twin;  /* page-in: the HEDGE that asks another copy; HEDGE: for whom */
    uint64_t twin_done;      /* HEDGE: pages that were done before it began ... */
    uint32_t twin_transfer;  /* ... and the transfer that takes long */
    struct transfer *orphan; /* WRITE: that left it and still sends its buffers */
    bool unsure;      /* WRITE: the remote copy may be of either version.  PROMOTE, RESYNC, COPY, LEND, PREFETCH: left to end by itself */
    struct backup_loan *loan; /* LEND: of its first page; the others' follow */
    struct op *next;  /* in whatever list it waits */
    struct op *next_piece; /* READ of more than 64 pages: the next 64 */
    struct op *waiters, **waiters_end; /* operations that want a page of this one */
    struct isw_intent *intent;
    uint32_t pending[ISW_OP_PAGES_MAX]; /* while locked: what the page's index was */
    uint32_t buffer[ISW_OP_PAGES_MAX];  /* WRITE, RESYNC: new contents, index + 1; PREFETCH: guesses */
};

/* Who has his turn, and who waits for one. */
struct schedule {
    struct op *runnable, **runnable_end; /* to be gone on with */
    struct op *scanning, **scanning_end; /* TRIM and BLOCK_STATUS with pages left, one slice after the other */
    uint32_t scan_left;                  /* pages that they may look at in this round */
    struct op *transfer_waiters, **transfer_waiters_end; /* no transfer or no backup slot was free */
    struct op *page_in_waiters, **page_in_waiters_end;   /* the same; they come first */
};

void op_runnable(struct device *d, struct op *op);
void op_wake_waiters(struct device *d, struct op *owner);
void op_scan(struct device *d, struct op *op);
void op_wait_for(struct op *op, struct op *owner);
void op_wait_for_transfer(struct device *d, struct op *op);
bool transfer_waiters_may(const struct device *d); /* go on */
void ops_run(struct device *d);
void ops_scan(struct device *d);
bool op_transfer(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages);
void op_transferred(struct device *d, struct transfer *transfer, int error);
uint8_t *op_page(const struct device *d, const struct op *op, uint32_t at);
void op_fetch(struct device *d, struct op *op);
void op_fetched(struct device *d, struct transfer *transfer, int error);
/* Did page arrive from a peer in the version that counts?  Where not, and it was corrupted, that is counted and told; unclear: it
 * may have been another version.  undisturbed: no write came between. */
bool op_remote_arrived(struct device *d, const struct transfer *transfer, uint64_t page, uint8_t *data, bool undisturbed, bool *unclear);
bool op_is_elsewhere(const struct device *d, const struct op *op); /* all pages that it still waits for */

static inline uint64_t page_bits(uint32_t at, uint32_t pages)
{
    return (pages == 64 ? ~0ull : (1ull << pages) - 1) << at;
}

#endif
