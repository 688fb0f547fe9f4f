/* After a power cut the backup is what counts, but for pages that were lost: only the state file knows that what the backup has
 * of them is an older version.  A FLUSH tells of a loss once; so before one succeeds the flag is on the state file's disk, and
 * before one succeeds over a page that was written anew, it has gone from there. */
#include "device.h"
#include "events.h"
#include "state_sync.h"

enum { ENTRIES_PER_BLOCK = ISW_PAGE_BYTES / sizeof(struct isw_page) };

/* What a killed process changed last, and its recovery, nobody has synced. */
void state_sync_open(struct device *d)
{
    if (!d->config.recovering)
        return;
    d->state_sync.changes++;
    for (uint32_t slab = 0; slab < d->slabs; slab++)
        d->slab[slab].lost_changed = d->state_sync.changes;
}

void state_lost_changed(struct device *d, uint32_t slab)
{
    d->slab[slab].lost_changed = ++d->state_sync.changes;
}

bool state_unsynced(const struct device *d)
{
    return d->config.state_fd >= 0 && d->state_sync.changes != d->state_sync.synced;
}

bool state_slab_unsynced(const struct device *d, uint32_t slab)
{
    return d->config.state_fd >= 0 && d->slab[slab].lost_changed > d->state_sync.synced;
}

void state_sync(struct device *d, struct backup_request *request)
{
    d->state_sync.covered = d->state_sync.changes;
    *request = (struct backup_request){.kind = BACKUP_SYNC_STATE, .fd = d->config.state_fd};
    tally(d, ISW_DEVICE_state_syncs, 1);
    d->backup->methods->submit(d->backup, request);
}

/* The kernel takes what it could not write for clean, and the next sync would succeed over it: so it is written to again. */
static void dirty_again(struct device *d, uint32_t slab)
{
    uint64_t first = (uint64_t)slab << d->slab_shift, end = first + d->slab_pages < d->pages ? first + d->slab_pages : d->pages;
    for (uint64_t page = first; page < end; page += ENTRIES_PER_BLOCK) {
        uint64_t *word = (uint64_t *)(void *)&d->page[page];
        __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    }
}

void state_synced(struct device *d, int error)
{
    if (!error) {
        d->state_sync.synced = d->state_sync.covered;
        return;
    }
    tally(d, ISW_DEVICE_state_errors, 1);
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_STATE_ERROR, .value = (uint64_t)error});
    for (uint32_t slab = 0; slab < d->slabs; slab++)
        if (state_slab_unsynced(d, slab))
            dirty_again(d, slab);
}
