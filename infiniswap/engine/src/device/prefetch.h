/* Prefetch: pages that are likely to be read next are asked for before they are. */
#ifndef ISW_PREFETCH_H
#define ISW_PREFETCH_H

#include "infiniswap_engine.h"
#include "trend.h"

#include <stdbool.h>

struct device;
struct op;
struct transfer;

enum {
    PREFETCH_PAGES = 256, /* guesses that are here or on their way: a MiB, which nothing else uses */
    PREFETCH_FLYING = 96, /* of them on their way ... */
    PREFETCH_PEER_FLYING = 48, /* ... from one peer, so that a silent one leaves some to others ... */
    PREFETCH_DISK_FLYING = 32, /* ... and from the backup */
    PREFETCH_RUN = 8,     /* pages of one transfer */
    PREFETCH_KEEP_MS = 2000, /* what nobody has read by then was guessed wrong */
    PREFETCH_JUDGED = 128, /* guesses whose end is known, after which they are judged: a half of them were read, or ... */
    PREFETCH_TRIAL = 32,   /* ... there is a pause, and afterwards so many are tried */
    PREFETCH_PAUSE_MIN_MS = 1000, PREFETCH_PAUSE_MAX_MS = 64000, /* twice as long each time */
    PREFETCH_BUCKETS = 512,
};

enum guess_state { GUESS_FREE, GUESS_ASKED, GUESS_READY };

struct guess {
    uint64_t page;
    uint64_t sequence;  /* the page's write counter when it was asked for */
    uint64_t ready_ns;
    struct op *op;      /* ASKED: the operation that fetches it */
    uint32_t serial;    /* of the trend ... */
    uint16_t trend;     /* ... that made it */
    uint8_t state;      /* enum guess_state */
    bool remote;        /* from a peer, not the backup */
    uint32_t sync_failures; /* d->flush.sync_failures, then: afterwards the backup may have had an older version */
    uint16_t next_same; /* in its bucket */
    uint16_t next, previous; /* free list; READY: by age */
};

/* Numbers of guesses are index + 1; 0: none. */
struct prefetch {
    struct trends *trends; /* NULL: it is off */
    struct guess *guess;
    uint8_t *data; /* a page each */
    uint16_t *bucket;
    uint32_t free, oldest, newest; /* READY: oldest to newest */
    uint32_t held;             /* not FREE */
    uint32_t flying;           /* ASKED */
    uint16_t peer_flying[ISW_PEERS_MAX + 1]; /* of these; the last: from the backup */
    uint64_t wanted[TRENDS / 64]; /* trends that have been read along in this round */
    bool any_wanted;
    uint32_t judged, good;
    bool trial;
    uint64_t pause_ns, paused_until_ns;
};

void prefetch_open(struct device *d);
/* A READ has come. */
void prefetch_note(struct device *d, uint64_t offset, uint64_t bytes);
/* Once a round, behind all that clients have asked for in it. */
void prefetch_run(struct device *d);
void prefetch_tick(struct device *d);

/* The number of a guess of that page that is as good as the page itself, or will be; 0: there is none. */
uint32_t prefetch_find(const struct device *d, uint64_t page);
static inline const struct guess *guess_at(const struct prefetch *p, uint32_t number)
{
    return &p->guess[number - 1];
}
static inline uint8_t *guess_data(const struct prefetch *p, uint32_t number)
{
    return p->data + (uint64_t)(number - 1) * ISW_PAGE_BYTES;
}
/* A READ has it: the guess is free again.  True: it came from a peer. */
bool prefetch_take(struct device *d, uint32_t number, uint8_t *into);
/* The backup's copy of it has proved wrong: what came from there is not taken any more. */
void prefetch_distrust_backup(struct device *d, uint64_t page);
void op_prefetch_transferred(struct device *d, struct transfer *transfer, int error);
/* It takes too long: who waits for it, or comes for it before it is here, asks by himself. */
void op_prefetch_let_go(struct device *d, struct op *op);

#endif
