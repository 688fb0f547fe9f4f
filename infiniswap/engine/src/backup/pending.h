/* Inside the write-behind: pending.c keeps the buffers, writeback.c brings them to the backup, punch.c zeroes there. */
#ifndef ISW_PENDING_H
#define ISW_PENDING_H

#include "device.h"

static inline struct page_buffer *buffer_at(struct device *d, uint32_t number)
{
    return &d->buffer[number - 1];
}

/* pending.c */
uint64_t pending_epoch_of(const struct device *d, const struct page_buffer *buffer);
void pending_queue(struct device *d, uint32_t number);
void pending_requeue(struct device *d, uint32_t number);
void pending_unqueue(struct device *d, uint32_t number);
void pending_free(struct device *d, uint32_t number);
void pending_rest(struct device *d, uint32_t number);
void pending_wake(struct device *d);
void pending_inherit(struct device *d, uint64_t page, uint64_t epoch);

/* writeback.c */
struct run *run_take(struct device *d);
void disk_idle(struct device *d, uint64_t page);

/* punch.c */
void punch_some(struct device *d);
void punch_run_done(struct device *d, struct run *run, int error);

#endif
