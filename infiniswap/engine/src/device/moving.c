/* A slab moves from one peer to another, with its pages: what is to leave a peer goes on being served from memory.
 *
 *   COPIES   op_copy.c brings the pages that are REMOTE from the old place to the new one, where each is marked.  The slab is
 *            used as ever; what changes in it loses its mark.  Once little is left, or no time, it drains: page-outs go to
 *            the backup, so nothing changes any more, and the rest is copied.
 *   TOLD     when every page that is REMOTE is marked, REMOTE means the new place from one moment to the next.  At this moment
 *            both have all of them, so whichever is on record a killed process finds them.  SLAB_MOVED is told, Python
 *            puts the new place on record, and settles.
 *   ENDS     page-outs go to the new place; when the last transfer has left the old one SLAB_RELEASED gives it back.
 *
 * Time is bounded: when it is over pages that are on the backup, too, just cease to be REMOTE, and what is nowhere else goes on
 * being copied, or resynced.  So a slow disk holds no move up, nor does a slow peer, while the other is not.
 *
 * A target that is lost or refuses leaves the slab as it was (MOVE_FAILED).  An old place that is lost leaves what is
 * marked: the slab is at the new place then, with these pages. */
#include "bounds.h"
#include "device.h"
#include "events.h"
#include "moving.h"
#include "op_copy.h"
#include "op_move.h"
#include "pages.h"
#include "peer.h"
#include "slab.h"

#include <errno.h>

enum {
    COPY_PAGES = 32,           /* of one operation */
    SCAN_PAGES = 16384,        /* looked at in one round, all moves together: some 50 us */
    FEW_PART = 32,             /* of a slab: so little may be left when it begins to drain */
    LIMIT_MS = 60000,          /* where none is given */
    BEHIND_NS = 100000000,     /* of the rate, what was not used is lost after this time */
    SLACK = 2,                 /* times as fast as would just do */
};

struct moving *moving_of(const struct device *d, uint32_t number)
{
    struct moving *m = d->slab[number].moving;
    return m && m->stage == MOVING_COPIES ? m : NULL;
}

/* ---- marks ---- */

static uint64_t *mark_of(const struct device *d, const struct moving *m, uint64_t page, uint64_t *bit)
{
    uint64_t at = page & (d->slab_pages - 1);
    *bit = 1ull << at % 64;
    return &m->mark[at / 64];
}

bool moving_marked(const struct device *d, uint64_t page)
{
    const struct moving *m = moving_of(d, slab_of(d, page));
    uint64_t bit;
    return m && *mark_of(d, m, page, &bit) & bit;
}

void moving_mark(struct device *d, struct moving *m, uint64_t page)
{
    uint64_t bit, *word = mark_of(d, m, page, &bit);
    if (*word & bit)
        return;
    *word |= bit;
    m->marked++;
}

void moving_page_changes(struct device *d, uint64_t page, uint32_t sum, uint32_t meta)
{
    struct moving *m = moving_of(d, slab_of(d, page));
    uint64_t bit, *word = m ? mark_of(d, m, page, &bit) : NULL;
    if (!word || !(*word & bit) || ((meta & ISW_PAGE_REMOTE) && sum == d->page[page].checksum))
        return;
    *word &= ~bit;
    m->marked--;
}

/* ---- begin and end ---- */

/* By the time that is left. */
static void enlist(struct device *d, struct moving *m)
{
    struct moving **at = &d->moves.first;
    while (*at && (*at)->until_ns <= m->until_ns)
        at = &(*at)->next;
    m->next = *at;
    *at = m;
}

static void delist(struct device *d, struct moving *m)
{
    struct moving **at = &d->moves.first;
    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
}

static void tell(struct device *d, uint32_t kind, const struct moving *m, uint32_t peer, uint32_t attachment, uint64_t value)
{
    event_post(&d->events, (struct isw_event){kind, peer, m->slab, attachment, value});
}

static struct slab_place *other_place(struct device *d, const struct moving *m)
{
    struct slab *slab = &d->slab[m->slab];
    return &slab->place[slab->at ^ 1];
}

static void ends(struct device *d, struct moving *m, int error)
{
    m->stage = MOVING_ENDS;
    m->error = error;
    d->slab[m->slab].moving = NULL;
    d->moves.more = true;
}

static void fail(struct device *d, struct moving *m, int error)
{
    ends(d, m, error);
    tally(d, ISW_DEVICE_moves_failed, 1);
    movers_add(d, (uint64_t)m->slab << d->slab_shift);
    slab_release_if_idle(d, m->slab);
}

/* Nothing refers to the place any more, which is free for the next move. */
static void ended(struct device *d, struct moving *m)
{
    uint32_t peer = other_place(d, m)->peer;
    if (m->error)
        tell(d, ISW_EVENT_MOVE_FAILED, m, peer, m->to_attachment, (uint64_t)m->error);
    else
        tell(d, ISW_EVENT_SLAB_RELEASED, m, peer, m->from_attachment, 0);
    tally(d, ISW_DEVICE_slabs_released, !m->error);
    delist(d, m);
    m->next = d->moves.free;
    d->moves.free = m;
}

static bool has_other_place(const struct device *d, uint32_t number)
{
    for (const struct moving *m = d->moves.first; m; m = m->next)
        if (m->slab == number)
            return true;
    return false;
}

int moving_begin(struct device *d, uint32_t number, uint32_t peer, uint64_t address, uint32_t key, uint32_t limit_ms)
{
    struct slab *slab = &d->slab[number];
    const struct isw_slab_view *view = &d->slab_views[number];
    struct moving *m = moving_of(d, number);
    uint64_t until_ns = d->now_ns + (limit_ms ? limit_ms : LIMIT_MS) * 1000000ull;
    if (m && other_place(d, m)->peer == peer) { /* it goes on, with as much time as it has now */
        delist(d, m);
        m->until_ns = until_ns;
        enlist(d, m);
        return 0;
    }
    if (view->state == ISW_SLAB_UNMAPPED || view->peer == (int32_t)peer || d->stop.begun)
        return -EINVAL;
    if (slab_on_hold(d, number))
        return -EAGAIN;
    if (has_other_place(d, number))
        return -EBUSY;
    m = d->moves.free;
    if (!m)
        return -EAGAIN;
    d->moves.free = m->next;
    uint64_t *mark = m->mark;
    memset(mark, 0, d->slab_pages / 8);
    slab->place[slab->at ^ 1].peer = peer;
    slab->place[slab->at ^ 1].address = address;
    slab->place[slab->at ^ 1].key = key;
    *m = (struct moving){.stage = MOVING_COPIES, .slab = number, .serial = ++d->moves.serials, .until_ns = until_ns,
                         .from_attachment = d->peer_views[view->peer].attachment,
                         .to_attachment = d->peer_views[peer].attachment, .mark = mark, .left = UINT32_MAX};
    slab->moving = m;
    enlist(d, m);
    tally(d, ISW_DEVICE_moves_begun, 1);
    return 0;
}

int moving_cancel(struct device *d, uint32_t number)
{
    struct moving *m = d->slab[number].moving;
    if (!m)
        return -EINVAL;
    if (m->stage != MOVING_COPIES)
        return -EALREADY;
    fail(d, m, ECANCELED);
    return 0;
}

/* ---- from the old place to the new one ---- */

/* From now on REMOTE means the new place, and what was asked of the old one is late. */
static void change_places(struct device *d, struct moving *m)
{
    struct slab *slab = &d->slab[m->slab];
    struct isw_slab_view *view = &d->slab_views[m->slab];
    m->stage = MOVING_TOLD;
    slab->at ^= 1;
    __atomic_store_n(&view->peer, (int32_t)slab->place[slab->at].peer, __ATOMIC_RELAXED);
    count32(&view->generation, 1);
    tally(d, ISW_DEVICE_slabs_mapped, 1);
    tell(d, ISW_EVENT_SLAB_MOVED, m, slab->place[slab->at].peer, m->to_attachment, view->remote_pages);
}

int moving_settle(struct device *d, uint32_t number)
{
    struct moving *m = d->slab[number].moving;
    if (!m || m->stage != MOVING_TOLD)
        return -EINVAL;
    set32(&d->slab_views[number].state, ISW_SLAB_MAPPED);
    d->draining--;
    tally(d, ISW_DEVICE_moves_done, 1);
    ends(d, m, 0);
    movers_add(d, (uint64_t)number << d->slab_shift); /* what was only on the backup, or has changed since */
    return 0;
}

static void forget_unmarked(struct device *d, const struct moving *m)
{
    uint64_t first = (uint64_t)m->slab << d->slab_shift;
    uint64_t end = first + d->slab_pages < d->pages ? first + d->slab_pages : d->pages;
    for (uint64_t page = first; page < end && d->slab_views[m->slab].remote_pages > m->marked; page++)
        if ((d->page[page].meta & ISW_PAGE_REMOTE) && !moving_marked(d, page))
            page_forget_remote(d, page);
}

bool moving_loses_place(struct device *d, uint32_t number, int error)
{
    struct moving *m = d->slab[number].moving;
    struct isw_slab_view *view = &d->slab_views[number];
    if (!m)
        return false;
    if (m->stage == MOVING_COPIES) { /* what has come over so far is what there is */
        forget_unmarked(d, m);
        d->draining += view->state != ISW_SLAB_DRAINING;
        set32(&view->state, ISW_SLAB_DRAINING);
        change_places(d, m);
        return true;
    }
    ends(d, m, 0);
    d->draining--;
    uint32_t peer = slab_unmapped(d, number);
    tally(d, ISW_DEVICE_slabs_lost, 1);
    if (error)
        tell(d, ISW_EVENT_SLAB_LOST, m, peer, m->to_attachment, (uint64_t)error);
    return true;
}

void moving_loses_target(struct device *d, uint32_t peer)
{
    for (struct moving *m = d->moves.first; m; m = m->next)
        if (m->stage == MOVING_COPIES && other_place(d, m)->peer == peer)
            fail(d, m, ENOTCONN);
}

/* No move begins while something is under way to the other place: it is this move's new one. */
void moving_refused(struct device *d, const struct transfer *t, int error)
{
    struct moving *m = moving_of(d, t->slab);
    if (m)
        fail(d, m, error);
}

/* ---- copying ---- */

static uint32_t left_of(const struct device *d, const struct moving *m)
{
    return d->slab_views[m->slab].remote_pages - m->marked;
}

static bool late(const struct device *d, const struct moving *m)
{
    return d->now_ns >= m->until_ns;
}

/* Pages a second: at leisure, unless there is less time than that takes. */
static uint64_t rate(const struct device *d)
{
    uint64_t pages_per_s = 0;
    for (const struct moving *m = d->moves.first; m; m = m->next)
        if (m->stage == MOVING_COPIES && !late(d, m))
            pages_per_s += SLACK * 1000000000ull * left_of(d, m) / (m->until_ns - d->now_ns);
    return pages_per_s > MOVING_PAGES_PER_S ? pages_per_s : MOVING_PAGES_PER_S;
}

static bool due(struct device *d)
{
    if (d->now_ns > BEHIND_NS && d->moves.next_ns < d->now_ns - BEHIND_NS)
        d->moves.next_ns = d->now_ns - BEHIND_NS;
    return d->moves.next_ns <= d->now_ns;
}

static bool wants_copy(const struct device *d, uint64_t page)
{
    return (d->page[page].meta & (ISW_PAGE_REMOTE | ISW_PAGE_BUSY | ISW_PAGE_WRITING)) == ISW_PAGE_REMOTE && !moving_marked(d, page);
}

/* The backup has it, too, and there is no time for more. */
static bool to_drop(const struct device *d, const struct moving *m, uint64_t page)
{
    uint32_t both = ISW_PAGE_REMOTE | ISW_PAGE_DISK;
    return late(d, m) && (d->page[page].meta & both) == both && !moving_marked(d, page);
}

/* Goes on with a pass through the slab.  False: not now. */
static bool go_on(struct device *d, struct moving *m, uint32_t *budget)
{
    uint64_t base = (uint64_t)m->slab << d->slab_shift;
    uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
    for (; base + m->at < end && *budget; m->at++, --*budget) {
        uint64_t page = base + m->at;
        uint32_t pages = 0;
        if (to_drop(d, m, page)) {
            page_forget_remote(d, page);
            continue;
        }
        while (pages < COPY_PAGES && page + pages < end && wants_copy(d, page + pages) && !to_drop(d, m, page + pages))
            pages++;
        if (!pages)
            continue;
        if (!due(d) || !op_copy_start(d, m, page, pages))
            return false;
        d->moves.next_ns += 1000000000ull * pages / rate(d);
        m->begun += pages;
        m->at += pages - 1;
    }
    return base + m->at >= end;
}

/* What changed behind this pass, or was held by somebody, is for the next one. */
static void pass_ended(struct device *d, struct moving *m)
{
    uint32_t left = left_of(d, m);
    bool mapped = d->slab_views[m->slab].state == ISW_SLAB_MAPPED;
    if (mapped && (left <= d->slab_pages / FEW_PART || left > m->left / 2))
        slab_unmap(d, m->slab);
    if (m->begun)
        d->moves.more = true;
    else
        m->again_ns = d->now_ns + TICK_MS * 1000000ull;
    m->left = left;
    m->at = m->begun = 0;
}

static void copy(struct device *d, struct moving *m, uint32_t *budget)
{
    const struct slab *slab = &d->slab[m->slab];
    if (d->stop.begun) {
        fail(d, m, ESHUTDOWN);
        return;
    }
    if (!peer_up(&d->peers[slab->place[0].peer]) || !peer_up(&d->peers[slab->place[1].peer]))
        return; /* it goes down this round; or the old one is held, and may come back */
    if (d->slab_views[m->slab].state == ISW_SLAB_MAPPED && (late(d, m) || !left_of(d, m)))
        slab_unmap(d, m->slab);
    bool drains = d->slab_views[m->slab].state == ISW_SLAB_DRAINING;
    /* Page-outs of before would have to go to the backup, so they are waited for. */
    if (drains && !left_of(d, m) && (!slab->place[slab->at].writes || late(d, m)))
        change_places(d, m);
    else if (d->now_ns >= m->again_ns && *budget && go_on(d, m, budget) && (!m->in_flight || late(d, m)))
        pass_ended(d, m); /* a copy that its peer does not answer is not waited for for ever */
}

void moves_run(struct device *d)
{
    uint32_t budget = SCAN_PAGES;
    d->moves.more = false;
    for (struct moving *m = d->moves.first, *next; m; m = next) {
        next = m->next;
        if (m->stage == MOVING_COPIES)
            copy(d, m, &budget);
        else if (m->stage == MOVING_ENDS && !other_place(d, m)->transfers)
            ended(d, m);
    }
    d->moves.more = d->moves.more || !budget;
}
