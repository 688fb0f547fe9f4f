/* What the device's data path takes at start, and the most of everything that it does at a time. */
#ifndef ISW_BOUNDS_H
#define ISW_BOUNDS_H

#include "infiniswap_engine.h"

enum {
    TRANSFERS = 2 * ISW_OPS,      /* an operation has one in flight, seldom more */
    SMALL_BUFFERS = 1088,         /* read buffers of one page, besides one for each connection */
    LARGE_BUFFERS = 48,           /* read buffers of ISW_OP_PAGES_MAX pages */
    READ_PIECES_MAX = 8,          /* operations that one READ has at a time: the kernel's largest, 1,280 KiB, takes five */
    HEDGE_SMALL = 64,             /* so many of them, and of operations, are kept for asking another copy (op_hedge.c): ... */
    HEDGE_LARGE = 8,              /* ... that must be possible when all others wait for a slow peer */
    HEDGE_OPS = 64,
    SEQUENCES = 1 << 16,          /* write counters; pages share them by hash, which costs a retry, never a wrong byte */
    EPOCHS = 4096,                /* flushes that may be told apart; later ones share the last */
    RUN_PAGES_MAX = 256,          /* pages of one backup write */
    LOG_RUNS = 1000,              /* such writes in flight with a log, which makes two full chunks of half of them */
    BACKUP_READS_MAX = 192,       /* backup reads and write-throughs in flight */
    PAGE_INS_KEPT = 64,           /* of these are kept for page-ins */
    FORGET_PAGES_AT_ONCE = 16384, /* pages of lost slabs that a round goes through: some 50 us */
    SCAN_PAGES_AT_ONCE = 1 << 16, /* pages that all BLOCK_STATUS and TRIM together look at in a round: some 100 us ... */
    SCAN_SLICE_PAGES = 1 << 13,   /* ... and one of them before the next one's turn */
    PUNCH_PAGES_AT_ONCE = 1 << 13, /* pages that are looked at in a round for what is to be zeroed on the backup */
    PUNCH_RUN_PAGES_MAX = 4096,   /* zeroed by one request to it */
    SCAN_OP_COST = 256,           /* beginning or ending one takes as long as so many pages */
    ZERO_PAGE_COST = 16,          /* a page zeroed takes as long as so many looked at */
    STATUS_PAGES_MAX = 1 << 20,   /* pages that one BLOCK_STATUS looks at */
    LATE_BUFFERS_MAX = 4096,      /* pending buffers (an eighth of them at most) of writes that are answered late */
    STATUS_EXTENTS_MAX = 256,
    PEER_RX_BYTES = 320 << 10, /* the largest answer and then some */
    TICK_MS = 20,                 /* clocks that nothing else drives: time-outs, write-behind delay */
    BACKUP_RETRY_MS = 1000,       /* of a page that the backup would not take, and of an fdatasync that failed ... */
    BACKUP_RETRY_DOUBLINGS = 4,   /* ... for a page twice as long each time, up to 8 s */
    BACKUP_FAILURES_MAX = 8,      /* failed writes in a row, after which all write-behind pauses */
    BACKUP_WATCH_MS = 1000,
    SWEEP_LOOKS = 4096,           /* pending pages that a round looks at for some that are to go to the backup: some 100 us */
    UNSYNCED_RUNS = 1 << 16,      /* writes to the backup that no fdatasync covers; a power of two */
    MOVING_MAX = 32,             /* slabs that move at a time, ... */
    MOVING_SLAB_PAGES_MAX = 1 << 20, /* ... of at most so many pages together, but always two: a bit for each is kept */
    MOVING_PAGES_PER_S = 16384,  /* copied at leisure: 64 MiB/s */
    COPY_OPS = 4,       /* operations that copy; and so many more that a peer does not answer */
    RESYNC_OPS = 8,     /* operations and ... */
    RESYNC_BUFFERS = 64, /* ... pending buffers (a quarter of them at most) that are kept for resync while it has work */
};

#endif
