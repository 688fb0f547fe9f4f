/* What the state file says of lost pages, and whether a power cut would leave it so. */
#ifndef ISW_STATE_SYNC_H
#define ISW_STATE_SYNC_H

#include <stdbool.h>
#include <stdint.h>

struct backup_request;
struct device;

struct state_sync { /* changes of LOST flags are numbered; a slab has the number of its last one */
    uint64_t changes, covered, synced; /* so many there were; of which the sync under way, and the last good one, know */
};

void state_sync_open(struct device *d);
void state_lost_changed(struct device *d, uint32_t slab);
bool state_unsynced(const struct device *d);
bool state_slab_unsynced(const struct device *d, uint32_t slab);
void state_sync(struct device *d, struct backup_request *request);
void state_synced(struct device *d, int error);

#endif
