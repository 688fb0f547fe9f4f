/* Pending pages on their way to the backup. */
#ifndef ISW_WRITEBACK_H
#define ISW_WRITEBACK_H

#include "backup.h"
#include "bounds.h"
#include "sweep.h"

struct device;

/* A write of neighbouring pending pages, or a range to zero, on its way to the backup. */
struct run {
    struct backup_request backup;
    uint64_t first;
    uint32_t pages;
    uint32_t sync_failures; /* of the flush, when it began */
    struct run *next;
    struct iovec iov[RUN_PAGES_MAX];
    uint32_t buffer[RUN_PAGES_MAX];
    uint32_t crc[RUN_PAGES_MAX]; /* for a log */
};

struct writeback {
    struct run *runs, *free_runs;
    uint32_t in_flight, pages; /* runs; and pages in those that write */
    uint64_t pause_ns; /* where nothing succeeds, until then */
    uint32_t failures; /* in a row */
    struct sweep sweep;
    bool more; /* there is more to look at, now */
};

void writeback_run(struct device *d);
void backup_reap(struct device *d);
struct run *run_take(struct device *d);
void disk_idle(struct device *d, uint64_t page);

#endif
