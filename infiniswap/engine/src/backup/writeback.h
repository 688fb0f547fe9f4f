/* Between the data path and the backup: pending pages, what is in flight, what no fdatasync covers yet, who waits for one. */
#ifndef ISW_WRITEBACK_H
#define ISW_WRITEBACK_H

#include "backup.h"
#include "bounds.h"

struct device;
struct op;
struct request;

enum page_buffer_state { BUFFER_FREE, BUFFER_HELD, BUFFER_QUEUED, BUFFER_BLOCKED, BUFFER_RESTING, BUFFER_IN_FLIGHT };

/* A page acknowledged or about to be, and not yet on the backup. */
struct page_buffer {
    uint64_t page;
    uint32_t next, previous; /* index + 1; free list or dirty queue */
    uint32_t epoch;
    uint32_t queued_ms;
    uint32_t state;
    uint32_t tried_ms; /* when the backup last would not take it ... */
    uint8_t failures;  /* ... and how often it would not */
    bool solo;         /* goes to the backup alone: a run that it was in failed */
    bool resync;       /* one of resync's share */
};

/* A write of neighbouring pending pages, or a range to zero, on its way to the backup. */
struct run {
    struct backup_request backup;
    uint64_t first;
    uint32_t pages;
    uint32_t sync_failures; /* d->sync_failures when it began */
    struct run *next;
    struct iovec iov[RUN_PAGES_MAX];
    uint32_t buffer[RUN_PAGES_MAX];
};

struct unsynced_run {
    uint64_t first;
    uint32_t pages;
};

struct unsynced { /* unsynced.c; numbers grow for ever */
    struct unsynced_run *run;
    uint32_t first, covered, end; /* covered: by the sync in flight, up to there */
    bool inherited; /* a killed process wrote before us, and no fdatasync of ours has gone well yet: one is wanted at once */
};

struct backup_file_watch { /* backup_watch.c */
    uint64_t next_ns, checked_ns;
    uint64_t lowest; /* page of all writes since none was in flight */
};

/* pending.c, punch.c, writeback.c */
void pending_commit(struct device *d, struct op *op, uint32_t at);
void pending_drop(struct device *d, uint64_t page);
void pending_hold(struct device *d, uint32_t buffer);
void pending_resume(struct device *d, uint32_t buffer);
void writeback_run(struct device *d);
void backup_reap(struct device *d);
/* The epoch of the oldest FLUSH that waits, or would, for the page's waiting version; without one, the present. */
uint64_t pending_epoch(struct device *d, uint64_t page);
void resync_hold(struct device *d);
void resync_settled(struct device *d);
/* epoch: as of the oldest write that the zeroes take the place of. */
void punch_wanted(struct device *d, uint64_t page, uint64_t epoch);

/* unsynced.c, backup_watch.c */
void unsynced_open(struct device *d);
bool unsynced_room(const struct device *d); /* for one more write to the backup */
bool unsynced_wants_sync(const struct device *d);
void unsynced_add(struct device *d, uint64_t first, uint32_t pages);
void unsynced_submitted(struct device *d);
void unsynced_done(struct device *d);
void unsynced_failed(struct device *d);
void page_distrust_backup(struct device *d, uint64_t page);
void backup_watch(struct device *d);
void backup_before_write(struct device *d, uint64_t page);

/* flush.c */
void flush_fail(struct device *d, uint64_t epoch, uint64_t first, uint64_t pages, int error);
void flush_synced(struct device *d, int error);
void flush_note_loss(struct device *d);
void flush_add(struct device *d, struct request *request);
void flush_run(struct device *d);
bool everything_on_backup(const struct device *d);

#endif
