/* A page-in that takes long is asked of another copy, too; the first good answer wins.
 *
 * The other copy is asked by an operation of its own, a HEDGE, with a buffer of its own: what was asked of the peer may still
 * land in the first one, at any time, for as long as its connection lives.  When the HEDGE wins it takes the request over,
 * and the first operation stays behind with its buffer until its transfers have ended; when it loses it ends unheard. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "op_hedge.h"
#include "op_write.h"
#include "pages.h"
#include "pool.h"

#include <errno.h>

/* twin: a page-in that waits for t, which was asked of a peer.  False: there is no other copy, or nothing to ask it with. */
bool op_hedge(struct device *d, struct transfer *t)
{
    struct op *op = t->op;
    bool page_in = op && (op->kind == OP_READ || (op->kind == OP_WRITE && op->stage == STAGE_FETCH));
    if (!page_in || op->twin || op->error || !op_is_elsewhere(d, op))
        return false;
    struct op *hedge = op_take(d, OP_HEDGE, op->first, op->pages);
    if (!hedge)
        return false;
    if (!read_buffer_take(d, hedge)) {
        op_untake(d, hedge);
        return false;
    }
    hedge->twin = op;
    hedge->twin_transfer = t->id;
    hedge->done = hedge->twin_done = op->done;
    op->twin = hedge;
    tally(d, ISW_DEVICE_hedged_reads, 1);
    op_hedge_run(d, hedge);
    return true;
}

void op_unhedge(struct op *op)
{
    if (!op->twin)
        return;
    op->twin->twin = NULL;
    op->twin = NULL;
}

void op_hedge_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *hedge = t->op;
    if (error || pages_sequence(d, t->first, t->pages) != t->sequence || t->sync_failures != d->flush.sync_failures)
        hedge->error = EIO; /* failed, or a write came between, or the backup's copy does not count any more */
    else
        hedge->done |= page_bits(t->at, t->pages);
}

static void copy_done(struct op *to, const struct op *from, uint64_t pages)
{
    for (; pages; pages &= pages - 1) {
        size_t at = (size_t)__builtin_ctzll(pages) * ISW_PAGE_BYTES;
        memcpy(to->data + at, from->data + at, ISW_PAGE_BYTES);
    }
}

/* The request goes on with the HEDGE; what is left is op, as the one that owns the buffer and waits for nothing but its end. */
static void take_over(struct device *d, struct op *hedge, struct op *op)
{
    copy_done(hedge, op, hedge->twin_done);
    hedge->kind = OP_READ;
    hedge->stage = STAGE_DONE;
    hedge->request = op->request;
    hedge->skip = op->skip;
    hedge->bytes = op->bytes;
    hedge->request->sources |= SOURCE_BIT_BACKUP;
    client_read_goes_on(op, hedge);
    client_share_moves(op, hedge);
    op->request = NULL;
    op->kind = OP_HEDGE;
    if (op->locked)
        pages_unlock(d, op);
    request_op_done(d, hedge);
}

/* Part of a page that is to be written: op holds the page and goes on, so the two change buffers instead.  False: what it
 * waits for is something else meanwhile. */
static bool change_buffers(struct device *d, struct op *hedge, struct op *op)
{
    struct transfer *t = &d->transfers[hedge->twin_transfer & 0xffff];
    if (t->id != hedge->twin_transfer || t->op != op || op->transfers != 1)
        return false;
    uint8_t *data = op->data;
    uint32_t room = op->room;
    client_count_buffer(op, -1);
    op->data = hedge->data;
    op->room = hedge->room;
    client_count_buffer(op, 1);
    hedge->data = data;
    hedge->room = room;
    t->op = hedge;
    hedge->transfers = 1;
    op->transfers = 0;
    op->flying = 0;
    op->done = 1;
    return true;
}

/* All that it asked for is here, or will not come. */
static void end(struct device *d, struct op *hedge)
{
    struct op *op = hedge->twin;
    bool wins = op && !hedge->error && !op->error && op->transfers && op->stage == STAGE_FETCH;
    if (op)
        op_unhedge(op);
    if (wins && op->kind == OP_READ) {
        tally(d, ISW_DEVICE_hedges_won, 1);
        tally(d, ISW_DEVICE_reads_backup_pages, hedge->pages - (uint32_t)__builtin_popcountll(hedge->twin_done));
        take_over(d, hedge, op);
    } else if (wins && change_buffers(d, hedge, op)) {
        tally(d, ISW_DEVICE_hedges_won, 1);
        op_write_run(d, op);
    } else {
        op_give(d, hedge);
    }
}

void op_hedge_run(struct device *d, struct op *hedge)
{
    if (hedge->transfers)
        return;
    uint64_t all = page_bits(0, hedge->pages);
    if (hedge->twin && !hedge->error && hedge->done != all) {
        op_fetch(d, hedge);
        if (!hedge->error && (hedge->transfers || hedge->done != all))
            return; /* in flight, or in a list */
        if (hedge->transfers)
            return;
    }
    end(d, hedge);
}
