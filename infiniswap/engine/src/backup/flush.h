/* Who waits for which epoch. */
#ifndef ISW_FLUSH_H
#define ISW_FLUSH_H

#include "backup.h"
#include "bounds.h"

#include <stdbool.h>
#include <stdint.h>

struct device;
struct request;

struct request_queue {
    struct request *first, **end;
};

struct epochs {
    uint64_t now, done; /* all below done are on the backup */
    uint32_t count[EPOCHS];
};

struct flush {
    struct request_queue waiting, syncing;
    struct backup_request sync;
    bool sync_in_flight;
    uint32_t sync_failures;
    uint64_t pause_ns; /* after a failure, until then */
    uint64_t losses, losses_told; /* pages lost; those of which a FLUSH has told */
};

void flush_fail(struct device *d, uint64_t epoch, uint64_t first, uint64_t pages, int error);
void flush_synced(struct device *d, int error);
void flush_state_synced(struct device *d, int error);
void flush_note_loss(struct device *d); /* a backup copy does not count any more */
void flush_add(struct device *d, struct request *request);
void flush_run(struct device *d);
bool everything_on_backup(const struct device *d);

#endif
