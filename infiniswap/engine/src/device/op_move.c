/* Promotion: a page that is only on the backup, in a slab that is mapped now, gets a remote copy.  A few pages at a time, and
 * only while there is plenty of everything. */
#include "device.h"
#include "op.h"
#include "op_move.h"
#include "pages.h"
#include "pool.h"

#include <errno.h>

enum {
    MOVE_PAGES = 16,
    MOVERS = 2,
    SCAN_PAGES = 4096, /* pages looked at in one round */
    SLOW_COST = 64,    /* what a slab of a slow peer counts among them */
};

static bool wants_promotion(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    return !(meta & (ISW_PAGE_BUSY | ISW_PAGE_DISK_BUSY | ISW_PAGE_WRITING)) && !page_pending(d, page) &&
           (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_DISK;
}

/* The page is worth another look, now that nobody is writing it; the slab may have been gone through without it. */
void movers_add(struct device *d, uint64_t page)
{
    uint32_t number = slab_of(d, page), at = (uint32_t)(page & (d->slab_pages - 1));
    struct slab *slab = &d->slab[number];
    if (d->slab_views[number].state != ISW_SLAB_MAPPED)
        return;
    if (slab->move.listed) {
        if (slab->move.at > at)
            slab->move.at = at;
        return;
    }
    slab->move.at = at;
    slab->move.listed = true;
    slab->move.next = NULL;
    *d->movers.end = slab;
    d->movers.end = &slab->move.next;
}

static void movers_remove_first(struct device *d)
{
    struct slab *slab = d->movers.first;
    slab->move.listed = false;
    d->movers.first = slab->move.next;
    if (!d->movers.first)
        d->movers.end = &d->movers.first;
}

static void give_up(struct device *d, struct op *op)
{
    op->stage = STAGE_DONE;
    if (op->locked)
        pages_unlock(d, op);
    op_give(d, op);
    d->movers.in_flight--;
}

/* False: something is missing just now. */
static bool start(struct device *d, uint64_t first, uint32_t pages)
{
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    struct op *op = op_take(d, OP_PROMOTE, first, pages);
    if (!op)
        return false;
    d->movers.in_flight++;
    op->stage = STAGE_FETCH;
    /* None was busy, so locking cannot park. */
    if (!read_buffer_take(d, op) || !pages_lock(d, op) || !op_transfer(d, op, TRANSFER_DISK_READ, 0, pages)) {
        give_up(d, op);
        d->resources_freed = freed;
        return false;
    }
    return true;
}

void movers_start(struct device *d)
{
    uint32_t budget = SCAN_PAGES;
    while (d->movers.first && d->movers.in_flight < MOVERS && budget) {
        struct slab *slab = d->movers.first;
        uint32_t number = (uint32_t)(slab - d->slab);
        uint64_t base = (uint64_t)number << d->slab_shift;
        uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
        const struct isw_slab_view *view = &d->slab_views[number];
        if (!slab_mapped(d, number) || slab->moving || base + slab->move.at >= end) {
            movers_remove_first(d);
            continue;
        }
        if (!link_takes(&d->peers[view->peer].read) || !link_takes(&d->peers[view->peer].write)) {
            movers_remove_first(d); /* others have their turn; it comes again when its peer does better */
            movers_add(d, base + slab->move.at);
            budget -= budget < SLOW_COST ? budget : SLOW_COST;
            continue;
        }
        if (d->pool.ops_free < ISW_OPS / 2 || d->pool.buffers_free < d->buffers / 2)
            return;
        uint64_t page = base + slab->move.at;
        uint32_t pages = 0;
        budget--;
        while (pages < MOVE_PAGES && page + pages < end && wants_promotion(d, page + pages))
            pages++;
        if (pages && !start(d, page, pages))
            return;
        slab->move.at += pages ? pages : 1;
    }
}

/* What was DOUBTFUL, or became so meanwhile, is sure from now on: it was held still since it was read, so this is the version
 * that it reads as, and it comes to the backup again from here. */
static void promoted(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        bool doubtful = d->page[op->first + i].meta & ISW_PAGE_DOUBTFUL;
        seal_commit(d, op, i);
        page_set_remote(d, op->first + i, op->intent->checksum[i], doubtful ? ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL : 0);
    }
    tally(d, ISW_DEVICE_promoted_pages, op->pages);
    give_up(d, op);
}

void op_move_run(struct device *d, struct op *op)
{
    /* Only from the list of those who wait for a transfer: the second leg of a promotion. */
    if (!slab_mapped(d, slab_of(d, op->first)))
        give_up(d, op);
    else if (!op_transfer(d, op, TRANSFER_PEER_WRITE, 0, op->pages))
        op_wait_for_transfer(d, op);
}

/* The pages are let go, for clients want them; the operation keeps what the transfer still touches until it ends. */
void op_move_overdue(struct device *d, struct op *op)
{
    if (op->unsure)
        return;
    op->unsure = true;
    d->movers.in_flight--;
    pages_unlock(d, op);
    movers_add(d, op->first);
}

void op_move_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    if (op->unsure) {
        d->movers.in_flight++; /* as give_up expects */
        give_up(d, op);
        return;
    }
    bool stale = t->generation != d->slab_views[t->slab].generation;
    if (error || stale) {
        uint64_t first = op->first;
        give_up(d, op);
        /* Nothing is wrong with the pages.  It was taken back unsent from a slow peer, or their slab has another place by now,
         * and was gone through while they were held. */
        if (error == ECANCELED || stale)
            movers_add(d, first);
    } else if (t->kind == TRANSFER_DISK_READ) {
        for (uint32_t i = 0; i < op->pages; i++) {
            op->intent->checksum[i] = page_checksum(d, op_page(d, op, i));
            if (d->seals.sealer)
                seal_page(d, op, i, op_page(d, op, i), op_page(d, op, i));
        }
        op->stage = STAGE_REMOTE;
        op_move_run(d, op);
    } else {
        promoted(d, op);
    }
}
