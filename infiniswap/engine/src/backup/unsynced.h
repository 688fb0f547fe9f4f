/* What was written to the backup and no fdatasync covers yet. */
#ifndef ISW_UNSYNCED_H
#define ISW_UNSYNCED_H

#include <stdbool.h>
#include <stdint.h>

struct device;

struct unsynced_run {
    uint64_t first;
    uint32_t pages;
};

struct unsynced { /* numbers grow for ever */
    struct unsynced_run *run;
    uint32_t first, covered, end; /* covered: by the sync in flight, up to there */
    bool inherited; /* a killed process wrote before us, and no fdatasync of ours has gone well yet: one is wanted at once */
};

void unsynced_open(struct device *d);
bool unsynced_room(const struct device *d); /* for one more write to the backup */
bool unsynced_wants_sync(const struct device *d);
void unsynced_add(struct device *d, uint64_t first, uint32_t pages);
void unsynced_submitted(struct device *d);
void unsynced_done(struct device *d);
void unsynced_failed(struct device *d);
void page_distrust_backup(struct device *d, uint64_t page);

#endif
