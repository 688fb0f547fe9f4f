/* Promotion: a page that is only on the backup, in a slab that is mapped now, gets a remote copy.  A few pages at a time, and
 * only while there is plenty of everything.
 *
 *   slabs in a list -> some thousands of their pages, in the order of their places (move_order.c) -> runs of those that lie near
 *   each other, which the backup reads together -> operations, each of neighbouring pages of one slab */
#include "device.h"
#include "op.h"
#include "op_move.h"
#include "pages.h"
#include "pool.h"

#include <errno.h>

enum {
    MOVE_PAGES = 16,      /* of one operation */
    SCAN_PAGES = 16384,   /* looked at in one round: some 50 us */
    SLOW_COST = 64,       /* what a slab of a slow peer counts among them */
    IMAGE_RUNS = 2,       /* at a time, of one operation each */
    LOG_RUN_PAGES = 64,   /* a quarter of a MiB: on a disk that seeks, not much longer than the seek */
    LOG_PAGES = 96,       /* in flight */
    FEW = 2,              /* operations, for which there is always room beside those of clients */
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

static void leave_run(struct device *d, struct op *op)
{
    struct movers *m = &d->movers;
    m->in_flight--;
    m->pages -= op->pages;
    m->runs -= !--m->run[op->cursor];
}

static void give_up(struct device *d, struct op *op)
{
    op->stage = STAGE_DONE;
    if (!op->unsure)
        leave_run(d, op);
    if (op->locked)
        pages_unlock(d, op);
    op_give(d, op);
}

/* Two clients may hold more than half of them for as long as they like.  Slabs that move want half to be left, and some for themselves. */
static bool read_buffers_left(const struct device *d)
{
    return d->movers.in_flight < FEW ||
           (d->pool.large_free >= LARGE_BUFFERS / 2 + COPY_OPS && d->pool.small_free >= SMALL_BUFFERS / 2);
}

static bool plenty(const struct device *d)
{
    return d->pool.ops_free >= ISW_OPS / 2 && d->pool.buffers_free >= d->buffers / 2 && read_buffers_left(d);
}

/* Beside page-ins from the backup, which wait for what it has been given already, it is given one run at a time. */
static bool may_begin(const struct device *d)
{
    const struct movers *m = &d->movers;
    if (!d->backup->methods->place)
        return m->runs < IMAGE_RUNS && plenty(d);
    return m->runs < (page_ins_about(d) ? 1u : (uint32_t)MOVE_RUNS_MAX) && m->pages + LOG_RUN_PAGES <= LOG_PAGES && plenty(d);
}

/* False: something is missing just now. */
static bool start(struct device *d, uint64_t first, uint32_t pages, uint32_t run)
{
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    struct op *op = plenty(d) ? op_take(d, OP_PROMOTE, first, pages) : NULL;
    if (!op)
        return false;
    op->cursor = run;
    d->movers.in_flight++;
    d->movers.pages += pages;
    d->movers.runs += !d->movers.run[run]++;
    op->stage = STAGE_FETCH;
    /* None was busy, so locking cannot park. */
    if (!read_buffer_take(d, op) || !pages_lock(d, op) || !op_transfer(d, op, TRANSFER_DISK_READ, 0, pages)) {
        give_up(d, op);
        d->resources_freed = freed;
        return false;
    }
    return true;
}

static bool takes(const struct device *d, uint32_t slab)
{
    const struct peer *peer = &d->peers[d->slab_views[slab].peer];
    return link_takes(&peer->read) && link_takes(&peer->write);
}

/* Collects pages.  False: there are none now, or not all that come in. */
static bool collect(struct device *d, uint32_t *budget)
{
    struct move_order *order = &d->movers.order;
    if (order->ready)
        move_order_clear(order);
    while (d->movers.first && order->count < MOVE_ORDER_PAGES) {
        struct slab *slab = d->movers.first;
        uint32_t number = (uint32_t)(slab - d->slab);
        uint64_t base = (uint64_t)number << d->slab_shift;
        uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
        if (!slab_mapped(d, number) || slab->moving || base + slab->move.at >= end) {
            movers_remove_first(d);
            continue;
        }
        if (!*budget)
            return false;
        if (!takes(d, number)) {
            movers_remove_first(d); /* others have their turn; it comes again when its peer does better */
            movers_add(d, base + slab->move.at);
            *budget -= *budget < SLOW_COST ? *budget : SLOW_COST;
            if (order->count)
                break;
            continue;
        }
        for (; base + slab->move.at < end && order->count < MOVE_ORDER_PAGES && *budget; --*budget)
            if (wants_promotion(d, base + slab->move.at++))
                move_order_add(d, base + slab->move.at - 1);
    }
    if (!order->count)
        return false;
    move_order_sort(d);
    return true;
}

static bool may_move(const struct device *d, uint32_t at)
{
    uint64_t page = move_order_page(d, at);
    uint32_t slab = slab_of(d, page);
    return slab_mapped(d, slab) && !d->slab[slab].moving && takes(d, slab) && wants_promotion(d, page) && move_order_holds(d, at);
}

/* It was moved on the backup, or its peer is slow. */
static void comes_again(struct device *d, uint64_t page)
{
    if (!d->slab[slab_of(d, page)].moving && wants_promotion(d, page))
        movers_add(d, page);
}

/* Does the one there lie behind what is at place, near enough to be read with it? */
static bool is_near(const struct device *d, uint32_t at, uint64_t place)
{
    uint64_t most = d->backup->methods->place ? BACKUP_GAP_PAGES : 0;
    return move_order_place(d, at) - place <= 1 + most;
}

static bool read_singly(const struct device *d, uint64_t page)
{
    const struct slab_move *move = &d->slab[slab_of(d, page)].move;
    uint32_t at = (uint32_t)(page & (d->slab_pages - 1));
    return at >= move->singly && at < move->singly_end;
}

static uint32_t neighbours(const struct device *d, uint32_t at, uint32_t most)
{
    const struct move_order *order = &d->movers.order;
    uint64_t page = move_order_page(d, at), place = move_order_place(d, at);
    uint32_t pages = 1;
    while (pages < most && at + pages < order->count && move_order_page(d, at + pages) == page + pages &&
           move_order_place(d, at + pages) == place + pages && slab_of(d, page + pages) == slab_of(d, page) &&
           may_move(d, at + pages) && !read_singly(d, page) && !read_singly(d, page + pages))
        pages++;
    return pages;
}

/* Begins with pages that lie near each other.  False: with fewer than there are, for want of something. */
static bool run_start(struct device *d, uint32_t *budget)
{
    struct move_order *order = &d->movers.order;
    uint32_t run = 0, pages = 0, most = d->backup->methods->place ? LOG_RUN_PAGES : MOVE_PAGES;
    uint64_t last = 0; /* place */
    while (d->movers.run[run])
        run++;
    while (pages < most && !move_order_ended(order) && *budget) {
        --*budget;
        if (pages && !is_near(d, order->at, last))
            break;
        if (!may_move(d, order->at)) {
            comes_again(d, move_order_page(d, order->at++));
            continue;
        }
        uint32_t left = most - pages, together = neighbours(d, order->at, left < MOVE_PAGES ? left : MOVE_PAGES);
        if (!start(d, move_order_page(d, order->at), together, run))
            return false;
        order->at += together;
        last = move_order_place(d, order->at - 1);
        pages += together;
    }
    return true;
}

void movers_start(struct device *d)
{
    uint32_t budget = SCAN_PAGES;
    while (may_begin(d) && budget) {
        bool ended = !d->movers.order.ready || move_order_ended(&d->movers.order);
        if (!(ended ? collect(d, &budget) : run_start(d, &budget)))
            return;
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
    leave_run(d, op);
    op->unsure = true;
    pages_unlock(d, op);
    movers_add(d, op->first);
}

/* What could not be read together: its pages come again, each by itself, and those that fail then stay where they are.  What is
 * read together from then on has pages outside the range, which only grows: that has an end. */
static void singly_from_now_on(struct device *d, uint64_t first, uint32_t pages)
{
    struct slab_move *move = &d->slab[slab_of(d, first)].move;
    uint32_t at = (uint32_t)(first & (d->slab_pages - 1));
    if (!move->singly_end || at < move->singly)
        move->singly = at;
    if (at + pages > move->singly_end)
        move->singly_end = at + pages;
    movers_add(d, first);
}

void op_move_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    if (op->unsure) {
        give_up(d, op);
        return;
    }
    bool stale = t->generation != d->slab_views[t->slab].generation;
    if (error || stale) {
        uint64_t first = op->first;
        uint32_t pages = op->pages;
        give_up(d, op);
        /* Nothing is wrong with the pages.  It was taken back unsent from a slow peer, or their slab has another place by now,
         * and was gone through while they were held. */
        if (error == ECANCELED || stale)
            movers_add(d, first);
        else if (t->kind == TRANSFER_DISK_READ && pages > 1)
            singly_from_now_on(d, first, pages);
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
