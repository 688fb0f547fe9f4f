/* Resync: pages whose only copy is in a peer's memory are brought to the backup from there.  They come to be when a process
 * dies with its pending buffers, when the backup's copy proves wrong, and are what FLUSH, a stop and the release of a
 * slab wait for.  So this is no matter of leisure: it has operations and buffers of its own (RESYNC_OPS, RESYNC_BUFFERS), takes the slabs
 * in turn, and comes back for what was busy. */
#include "device.h"
#include "events.h"
#include "op.h"
#include "op_resync.h"
#include "pages.h"
#include "peer.h"
#include "pending.h"
#include "pool.h"
#include "slab.h"

enum {
    RESYNC_PAGES = 32,      /* of one operation */
    RESYNCERS = 2,          /* operations at a time ... */
    RESYNCERS_AWAITED = RESYNC_OPS, /* ... while somebody waits for them */
    RESYNC_SCAN_PAGES = 4096, /* looked at in one round */
};

static bool wants_resync(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    return !(meta & (ISW_PAGE_BUSY | ISW_PAGE_DISK_BUSY | ISW_PAGE_WRITING)) && page_only_remote(d, page);
}

/* One at a time from a peer that is slow. */
static bool to_be_asked(const struct device *d, uint32_t number)
{
    return slab_reachable(d, number) && link_takes(&d->peers[d->slab_views[number].peer].read);
}

void resync_add(struct device *d, uint32_t number)
{
    struct slab *slab = &d->slab[number];
    if (slab->resync.listed)
        return;
    slab->resync.listed = true;
    slab->resync.at = 0;
    slab->resync.next = NULL;
    *d->resync.end = slab;
    d->resync.end = &slab->resync.next;
    d->resync.slabs++;
}

static struct slab *take_first(struct device *d)
{
    struct slab *slab = d->resync.first;
    d->resync.first = slab->resync.next;
    if (!d->resync.first)
        d->resync.end = &d->resync.first;
    slab->resync.listed = false;
    d->resync.slabs--;
    return slab;
}

/* To the end of the list, so that the slabs have their turns; where it is in its slab stays. */
static void put_back(struct device *d, struct slab *slab)
{
    uint32_t at = slab->resync.at;
    resync_add(d, (uint32_t)(slab - d->slab));
    slab->resync.at = at;
}

static void end(struct device *d, struct op *op)
{
    uint32_t number = slab_of(d, op->first);
    for (uint32_t i = 0; i < op->pages; i++)
        if (op->buffer[i])
            buffer_give(d, op->buffer[i]);
    op->stage = STAGE_DONE;
    if (op->locked)
        pages_unlock(d, op);
    op_give(d, op);
    d->resync.in_flight--;
    slab_release_if_idle(d, number);
}

/* How many pages it begins with; 0: something is missing just now. */
static uint32_t start(struct device *d, uint64_t first, uint32_t pages)
{
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    if (pages > buffers_for_resync(d))
        pages = buffers_for_resync(d);
    struct op *op = pages ? op_take(d, OP_RESYNC, first, pages) : NULL;
    if (!op)
        return 0;
    d->resync.in_flight++;
    for (uint32_t i = 0; i < pages; i++) {
        op->buffer[i] = buffer_take(d, first + i);
        d->buffer[op->buffer[i] - 1].resync = true;
    }
    d->resync.buffers += pages;
    op->stage = STAGE_FETCH;
    /* None was busy, so locking cannot park. */
    if (!pages_lock(d, op) || !op_transfer(d, op, TRANSFER_PEER_READ, 0, pages)) {
        end(d, op);
        d->resources_freed = freed;
        return 0;
    }
    return pages;
}

/* Looks on in a slab for the next run that waits; 0 pages: none up to its end, or the budget is used up. */
static uint32_t find_run(const struct device *d, struct slab *slab, uint32_t *budget, uint64_t *first)
{
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
    for (; base + slab->resync.at < end && *budget; slab->resync.at++, --*budget) {
        uint32_t pages = 0;
        *first = base + slab->resync.at;
        while (pages < RESYNC_PAGES && *first + pages < end && wants_resync(d, *first + pages))
            pages++;
        if (pages)
            return pages;
    }
    return 0;
}

void resync_start(struct device *d)
{
    bool awaited = d->flush.waiting.first || d->stop.begun || d->draining;
    uint32_t most = awaited ? RESYNCERS_AWAITED : RESYNCERS, budget = RESYNC_SCAN_PAGES;
    uint32_t fruitless = 0; /* slabs in a row where nothing was to be begun */
    d->resync.more = false;
    while (d->resync.first && d->resync.in_flight < most && fruitless < d->resync.slabs) {
        struct slab *slab = take_first(d);
        uint64_t first = 0;
        if (!slab->only_remote)
            continue;
        uint32_t pages = to_be_asked(d, (uint32_t)(slab - d->slab)) ? find_run(d, slab, &budget, &first) : 0;
        uint32_t begun = pages ? start(d, first, pages) : 0;
        slab->resync.at += begun;
        put_back(d, slab);
        if (pages && !begun)
            return; /* whoever gives back what is missing wakes the loop */
        fruitless = pages ? 0 : fruitless + 1;
        if (!budget) {
            d->resync.more = true;
            return;
        }
        if (!pages)
            slab->resync.at = 0; /* what was busy comes to its turn again */
    }
}

/* The pages are let go, for clients want them; the operation keeps what the transfer still touches until it ends. */
void op_resync_overdue(struct device *d, struct op *op)
{
    if (op->unsure)
        return;
    op->unsure = true;
    d->resync.in_flight--;
    pages_unlock(d, op);
}

void op_resync_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    if (op->unsure) {
        d->resync.in_flight++; /* as end expects */
        end(d, op);
        return;
    }
    if (error || t->generation != d->slab_views[t->slab].generation) {
        end(d, op);
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++) {
        uint64_t page = op->first + i;
        uint32_t sum;
        if (remote_checksum(d, page, op_page(d, op, i), &sum) && sum == d->page[page].checksum) {
            pending_commit(d, op, i);
            op->buffer[i] = 0;
            tally(d, ISW_DEVICE_resynced_pages, 1);
        } else {
            tally(d, ISW_DEVICE_checksum_mismatches, 1);
            peer_tell(d, ISW_EVENT_MISMATCH, (uint32_t)d->slab_views[t->slab].peer, t->slab, page);
            page_forget_remote(d, page);
        }
    }
    end(d, op);
}
