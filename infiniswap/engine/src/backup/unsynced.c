/* What was written to the backup since fdatasync last went well.  When it fails, nobody knows which of that is on the disk:
 * Linux reports each failed write once, and the next fdatasync succeeds over it.  So the backup's copies of all of it stop to
 * count.  What a peer holds too goes there again (op_resync.c); what was zeroed is zeroed again; what nothing else holds
 * becomes DOUBTFUL: it is read from the backup as before, and every FLUSH fails until it is written again, by a client or by
 * resync, from the copy that promotion makes (op_move.c).
 *
 * The log has an end: half full, the engine asks for a sync of its own, and what would not fit waits. */
#include "device.h"
#include "pages.h"
#include "punch.h"
#include "slab.h"
#include "unsynced.h"

static struct unsynced_run *entry(const struct device *d, uint32_t number)
{
    return &d->unsynced.run[number % UNSYNCED_RUNS];
}

/* What a killed process wrote last, nobody knows: all that it left counts as written and not synced. */
void unsynced_open(struct device *d)
{
    const uint64_t most = 1u << 31;
    d->unsynced.inherited = d->config.recovering;
    for (uint64_t page = 0; d->config.recovering && page < d->pages; page += most)
        *entry(d, d->unsynced.end++) =
            (struct unsynced_run){.first = page, .pages = (uint32_t)(d->pages - page < most ? d->pages - page : most)};
}

bool unsynced_room(const struct device *d)
{
    return UNSYNCED_RUNS - (d->unsynced.end - d->unsynced.first) > d->writeback.in_flight + d->direct_in_flight;
}

bool unsynced_wants_sync(const struct device *d)
{
    return d->unsynced.inherited || d->unsynced.end - d->unsynced.first > UNSYNCED_RUNS / 2;
}

void unsynced_add(struct device *d, uint64_t first, uint32_t pages)
{
    struct unsynced *u = &d->unsynced;
    struct unsynced_run *last = u->end != u->covered ? entry(d, u->end - 1) : NULL;
    if (last && last->first + last->pages == first && last->pages < UINT32_MAX - pages) {
        last->pages += pages;
        return;
    }
    *entry(d, u->end++) = (struct unsynced_run){.first = first, .pages = pages};
}

void unsynced_submitted(struct device *d)
{
    d->unsynced.covered = d->unsynced.end;
}

void unsynced_done(struct device *d)
{
    d->unsynced.first = d->unsynced.covered;
    d->unsynced.inherited = false;
}

/* The backup's copy of the page does not count any more. */
void page_distrust_backup(struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta, number = slab_of(d, page);
    if (meta & ISW_PAGE_DISK) {
        bool held = meta & ISW_PAGE_REMOTE && slab_keeps_copies(d, number);
        if (!held && !(meta & ISW_PAGE_DOUBTFUL))
            d->flush.losses++; /* so that one FLUSH tells, also of what is sure again by then */
        page_set_flags(d, page, held ? 0 : ISW_PAGE_DOUBTFUL, held ? ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL : 0);
    } else if (!(meta & ISW_PAGE_PERSISTENT) && !page_pending(d, page)) {
        page_set_punch(d, page, d->epochs.now, 0, 0);
        punch_wanted(d, page, d->epochs.now);
    }
}

/* Of what was written after the sync had begun, too: which of it the error was about is not told. */
void unsynced_failed(struct device *d)
{
    struct unsynced *u = &d->unsynced;
    d->flush.sync_failures++;
    u->inherited = false;
    for (; u->first != u->end; u->first++)
        for (uint32_t i = 0; i < entry(d, u->first)->pages; i++)
            page_distrust_backup(d, entry(d, u->first)->first + i);
    u->covered = u->end;
}
