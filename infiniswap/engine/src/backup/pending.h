/* Pages acknowledged, or about to be, and not yet on the backup. */
#ifndef ISW_PENDING_H
#define ISW_PENDING_H

#include "bitmap.h"

#include <stdbool.h>
#include <stdint.h>

struct device;
struct op;

enum page_buffer_state { BUFFER_FREE, BUFFER_HELD, BUFFER_QUEUED, BUFFER_BLOCKED, BUFFER_RESTING, BUFFER_IN_FLIGHT };

/* A page acknowledged or about to be, and not yet on the backup. */
struct page_buffer {
    uint64_t page;
    uint32_t next, previous; /* index + 1; free list or dirty queue */
    uint32_t epoch;
    uint32_t queued_ms;
    uint32_t state;
    uint32_t crc;      /* CRC32C, where has_crc */
    uint32_t tried_ms; /* when the backup last would not take it ... */
    uint8_t failures;  /* ... and how often it would not */
    bool solo;         /* goes to the backup alone: a run that it was in failed */
    bool resync;       /* one of resync's share */
    bool has_crc;      /* for a log: computed while the page was in the processor's cache */
};

struct dirty_queue {
    uint32_t first, last; /* index + 1: oldest, newest */
    struct bitmap map; /* the same pages, by address */
};

struct resting { /* what the backup would not take */
    uint32_t first;   /* index + 1 */
    uint64_t wake_ns; /* when they are looked at again */
    bool wake_all;    /* the disk took nothing for a while, and takes something again */
};

void pending_commit(struct device *d, struct op *op, uint32_t at);
void pending_drop(struct device *d, uint64_t page);
void pending_note_crc(struct device *d, uint32_t buffer);
void pending_hold(struct device *d, uint32_t buffer);
void pending_resume(struct device *d, uint32_t buffer);
/* The epoch of the oldest FLUSH that waits, or would, for the page's waiting version; without one, the present. */
uint64_t pending_epoch(struct device *d, uint64_t page);
void resync_hold(struct device *d);
void resync_settled(struct device *d);

/* Inside the write-behind: */
uint64_t pending_epoch_of(const struct device *d, const struct page_buffer *buffer);
void pending_queue(struct device *d, uint32_t buffer);
void pending_requeue(struct device *d, uint32_t buffer);
void pending_unqueue(struct device *d, uint32_t buffer);
void pending_free(struct device *d, uint32_t buffer);
void pending_rest(struct device *d, uint32_t buffer);
void pending_wake(struct device *d);
void pending_inherit(struct device *d, uint64_t page, uint64_t epoch);

#endif
