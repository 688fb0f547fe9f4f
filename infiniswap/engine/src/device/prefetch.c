/* Prefetch.  A guess is a page in a buffer that only prefetch uses, fetched by an operation of its own.
 *
 * A READ that wants the page takes it, once; one that comes while it is on its way waits for it, as long as a page-in may take.
 * What is here is never older than the page: the write counters, by which every read knows that a write came between, tell that
 * of a guess, too, when it arrives and when it is taken.  No page is locked, and nobody else knows of guesses: a write, TRIM or
 * whatever only counts up.
 *
 * Demand comes first: guesses go out at the end of a round, only while plenty of everything is free, few at a time, and behind
 * all page-ins that were not sent yet.  They come from peers whose round trip is long enough to pay, and from the backup where
 * pages are read in sequence.  When less than a half of them are read there is a pause. */
#include "device.h"
#include "op.h"
#include "pages.h"
#include "pool.h"
#include "prefetch.h"
#include "slab.h"

void prefetch_open(struct device *d)
{
    struct prefetch *p = &d->prefetch;
    for (uint32_t i = PREFETCH_PAGES; i-- > 0 && p->trends;) {
        p->guess[i].next = (uint16_t)p->free;
        p->free = i + 1;
    }
    p->pause_ns = PREFETCH_PAUSE_MIN_MS * 1000000ull;
}

/* ---- which guesses there are ---- */

static struct guess *at(struct prefetch *p, uint32_t number)
{
    return &p->guess[number - 1];
}

static uint16_t *bucket_of(const struct prefetch *p, uint64_t page)
{
    return &p->bucket[page % PREFETCH_BUCKETS];
}

static bool stale(const struct device *d, const struct guess *g)
{
    bool doubtful = !g->remote && g->sync_failures != d->flush.sync_failures;
    return doubtful || pages_sequence(d, g->page, 1) != g->sequence;
}

static uint32_t find(const struct prefetch *p, uint64_t page)
{
    uint32_t number = *bucket_of(p, page);
    while (number && guess_at(p, number)->page != page)
        number = guess_at(p, number)->next_same;
    return number;
}

uint32_t prefetch_find(const struct device *d, uint64_t page)
{
    uint32_t number = find(&d->prefetch, page);
    return number && !stale(d, guess_at(&d->prefetch, number)) ? number : 0;
}

void prefetch_distrust_backup(struct device *d, uint64_t page)
{
    struct prefetch *p = &d->prefetch;
    for (uint32_t number = p->held ? *bucket_of(p, page) : 0; number; number = at(p, number)->next_same)
        if (at(p, number)->page == page && !at(p, number)->remote)
            at(p, number)->sequence--; /* stale from now on */
}

static void unlist_ready(struct prefetch *p, struct guess *g)
{
    if (g->previous)
        at(p, g->previous)->next = g->next;
    else
        p->oldest = g->next;
    if (g->next)
        at(p, g->next)->previous = g->previous;
    else
        p->newest = g->previous;
}

static void release(struct device *d, uint32_t number)
{
    struct prefetch *p = &d->prefetch;
    struct guess *g = at(p, number);
    if (g->state == GUESS_READY)
        unlist_ready(p, g);
    else
        p->flying--;
    uint16_t *link = bucket_of(p, g->page);
    while (*link != number)
        link = &at(p, *link)->next_same;
    *link = g->next_same;
    *g = (struct guess){.next = (uint16_t)p->free};
    p->free = number;
    p->held--;
}

static void become_ready(struct device *d, uint32_t number)
{
    struct prefetch *p = &d->prefetch;
    struct guess *g = at(p, number);
    g->state = GUESS_READY;
    g->op = NULL;
    g->ready_ns = d->now_ns;
    g->next = 0;
    g->previous = (uint16_t)p->newest;
    if (p->newest)
        at(p, p->newest)->next = (uint16_t)number;
    else
        p->oldest = number;
    p->newest = number;
    p->flying--;
}

/* ---- how good they are ---- */

static void judge(struct device *d, bool good)
{
    struct prefetch *p = &d->prefetch;
    p->judged++;
    p->good += good;
    if (p->judged < (p->trial ? (uint32_t)PREFETCH_TRIAL : (uint32_t)PREFETCH_JUDGED))
        return;
    if (p->good * 2 < p->judged) {
        p->paused_until_ns = d->now_ns + p->pause_ns;
        p->pause_ns = p->pause_ns * 2 < PREFETCH_PAUSE_MAX_MS * 1000000ull ? p->pause_ns * 2 : PREFETCH_PAUSE_MAX_MS * 1000000ull;
        p->trial = true;
        tally(d, ISW_DEVICE_prefetch_pauses, 1);
    } else {
        p->pause_ns = PREFETCH_PAUSE_MIN_MS * 1000000ull;
        p->trial = false;
    }
    p->judged = p->good = 0;
}

/* NULL: the trend is no more. */
static struct trend *trend_of(const struct prefetch *p, const struct guess *g)
{
    struct trend *t = &p->trends->way[g->trend];
    return t->serial == g->serial && t->step ? t : NULL;
}

/* Nobody has read it, and nobody will. */
static void discard(struct device *d, uint32_t number)
{
    const struct guess *g = guess_at(&d->prefetch, number);
    bool dropped = stale(d, g);
    struct trend *t = trend_of(&d->prefetch, g);
    if (t && !dropped)
        trend_miss(t);
    tally(d, dropped ? ISW_DEVICE_prefetch_dropped : ISW_DEVICE_prefetch_wasted, 1);
    release(d, number);
    judge(d, false);
}

bool prefetch_take(struct device *d, uint32_t number, uint8_t *into)
{
    const struct guess *g = guess_at(&d->prefetch, number);
    struct trend *t = trend_of(&d->prefetch, g);
    bool remote = g->remote;
    memcpy(into, guess_data(&d->prefetch, number), ISW_PAGE_BYTES);
    if (t)
        trend_hit(t);
    tally(d, ISW_DEVICE_prefetch_hits, 1);
    release(d, number);
    judge(d, true);
    return remote;
}

void prefetch_tick(struct device *d)
{
    struct prefetch *p = &d->prefetch;
    while (p->oldest && d->now_ns - at(p, p->oldest)->ready_ns > PREFETCH_KEEP_MS * 1000000ull)
        discard(d, p->oldest);
}

/* ---- making them ---- */

void prefetch_note(struct device *d, uint64_t offset, uint64_t bytes)
{
    struct prefetch *p = &d->prefetch;
    uint64_t first = offset / ISW_PAGE_BYTES, last = (offset + bytes - 1) / ISW_PAGE_BYTES;
    struct trend *t = trends_note(p->trends, first, (uint32_t)(last - first + 1));
    if (!t)
        return;
    uint32_t number = (uint32_t)(t - p->trends->way);
    p->wanted[number / 64] |= 1ull << number % 64;
    p->any_wanted = true;
}

/* Where its present version can be fetched from, as an index of peer_flying; below zero: it cannot, or need not. */
static int32_t source_of(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta, slab = slab_of(d, page);
    if ((meta & (ISW_PAGE_BUSY | ISW_PAGE_LOST)) || page_pending(d, page) || prefetch_find(d, page))
        return -1;
    if ((meta & ISW_PAGE_REMOTE) && slab_mapped(d, slab))
        return d->slab_views[slab].peer;
    bool elsewhere = (meta & ISW_PAGE_REMOTE) && d->slab_views[slab].state == ISW_SLAB_DRAINING;
    return (meta & ISW_PAGE_DISK) && !elsewhere ? ISW_PEERS_MAX : -1;
}

static bool worth(const struct device *d, const struct trend *t, int32_t source)
{
    if (source == ISW_PEERS_MAX)
        return t->step == 1 || t->step == -1;
    const struct peer_link *link = &d->peers[source].read;
    return !link->pace.slow && !link->probing && pace_trip_ns(&link->pace) >= d->config.prefetch_floor_us * 1000ull;
}

/* How many pages may be asked for there now: of those that are free first, then in place of those that nobody has read for longest. */
static uint32_t room(const struct device *d, int32_t source, uint32_t most)
{
    const struct prefetch *p = &d->prefetch;
    uint32_t limit = source == ISW_PEERS_MAX ? PREFETCH_DISK_FLYING : PREFETCH_PEER_FLYING, there = p->peer_flying[source];
    bool plenty = d->pool.ops_free > ISW_OPS / 2 && d->pool.free_transfers;
    if (source == ISW_PEERS_MAX)
        plenty = plenty && d->direct_in_flight < BACKUP_READS_MAX / 2;
    if (!plenty || there >= limit || p->flying >= PREFETCH_FLYING)
        return 0;
    if (most > limit - there)
        most = limit - there;
    return most < PREFETCH_FLYING - p->flying ? most : PREFETCH_FLYING - p->flying;
}

static uint32_t take_free(struct device *d)
{
    struct prefetch *p = &d->prefetch;
    if (!p->free && p->oldest)
        discard(d, p->oldest);
    uint32_t number = p->free;
    if (number) {
        p->free = at(p, number)->next;
        p->held++;
        p->flying++;
    }
    return number;
}

/* One transfer.  How many pages it has; 0: it was refused. */
static uint32_t ask(struct device *d, const struct trend *t, uint64_t page, uint32_t pages, int32_t source)
{
    struct prefetch *p = &d->prefetch;
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    struct op *op = op_take(d, OP_PREFETCH, page, pages);
    if (!op)
        return 0;
    op->stage = STAGE_FETCH;
    op->cursor = (uint64_t)source;
    for (uint32_t i = 0; i < pages; i++) {
        uint32_t number = take_free(d);
        op->buffer[i] = number;
        struct guess *g = at(p, number);
        uint16_t *bucket = bucket_of(p, page + i);
        *g = (struct guess){.page = page + i, .sequence = pages_sequence(d, page + i, 1), .op = op, .serial = t->serial,
                            .trend = (uint16_t)(t - p->trends->way), .state = GUESS_ASKED, .remote = source != ISW_PEERS_MAX,
                            .sync_failures = d->flush.sync_failures,
                            .next_same = *bucket};
        *bucket = (uint16_t)number;
    }
    if (!op_transfer(d, op, source == ISW_PEERS_MAX ? TRANSFER_DISK_READ : TRANSFER_PEER_READ, 0, pages)) {
        for (uint32_t i = 0; i < pages; i++)
            release(d, op->buffer[i]);
        op_give(d, op);
        d->resources_freed = freed;
        return 0;
    }
    p->peer_flying[source] = (uint16_t)(p->peer_flying[source] + pages);
    tally(d, ISW_DEVICE_prefetch_guesses, pages);
    return pages;
}

/* In batches: when a half of what may be ahead has been read. */
static void follow(struct device *d, struct trend *t)
{
    uint64_t page;
    if (t->lead > t->window / 2)
        return;
    while (trend_next(t, d->pages, &page)) {
        int32_t source = source_of(d, page);
        if (source < 0) {
            t->lead++;
            continue;
        }
        uint32_t most = t->step == 1 && t->window - t->lead < PREFETCH_RUN ? t->window - t->lead : t->step == 1 ? PREFETCH_RUN : 1;
        most = worth(d, t, source) ? room(d, source, most) : 0;
        uint32_t pages = most ? 1 : 0;
        while (pages < most && page + pages < d->pages && slab_of(d, page + pages) == slab_of(d, page) &&
               source_of(d, page + pages) == source)
            pages++;
        if (!pages || !ask(d, t, page, pages, source))
            return; /* the stream's next read tries again */
        t->lead += pages;
    }
}

void prefetch_run(struct device *d)
{
    struct prefetch *p = &d->prefetch;
    p->any_wanted = false;
    for (uint32_t i = 0; i < TRENDS / 64; i++) {
        uint64_t wanted = p->wanted[i];
        p->wanted[i] = 0;
        for (; wanted && d->now_ns >= p->paused_until_ns && !d->stop.begun; wanted &= wanted - 1)
            follow(d, &p->trends->way[i * 64 + (uint32_t)__builtin_ctzll(wanted)]);
    }
}

/* ---- their arrival ---- */

/* As for any read (op.c): is it here, in the version that it was asked for in? */
static bool good(struct device *d, const struct transfer *t, uint32_t number)
{
    const struct guess *g = guess_at(&d->prefetch, number);
    if (stale(d, g))
        return false;
    if (!g->remote)
        return d->page[g->page].meta & ISW_PAGE_DISK;
    bool unclear;
    return op_remote_arrived(d, t, g->page, guess_data(&d->prefetch, number), true, &unclear);
}

void op_prefetch_let_go(struct device *d, struct op *op)
{
    op->unsure = true;
    for (struct op *waiter = op->waiters; waiter; waiter = waiter->next)
        waiter->unguessed = true;
    op_wake_waiters(d, op);
}

void op_prefetch_transferred(struct device *d, struct transfer *t, int error)
{
    struct prefetch *p = &d->prefetch;
    struct op *op = t->op;
    p->peer_flying[op->cursor] = (uint16_t)(p->peer_flying[op->cursor] - op->pages);
    for (uint32_t i = 0; i < op->pages; i++) {
        uint32_t number = op->buffer[i];
        if (!error && good(d, t, number)) {
            become_ready(d, number);
            continue;
        }
        tally(d, ISW_DEVICE_prefetch_dropped, 1);
        release(d, number);
    }
    op->stage = STAGE_DONE;
    op_wake_waiters(d, op);
    op_give(d, op);
}
