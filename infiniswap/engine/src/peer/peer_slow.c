/* Peers that answer, and too late.  Silence loses a peer (peer.c); here is what happens long before that, and also to one that
 * makes steady progress and is slow:
 *
 *   after hedge_ns            a page-in is asked of the backup, too (op_hedge.c), within a budget
 *   after deadline / 4        the link is slow: it gets one transfer at a time, all that has another way goes there
 *   after request_deadline_ms what was not sent is taken back, a page-out goes to the backup, a page-in to the backup whatever
 *                             the budget says, promotion and resync let their pages go
 *
 * So the queue to a peer is bounded by time.  What was sent lives on until its answer comes or the connection ends, as an
 * orphan that holds its buffers; when those become too many the connection is closed, which loses the peer. */
#include "device.h"
#include "events.h"
#include "op.h"
#include "op_copy.h"
#include "op_hedge.h"
#include "op_lend.h"
#include "op_move.h"
#include "op_resync.h"
#include "op_write.h"
#include "peer.h"
#include "peer_slow.h"
#include "pool.h"
#include "prefetch.h"

enum {
    MEAN_SHIFT = 4, DEVIATION_SHIFT = 3, /* how slowly they follow: by a sixteenth, an eighth */
    KNOWN_ANSWERS = 64,   /* before so many nobody is asked twice */
    PATIENCE = 4,         /* times (mean + 4 deviations): above what a healthy peer's slowest answers take */
    HEDGE_COST = 20,      /* answers: one page-in in so many may be asked twice ... */
    HEDGE_CREDIT = 16 * HEDGE_COST, /* ... and so many at once */
    SLOW_PART = 4,        /* of the deadline */
    QUICK_ANSWERS = 16,   /* in a row, until a link is not slow any more */
    REST_MIN_MS = 1000, REST_MAX_MS = 30000,
    TRIP_MS = 1000,       /* a round trip is the quickest answer of so long */
};

static uint64_t deadline_ns(const struct device *d)
{
    return d->config.request_deadline_ms * 1000000ull;
}

/* ---- how long answers take ---- */

static void learn(struct device *d, struct pace *p, uint64_t took_ns)
{
    uint64_t floor_ns = d->config.hedge_floor_us * 1000ull, cap_ns = deadline_ns(d) / 2;
    uint64_t patience_ns = PATIENCE * (p->mean_ns + 4 * p->deviation_ns);
    if (patience_ns < floor_ns)
        patience_ns = floor_ns;
    if (!p->answers) {
        p->mean_ns = took_ns;
        p->deviation_ns = took_ns / 2;
    } else {
        /* One that comes much too late tells that the peer is slow, and not that all are to be waited for so long. */
        if (took_ns > 2 * patience_ns)
            took_ns = 2 * patience_ns;
        uint64_t off_ns = took_ns > p->mean_ns ? took_ns - p->mean_ns : p->mean_ns - took_ns;
        p->deviation_ns += (off_ns >> DEVIATION_SHIFT) - (p->deviation_ns >> DEVIATION_SHIFT);
        p->mean_ns += (took_ns >> MEAN_SHIFT) - (p->mean_ns >> MEAN_SHIFT);
    }
    if (p->answers < KNOWN_ANSWERS) {
        p->answers++;
        return;
    }
    if (d->config.hedge_floor_us && cap_ns)
        p->hedge_ns = patience_ns < cap_ns ? patience_ns : cap_ns;
}

static void note_trip(const struct device *d, struct pace *p, uint64_t took_ns)
{
    if (d->now_ns - p->trip_since_ns > TRIP_MS * 1000000ull) {
        p->trip_before_ns = p->trip_ns;
        p->trip_ns = 0;
        p->trip_since_ns = d->now_ns;
    }
    if (!p->trip_ns || took_ns < p->trip_ns)
        p->trip_ns = took_ns ? took_ns : 1;
}

void peer_note_pace(struct device *d, struct peer_link *link, const struct transfer *t)
{
    uint64_t took_ns = d->now_ns > t->asked_ns ? d->now_ns - t->asked_ns : 0;
    if (t->kind == TRANSFER_PEER_READ) {
        learn(d, &link->pace, took_ns);
        note_trip(d, &link->pace, took_ns);
        if (d->hedging.credit < HEDGE_CREDIT)
            d->hedging.credit++;
    }
    if (link->pace.slow)
        link->pace.quick = took_ns < deadline_ns(d) / SLOW_PART / 2 ? link->pace.quick + 1 : 0;
}

void peers_hedge(struct device *d)
{
    d->hedging.due_ns = NEVER;
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        uint64_t hedge_ns = peer->read.pace.hedge_ns;
        if (!peer->attached || peer->failed || hedge_ns == NEVER)
            continue;
        for (struct transfer *t = peer->read.in_flight.first; t; t = t->next) {
            if (t->asked_ns + hedge_ns > d->now_ns) {
                if (t->asked_ns + hedge_ns < d->hedging.due_ns)
                    d->hedging.due_ns = t->asked_ns + hedge_ns;
                break;
            }
            if (t->hedged)
                continue;
            t->hedged = true;
            if (t->op && t->op->kind == OP_PREFETCH) {
                op_prefetch_let_go(d, t->op);
                continue;
            }
            bool trial = peer->read.pace.slow; /* that a client should not wait for; there are few of them */
            if (!trial && (d->hedging.credit < HEDGE_COST || d->direct_in_flight >= BACKUP_READS_MAX / 2))
                continue;
            if (op_hedge(d, t) && !trial)
                d->hedging.credit -= HEDGE_COST;
        }
    }
}

/* ---- overdue ---- */

struct orphans {
    uint32_t pages, small, large; /* buffers that they hold */
};

static void count_orphan(const struct device *d, struct orphans *o, const struct transfer *t)
{
    if (t->orphan)
        o->pages += t->pages;
    else if (t->op && t->op->kind == OP_HEDGE)
        ++*(read_buffer_is_large(d, t->op->data) ? &o->large : &o->small);
}

static void note_overdue(struct device *d, struct peer_link *link, struct transfer *t)
{
    if (t->overdue || !t->op)
        return;
    t->overdue = true;
    tally(d, link == &link->peer->read ? ISW_DEVICE_overdue_page_ins : ISW_DEVICE_overdue_page_outs, 1);
    count64(&view_of(link->peer)->overdue, 1);
}

/* Nothing of it has been sent: it ends here. */
static void take_back(struct device *d, struct peer_link *link, struct transfer *t)
{
    list_remove(&link->unsent, t);
    count32(&view_of(link->peer)->in_flight, -1);
    op_transferred(d, t, ECANCELED);
}

static void one_overdue(struct device *d, struct peer_link *link, struct transfer *t, bool sent)
{
    struct op *op = t->op;
    if (op && !t->orphan && op->kind == OP_PREFETCH) { /* nobody may wait for it any more, and that is all */
        if (sent)
            op_prefetch_let_go(d, op);
        else
            take_back(d, link, t);
        return;
    }
    note_overdue(d, link, t);
    bool page_in = op && (op->kind == OP_READ || (op->kind == OP_WRITE && op->stage == STAGE_FETCH));
    if (t->orphan)
        return;
    if (!sent && (!page_in || op_is_elsewhere(d, op)))
        take_back(d, link, t);
    else if (page_in)
        op_hedge(d, t);
    else if (op && op->kind == OP_WRITE)
        op_write_overdue(d, t);
    else if (op && op->kind == OP_PROMOTE)
        op_move_overdue(d, op);
    else if (op && op->kind == OP_RESYNC)
        op_resync_overdue(d, op);
    else if (op && op->kind == OP_COPY)
        op_copy_overdue(d, op);
    else if (op && op->kind == OP_LEND)
        op_lend_overdue(d, op);
}

static void all_overdue(struct device *d, struct peer_link *link)
{
    uint64_t limit_ns = deadline_ns(d);
    struct orphans orphans = {0};
    struct transfer *t, *next;
    for (t = link->in_flight.first; t && d->now_ns - t->asked_ns > limit_ns; t = next) {
        next = t->next;
        one_overdue(d, link, t, true);
        count_orphan(d, &orphans, t);
    }
    for (t = link->unsent.first; t && d->now_ns - t->asked_ns > limit_ns; t = next) {
        next = t->next;
        one_overdue(d, link, t, t == link->unsent.first && link->sent);
    }
    if (orphans.pages > d->buffers / 2 || orphans.small > SMALL_BUFFERS / 2 || orphans.large > LARGE_BUFFERS / 2)
        peer_fail(link, ETIMEDOUT);
}

/* ---- slow ---- */

static uint64_t age_ns(const struct device *d, const struct peer_link *link)
{
    uint64_t oldest_ns = d->now_ns;
    if (link->in_flight.first && link->in_flight.first->asked_ns < oldest_ns)
        oldest_ns = link->in_flight.first->asked_ns;
    if (link->unsent.first && link->unsent.first->asked_ns < oldest_ns)
        oldest_ns = link->unsent.first->asked_ns;
    return d->now_ns - oldest_ns;
}

static void change(struct device *d, struct pace *p, bool slow)
{
    uint64_t least_ns = REST_MIN_MS * 1000000ull, most_ns = REST_MAX_MS * 1000000ull;
    if (slow) {
        bool again = p->rest_ns && d->now_ns - p->changed_ns < 4 * p->rest_ns;
        p->rest_ns = !again ? least_ns : 2 * p->rest_ns < most_ns ? 2 * p->rest_ns : most_ns;
        p->quick = 0;
    }
    p->slow = slow;
    p->changed_ns = d->now_ns;
}

static void check(struct device *d, struct peer_link *link)
{
    struct pace *p = &link->pace;
    uint64_t slow_ns = deadline_ns(d) / SLOW_PART, age = age_ns(d, link);
    bool rested = d->now_ns - p->changed_ns >= p->rest_ns;
    if (!p->slow && age > slow_ns)
        change(d, p, true);
    else if (p->slow && rested && age < slow_ns / 2 && (p->quick >= QUICK_ANSWERS || !age))
        change(d, p, false);
}

void peer_check_pace(struct device *d, struct peer *peer)
{
    check(d, &peer->read);
    check(d, &peer->write);
    bool slow = peer->read.pace.slow || peer->write.pace.slow;
    struct isw_peer_view *view = view_of(peer);
    if (slow != (view->slow != 0)) {
        set32(&view->slow, slow);
        peer_tell(d, ISW_EVENT_PEER_SLOW, peer->number, 0, slow);
        if (slow)
            sweep_hurry(d);
    }
    uint64_t hedge_us = peer->read.pace.hedge_ns / 1000;
    set32(&view->hedge_us, hedge_us > UINT32_MAX ? 0 : (uint32_t)hedge_us);
    all_overdue(d, &peer->read);
    all_overdue(d, &peer->write);
}
