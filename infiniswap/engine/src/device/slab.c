/* Slabs: who holds one, from its mapping until it is given back or lost, and what Python hears of it.  A slab is UNMAPPED, or
 * MAPPED to a peer, or DRAINING: given up, and kept until nothing needs its remote copies any more.  Each change makes a new
 * generation, which tells answers to what was asked before from those that still count. */
#include "device.h"
#include "events.h"
#include "moving.h"
#include "op_move.h"
#include "pages.h"
#include "peer.h"
#include "peer_held.h"
#include "slab.h"

#include <errno.h>

int slab_map(struct device *d, uint32_t number, uint32_t peer, bool adopt, uint64_t address, uint32_t key)
{
    struct isw_slab_view *view = &d->slab_views[number];
    struct slab *slab = &d->slab[number];
    if (view->state != ISW_SLAB_UNMAPPED)
        return -EBUSY;
    slab->place[slab->at].peer = peer;
    slab->place[slab->at].address = address;
    slab->place[slab->at].key = key;
    if (!adopt || slab->forget.listed)
        slab_forget_remote(d, number);
    set32(&view->state, ISW_SLAB_MAPPED);
    __atomic_store_n(&view->peer, (int32_t)peer, __ATOMIC_RELAXED);
    count32(&view->generation, 1);
    slab->touched = false;
    slab->move.singly = slab->move.singly_end = 0;
    movers_add(d, (uint64_t)number << d->slab_shift);
    tally(d, ISW_DEVICE_slabs_mapped, 1);
    return 0;
}

void slabs_adoption_end(struct device *d)
{
    for (uint32_t number = 0; number < d->slabs; number++)
        if (d->slab[number].only_remote && d->slab_views[number].state == ISW_SLAB_UNMAPPED)
            slab_forget_remote(d, number);
}

uint32_t slab_unmapped(struct device *d, uint32_t number)
{
    struct isw_slab_view *view = &d->slab_views[number];
    uint32_t peer = (uint32_t)view->peer;
    set32(&view->state, ISW_SLAB_UNMAPPED);
    __atomic_store_n(&view->peer, -1, __ATOMIC_RELAXED);
    d->slab[number].touched = false;
    slab_forget_later(d, number);
    return peer;
}

static void released(struct device *d, uint32_t number)
{
    d->draining--;
    tally(d, ISW_DEVICE_slabs_released, 1);
    peer_tell(d, ISW_EVENT_SLAB_RELEASED, slab_unmapped(d, number), number, 0);
}

/* ---- giving up ---- */

int slab_unmap(struct device *d, uint32_t number)
{
    struct isw_slab_view *view = &d->slab_views[number];
    if (view->state != ISW_SLAB_MAPPED)
        return -EINVAL;
    if (slab_on_hold(d, number))
        return -EAGAIN;
    d->draining++;
    d->slab[number].touched = false;
    set32(&view->state, ISW_SLAB_DRAINING);
    count32(&view->generation, 1);
    sweep_hurry(d);
    slab_release_if_idle(d, number);
    return 0;
}

/* A slab being given up keeps its remote copies until all of it is on the backup: should this process die meanwhile, its
 * pending buffers die with it, and the remote copies are what is left.  One that moves is not given up but taken along. */
void slab_release_if_idle(struct device *d, uint32_t number)
{
    const struct slab *slab = &d->slab[number];
    const struct isw_slab_view *view = &d->slab_views[number];
    if (view->state == ISW_SLAB_DRAINING && !slab->moving && !slab->place[slab->at].transfers && !view->pending_pages &&
        !slab->only_remote)
        released(d, number);
}

/* A peer that broke in this round is held, or goes down, at its end. */
bool slab_keeps_copies(const struct device *d, uint32_t number)
{
    const struct isw_slab_view *view = &d->slab_views[number];
    if (view->state == ISW_SLAB_UNMAPPED)
        return false;
    const struct peer *peer = &d->peers[view->peer];
    return peer_up(peer) || peer->hold.until_ns || peer_may_be_held(d, peer, peer->failed);
}

void slab_transfer_begins(struct device *d, struct transfer *t, bool other)
{
    struct slab *slab = &d->slab[t->slab];
    t->place = slab->at ^ other;
    slab->place[t->place].transfers++;
    slab->place[t->place].writes += t->kind == TRANSFER_PEER_WRITE;
    peer_submit(d, slab->place[t->place].peer, t);
}

void slab_transfer_ended(struct device *d, const struct transfer *t)
{
    struct slab_place *place = &d->slab[t->slab].place[t->place];
    uint32_t writes = t->kind == TRANSFER_PEER_WRITE;
    if (must_hold(d, place->transfers && place->writes >= writes, ISW_INVARIANT_TRANSFERS, t->slab)) {
        place->transfers--;
        place->writes -= writes;
    }
    slab_release_if_idle(d, t->slab);
}

void slab_refused(struct device *d, const struct transfer *t, int error)
{
    if (t->place != d->slab[t->slab].at)
        moving_refused(d, t, error);
    else if (t->generation == d->slab_views[t->slab].generation)
        slab_lost(d, t->slab, error);
}

/* ---- loss ---- */

void slab_lost(struct device *d, uint32_t number, int error)
{
    struct isw_slab_view *view = &d->slab_views[number];
    count32(&view->generation, 1);
    sweep_hurry(d); /* for many pages the pending buffer is the only copy now */
    if (moving_loses_place(d, number, error))
        return;
    if (view->state == ISW_SLAB_DRAINING) {
        released(d, number);
        return;
    }
    uint32_t peer = slab_unmapped(d, number);
    tally(d, ISW_DEVICE_slabs_lost, 1);
    if (error)
        peer_tell(d, ISW_EVENT_SLAB_LOST, peer, number, (uint64_t)error);
}

/* ---- its pages ---- */

/* Goes through at most budget pages of the slab; returns how many.  Those behind its last remote page need no look. */
static uint32_t forget_some(struct device *d, uint32_t number, uint32_t budget)
{
    struct slab *slab = &d->slab[number];
    uint64_t first = (uint64_t)number << d->slab_shift, page = first + slab->forget.at;
    uint64_t end = first + d->slab_pages < d->pages ? first + d->slab_pages : d->pages;
    uint64_t stop = page + budget < end ? page + budget : end;
    for (; page < stop && d->slab_views[number].remote_pages; page++)
        if (d->page[page].meta & ISW_PAGE_REMOTE)
            page_forget_remote(d, page);
    uint32_t done = (uint32_t)(page - first) - slab->forget.at;
    slab->forget.at += done;
    return done;
}

void slab_forget_remote(struct device *d, uint32_t number)
{
    struct slab *slab = &d->slab[number];
    if (!slab->forget.listed) /* else it goes on where it stands */
        slab->forget.at = 0;
    forget_some(d, number, d->slab_pages);
}

void slab_forget_later(struct device *d, uint32_t number)
{
    struct slab *slab = &d->slab[number];
    slab->forget.at = 0; /* also of one that is in the list still: it was mapped meanwhile, and its pages are others */
    if (slab->forget.listed || !d->slab_views[number].remote_pages)
        return;
    slab->forget.listed = true;
    slab->forget.next = NULL;
    *d->forgetting.end = slab;
    d->forgetting.end = &slab->forget.next;
}

void slabs_forget(struct device *d)
{
    uint32_t budget = FORGET_PAGES_AT_ONCE;
    while (d->forgetting.first && budget) {
        struct slab *slab = d->forgetting.first;
        uint32_t number = (uint32_t)(slab - d->slab);
        budget--; /* for the slab itself */
        /* One that is mapped again was gone through at once, before. */
        if (d->slab_views[number].state == ISW_SLAB_UNMAPPED) {
            uint32_t looked_at = forget_some(d, number, budget);
            budget -= looked_at;
            if (!budget && d->slab_views[number].remote_pages)
                return;
        }
        slab->forget.listed = false;
        d->forgetting.first = slab->forget.next;
        if (!d->forgetting.first)
            d->forgetting.end = &d->forgetting.first;
    }
}

/* ---- news ---- */

void slab_tell_touched(struct device *d, uint32_t slab)
{
    if (d->slab[slab].touched || d->slab_views[slab].state != ISW_SLAB_UNMAPPED)
        return;
    d->slab[slab].touched = true;
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_SLAB_TOUCHED, .slab = slab});
}
