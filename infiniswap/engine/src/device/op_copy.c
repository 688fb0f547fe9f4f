/* Copying pages of a slab that moves, from its old place to its new one: a few at a time, only while there is plenty of
 * everything, and at a rate (moving.c).
 *
 * No page is locked, for a client would wait for two peers.  As with reads, the write counters tell whether a write came
 * between.  A page counts as copied only if it is, after the copy has landed, what it was: REMOTE, with the checksum of what
 * was sent.  A copy that lands late lands in memory that nobody reads; what makes that page REMOTE there is a later write or
 * promotion, which travels behind it on the same ordered connection. */
#include "device.h"
#include "op.h"
#include "op_copy.h"
#include "pages.h"
#include "peer.h"
#include "pool.h"

static struct moving *moving_of_op(const struct device *d, const struct op *op)
{
    struct moving *m = moving_of(d, slab_of(d, op->first));
    return m && m->serial == op->order ? m : NULL;
}

static void uncount(struct device *d, struct op *op)
{
    struct moving *m = moving_of_op(d, op);
    d->moves.in_flight--;
    if (m)
        m->in_flight--;
}

static void finish(struct device *d, struct op *op)
{
    if (op->unsure)
        d->moves.overdue--;
    else
        uncount(d, op);
    op->stage = STAGE_DONE;
    op_give(d, op);
}

static bool plenty(const struct device *d, const struct slab *slab)
{
    return d->moves.in_flight < COPY_OPS && d->moves.overdue < COPY_OPS && d->pool.ops_free >= ISW_OPS / 2 &&
           d->pool.large_free >= LARGE_BUFFERS / 2 && link_takes(&d->peers[slab->place[slab->at].peer].read) &&
           link_takes(&d->peers[slab->place[slab->at ^ 1].peer].write);
}

bool op_copy_start(struct device *d, struct moving *m, uint64_t first, uint32_t pages)
{
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    struct op *op = plenty(d, &d->slab[m->slab]) ? op_take(d, OP_COPY, first, pages) : NULL;
    if (!op)
        return false;
    op->order = m->serial;
    op->cursor = pages_sequence(d, first, pages);
    op->stage = STAGE_FETCH;
    d->moves.in_flight++;
    m->in_flight++;
    if (!read_buffer_take(d, op) || !op_transfer(d, op, TRANSFER_PEER_READ, 0, pages)) {
        finish(d, op);
        d->resources_freed = freed;
        return false;
    }
    return true;
}

/* Nobody waits for it but its end, and others may have its turn. */
void op_copy_overdue(struct device *d, struct op *op)
{
    if (op->unsure)
        return;
    uncount(d, op);
    op->unsure = true;
    d->moves.overdue++;
}

/* Is all of it what its checksums say?  What is not is a copy less. */
static bool good(struct device *d, struct op *op, uint32_t slab)
{
    bool all = true;
    for (uint32_t i = 0; i < op->pages; i++) {
        uint64_t page = op->first + i;
        remote_checksum_as_is(d, page, op_page(d, op, i), &op->intent->checksum[i]);
        seal_note(d, op, i);
        if (!(d->page[page].meta & ISW_PAGE_REMOTE)) {
            all = false;
        } else if (op->intent->checksum[i] != d->page[page].checksum) {
            all = false;
            tally(d, ISW_DEVICE_checksum_mismatches, 1);
            count64(&d->peer_views[d->slab_views[slab].peer].mismatches, 1);
            peer_tell(d, ISW_EVENT_MISMATCH, (uint32_t)d->slab_views[slab].peer, slab, page);
            page_forget_remote(d, page);
        }
    }
    return all;
}

static void landed(struct device *d, struct op *op, struct moving *m)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        const struct isw_page *entry = &d->page[op->first + i];
        if (!(entry->meta & ISW_PAGE_REMOTE) || entry->checksum != op->intent->checksum[i] || !seal_same(d, op, i))
            continue;
        moving_mark(d, m, op->first + i);
        tally(d, ISW_DEVICE_moved_pages, 1);
    }
}

void op_copy_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    struct moving *m = moving_of_op(d, op);
    bool undisturbed = pages_sequence(d, op->first, op->pages) == op->cursor;
    if (op->unsure || error || !m || !undisturbed) {
        finish(d, op);
    } else if (t->kind == TRANSFER_PEER_WRITE) {
        landed(d, op, m);
        finish(d, op);
    } else {
        op->stage = STAGE_REMOTE;
        if (!good(d, op, t->slab) || !op_transfer(d, op, TRANSFER_PEER_WRITE, 0, op->pages))
            finish(d, op);
    }
}
