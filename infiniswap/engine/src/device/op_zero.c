/* TRIM and WRITE_ZEROES of whole pages: they become "never written"; the backup and the peer hear of it behind the request. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "op_zero.h"
#include "pages.h"
#include "pending.h"
#include "punch.h"
#include "slab.h"
#include "trims.h"

enum { SEEN_REMOTE = 1 };

static void zero_page(struct device *d, uint64_t page, uint32_t *seen)
{
    uint32_t meta = d->page[page].meta;
    if (!(meta & (ISW_PAGE_PERSISTENT | ISW_PAGE_DISK_BUSY)) && !page_pending(d, page))
        return;
    if ((meta & ISW_PAGE_PERSISTENT) == ISW_PAGE_PUNCH && !page_pending(d, page))
        return; /* it is owed already */
    if (meta & ISW_PAGE_REMOTE)
        *seen |= SEEN_REMOTE;
    uint64_t epoch = pending_epoch(d, page);
    page_set_punch(d, page, epoch, 0, ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_LOST | ISW_PAGE_WRITING | ISW_PAGE_DOUBTFUL);
    pending_drop(d, page);
    punch_wanted(d, page, epoch);
    slab_release_if_idle(d, slab_of(d, page));
}

void op_zero_begin(struct device *d, struct op *op)
{
    op->order = ++d->zeroing.begun;
    op->next_zeroing = d->zeroing.newest;
    op->link_zeroing = &d->zeroing.newest;
    if (d->zeroing.newest)
        d->zeroing.newest->link_zeroing = &op->next_zeroing;
    d->zeroing.newest = op;
    op_scan(d, op);
}

static void finish(struct device *d, struct op *op)
{
    *op->link_zeroing = op->next_zeroing;
    if (op->next_zeroing)
        op->next_zeroing->link_zeroing = op->link_zeroing;
    op->stage = STAGE_DONE;
    op_wake_waiters(d, op);
    request_op_done(d, op);
}

/* NBD lets a server answer overlapping requests in any order, but who trims and writes without waiting means to keep what he
 * wrote: a TRIM, which goes on in slices, is not overtaken by a later WRITE of its pages. */
bool op_zero_is_ahead(struct device *d, struct op *op)
{
    for (struct op *zero = d->zeroing.newest; zero; zero = zero->next_zeroing) {
        if (zero->order > op->order || op->first >= zero->first + zero->pages || op->first + op->pages <= zero->first + zero->cursor)
            continue;
        tally(d, ISW_DEVICE_busy_waits, 1);
        op_wait_for(op, zero);
        return true;
    }
    return false;
}

uint32_t op_zero_run(struct device *d, struct op *op, uint32_t pages_max)
{
    uint64_t page = op->first + op->cursor, end = op->first + op->pages;
    uint32_t budget = pages_max;
    struct op *owner = NULL;
    while (page < end && budget && !owner) {
        uint64_t begin = page, slab_end = ((page >> d->slab_shift) + 1) << d->slab_shift;
        uint32_t seen = 0;
        for (; page < end && page < slab_end && budget; page++, budget--) {
            owner = page_owner(d, page);
            if (owner)
                break;
            zero_page(d, page, &seen);
        }
        pages_touch_sequence(d, begin, page - begin);
        if (seen & SEEN_REMOTE)
            trims_send(d, begin, (uint32_t)(page - begin));
    }
    op->cursor = page - op->first;
    if (owner) {
        tally(d, ISW_DEVICE_busy_waits, 1);
        op_wait_for(op, owner);
    } else if (page < end) {
        op_scan(d, op);
    } else {
        finish(d, op);
    }
    return pages_max - budget;
}
