/* A disk takes what it is given, and a page-in waits for all of it.  So while there are page-ins from the backup, write-behind
 * keeps as many writes in flight as let them take three times as long as with nothing in their way: half of them at each that
 * takes longer, one more at each that does not.  What one takes alone is the least that was seen, and forgotten slowly. */
#include "device.h"
#include "op.h"
#include "page_ins.h"

enum {
    TIMES_LONGER = 3,
    FLOOR_NS = 500000,     /* less is not told apart from the loop's own rounds */
    WRITES_MIN = 2,        /* pages must go out, too */
    ABOUT_NS = 50000000,   /* after the last one it is as if there were more */
    RAISED_NS = 1000000000, FORGET_PART = 64, /* the best is taken for so much worse each second */
};

void page_in_begins(struct device *d)
{
    d->page_ins.in_flight++;
    d->page_ins.last_ns = d->now_ns;
}

void page_in_ends(struct device *d, uint64_t begun_ns)
{
    struct page_ins *p = &d->page_ins;
    uint64_t took_ns = d->now_ns - begun_ns;
    p->in_flight--;
    p->last_ns = d->now_ns;
    if (d->now_ns - p->raised_ns > RAISED_NS) {
        p->best_ns += p->best_ns / FORGET_PART;
        p->raised_ns = d->now_ns;
    }
    if (!p->best_ns || took_ns < p->best_ns)
        p->best_ns = took_ns;
    uint64_t most_ns = p->best_ns * TIMES_LONGER > FLOOR_NS ? p->best_ns * TIMES_LONGER : FLOOR_NS;
    if (took_ns <= most_ns) {
        p->limit += p->limit < d->config.backup_depth;
    } else if (begun_ns >= p->cut_ns) { /* once for all that waited together */
        p->limit = p->limit / 2 > WRITES_MIN ? p->limit / 2 : WRITES_MIN;
        p->cut_ns = d->now_ns;
    }
}

bool page_ins_about(const struct device *d)
{
    const struct page_ins *p = &d->page_ins;
    return p->in_flight || (p->last_ns && d->now_ns - p->last_ns < ABOUT_NS);
}

uint32_t page_ins_leave(const struct device *d)
{
    return page_ins_about(d) ? d->page_ins.limit : d->config.backup_depth;
}

bool op_is_page_in(const struct op *op)
{
    return op->kind == OP_READ || op->kind == OP_HEDGE || (op->kind == OP_WRITE && op->stage == STAGE_FETCH);
}

/* No transfer or no backup slot is free: ops_run goes on with it when one is. */
void op_wait_for_transfer(struct device *d, struct op *op)
{
    struct op ***end = op_is_page_in(op) ? &d->schedule.page_in_waiters_end : &d->schedule.transfer_waiters_end;
    op->next = NULL;
    **end = op;
    *end = &op->next;
}

uint32_t page_ins_slots(bool page_in)
{
    return page_in ? BACKUP_READS_MAX : BACKUP_READS_MAX - PAGE_INS_KEPT;
}

bool transfer_waiters_may(const struct device *d)
{
    const struct schedule *s = &d->schedule;
    return d->pool.free_transfers && ((s->page_in_waiters && d->direct_in_flight < page_ins_slots(true)) ||
                                      (s->transfer_waiters && d->direct_in_flight < page_ins_slots(false) && unsynced_room(d)));
}
