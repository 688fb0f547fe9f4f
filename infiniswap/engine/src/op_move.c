/* The engine's own operations, a few pages at a time and only while there is plenty of everything:
 * promotion (a page that is only on the backup, in a slab that is mapped now, gets a remote copy) and
 * resync (a page whose pending copy died with the process gets on the backup again from its remote copy). */
#include "device.h"

enum {
    MOVE_PAGES = 16,
    MOVERS = 2,
    SCAN_PAGES = 4096, /* pages looked at in one round */
};

static enum { MOVE_NOT, MOVE_UP, MOVE_DOWN } move_of(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    if (meta & (ISW_PAGE_BUSY | ISW_PAGE_DISK_BUSY | ISW_PAGE_WRITING) || page_pending(d, page))
        return MOVE_NOT;
    switch (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) {
    case ISW_PAGE_DISK:
        return MOVE_UP;
    case ISW_PAGE_REMOTE:
        return MOVE_DOWN;
    default:
        return MOVE_NOT;
    }
}

/* The page is worth another look, now that nobody is writing it; the slab may have been gone through without it. */
void movers_add(struct device *d, uint64_t page)
{
    uint32_t number = slab_of(d, page), at = (uint32_t)(page & (d->slab_pages - 1));
    struct slab *slab = &d->slab[number];
    if (d->slab_views[number].state != ISW_SLAB_MAPPED)
        return;
    if (slab->in_movers) {
        if (slab->mover > at)
            slab->mover = at;
        return;
    }
    slab->mover = at;
    slab->in_movers = true;
    slab->next_mover = NULL;
    *d->mover_end = slab;
    d->mover_end = &slab->next_mover;
}

static void movers_remove_first(struct device *d)
{
    struct slab *slab = d->mover_first;
    slab->in_movers = false;
    d->mover_first = slab->next_mover;
    if (!d->mover_first)
        d->mover_end = &d->mover_first;
}

static void give_up(struct device *d, struct op *op)
{
    for (uint32_t i = 0; op->kind == OP_RESYNC && i < op->pages; i++)
        if (op->buffer[i])
            buffer_give(d, op->buffer[i]);
    op->stage = STAGE_DONE;
    if (op->locked)
        pages_unlock(d, op);
    op_give(d, op);
    d->movers_in_flight--;
}

/* False: something is missing just now. */
static bool start(struct device *d, enum op_kind kind, uint64_t first, uint32_t pages)
{
    struct op *op = op_take(d, kind, first, pages);
    if (!op)
        return false;
    d->movers_in_flight++;
    memset(op->buffer, 0, sizeof op->buffer[0] * pages);
    bool ready = kind == OP_PROMOTE ? read_buffer_take(d, op) : true;
    for (uint32_t i = 0; kind == OP_RESYNC && ready && i < pages; i++)
        ready = (op->buffer[i] = buffer_take(d, first + i)) != 0;
    ready = ready && pages_lock(d, op); /* none was busy, so this cannot park */
    if (!ready) {
        give_up(d, op);
        return false;
    }
    op->stage = STAGE_FETCH;
    if (!op_transfer(d, op, kind == OP_PROMOTE ? TRANSFER_DISK_READ : TRANSFER_PEER_READ, 0, pages)) {
        give_up(d, op);
        return false;
    }
    return true;
}

void movers_start(struct device *d)
{
    uint32_t budget = SCAN_PAGES;
    while (d->mover_first && d->movers_in_flight < MOVERS && budget) {
        struct slab *slab = d->mover_first;
        uint32_t number = (uint32_t)(slab - d->slab);
        uint64_t base = (uint64_t)number << d->slab_shift;
        uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
        const struct isw_slab_view *view = &d->slab_views[number];
        if (view->state != ISW_SLAB_MAPPED || d->peers[view->peer].failed || base + slab->mover >= end) {
            movers_remove_first(d);
            continue;
        }
        if (d->ops_free < ISW_OPS / 2 || d->buffers_free < d->buffers / 2)
            return;
        uint64_t page = base + slab->mover;
        int move = move_of(d, page);
        uint32_t pages = 1;
        budget--;
        while (move != MOVE_NOT && pages < MOVE_PAGES && page + pages < end && move_of(d, page + pages) == (unsigned)move)
            pages++;
        if (move != MOVE_NOT && !start(d, move == MOVE_UP ? OP_PROMOTE : OP_RESYNC, page, pages))
            return;
        slab->mover += pages;
    }
}

static void promoted(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++)
        page_set_remote(d, op->first + i, op->intent->crc[i], 0);
    tally(d, ISW_DEVICE_promoted_pages, op->pages);
    give_up(d, op);
}

static void resynced(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        uint64_t page = op->first + i;
        if (isw_crc32c(op_page(d, op, i), ISW_PAGE_BYTES) == d->page[page].crc) {
            pending_commit(d, op, i);
            op->buffer[i] = 0;
        } else {
            tally(d, ISW_DEVICE_checksum_mismatches, 1);
            tally(d, ISW_DEVICE_lost_pages, 1);
            event_post(&d->events, ISW_EVENT_MISMATCH, (uint32_t)d->slab_views[slab_of(d, page)].peer,
                       slab_of(d, page), page);
            page_set_flags(d, page, ISW_PAGE_LOST, ISW_PAGE_REMOTE);
        }
    }
    give_up(d, op);
}

void op_move_run(struct device *d, struct op *op)
{
    /* Only from the list of those who wait for a transfer: the second leg of a promotion. */
    const struct isw_slab_view *view = &d->slab_views[slab_of(d, op->first)];
    if (view->state != ISW_SLAB_MAPPED || d->peers[view->peer].failed)
        give_up(d, op);
    else if (!op_transfer(d, op, TRANSFER_PEER_WRITE, 0, op->pages))
        op_wait_for_transfer(d, op);
}

void op_move_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    bool stale = t->generation != d->slab_views[t->slab].generation;
    if (error || stale) {
        give_up(d, op);
    } else if (op->kind == OP_RESYNC) {
        resynced(d, op);
    } else if (t->kind == TRANSFER_DISK_READ) {
        for (uint32_t i = 0; i < op->pages; i++)
            op->intent->crc[i] = isw_crc32c(op_page(d, op, i), ISW_PAGE_BYTES);
        op->stage = STAGE_REMOTE;
        op_move_run(d, op);
    } else {
        promoted(d, op);
    }
}
