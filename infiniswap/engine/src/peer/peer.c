/* What peers are to the rest of the loop, whatever the transport: transfers in, answers out, loss.  Only the loop marks a
 * peer dead; Python hears of it afterwards. */
#include "device.h"
#include "events.h"
#include "moving.h"
#include "op.h"
#include "peer.h"
#include "peer_slow.h"
#include "slab.h"
#include "transport.h"

static void link_opened(struct peer_link *link, uint64_t now_ns)
{
    link->unsent = link->in_flight = (struct transfer_list){0};
    link->progress_ns = now_ns;
    link->oldest = 0;
    link->sent = 0;
    link->pace = (struct pace){.hedge_ns = NEVER};
}

void peer_opened(struct peer *peer, const struct transport *transport)
{
    peer->transport = transport;
    peer->attached = true;
    peer->failed = 0;
    link_opened(&peer->read, peer->device->now_ns);
    link_opened(&peer->write, peer->device->now_ns);
    set32(&view_of(peer)->slow, 0);
    if (!peer->hold.until_ns) /* else it is the same lease: news of its slabs still are about them */
        count32(&view_of(peer)->attachment, 1);
}

void peer_tell(struct device *d, uint32_t kind, uint32_t number, uint32_t slab, uint64_t value)
{
    uint32_t attachment = d->peer_views[number].attachment;
    event_post(&d->events, (struct isw_event){kind, number, slab, attachment, value});
}

void peer_event(struct device *d, uint32_t number, bool write, uint32_t events)
{
    struct peer *peer = &d->peers[number];
    if (peer->attached && peer->transport->link_event)
        peer->transport->link_event(d, write ? &peer->write : &peer->read, events);
}

/* That nobody waits for, yet. */
static bool is_guess(const struct transfer *t)
{
    return t->op && t->op->kind == OP_PREFETCH && !t->op->waiters;
}

/* What somebody waits for goes before guesses, but for one that has been sent in part. */
static void put_in_line(struct peer_link *link, struct transfer *t)
{
    struct transfer *before = link->unsent.last;
    while (!is_guess(t) && before && is_guess(before) && !(before == link->unsent.first && link->sent))
        before = before->previous;
    list_insert(&link->unsent, before, t);
}

void peer_submit(struct device *d, uint32_t number, struct transfer *t)
{
    struct peer *peer = &d->peers[number];
    struct peer_link *link = t->kind == TRANSFER_PEER_READ ? &peer->read : &peer->write;
    if (!link->in_flight.count && !link->unsent.count)
        link->progress_ns = d->now_ns;
    put_in_line(link, t);
    d->peers_unsent = true;
    if (link->pace.hedge_ns != NEVER && d->hedging.due_ns > d->now_ns + link->pace.hedge_ns)
        d->hedging.due_ns = d->now_ns + link->pace.hedge_ns;
    count32(&view_of(peer)->in_flight, 1);
    count64(t->kind == TRANSFER_PEER_READ ? &view_of(peer)->reads : &view_of(peer)->writes, 1);
}

static void links_send(struct device *d, bool write)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (peer->attached && !peer->failed)
            peer->transport->send(d, write ? &peer->write : &peer->read);
    }
}

/* Page-ins first: they are small, and the bytes of page-outs take their time to be copied. */
void peers_send(struct device *d)
{
    d->peers_unsent = false;
    links_send(d, false);
    links_send(d, true);
}

void peer_answered(struct device *d, struct peer_link *link, struct transfer *t, int error)
{
    struct isw_peer_view *view = view_of(link->peer);
    list_remove(&link->in_flight, t);
    t->link = NULL;
    count32(&view->in_flight, -1);
    if (!error) {
        uint64_t took_ns = d->now_ns - t->started_ns;
        if (t->kind == TRANSFER_PEER_READ) {
            count64(&view->latency_total_ns, took_ns);
            count64(&view->latency_count, 1);
        }
        if (t->kind != TRANSFER_PEER_TRIM)
            histogram_add(&d->peer_histograms[link->peer->number][t->kind == TRANSFER_PEER_WRITE], took_ns);
        peer_note_pace(d, link, t);
    } else {
        count64(&view->failures, 1);
        slab_refused(d, t, error);
    }
    op_transferred(d, t, error);
}

/* ---- loss ---- */

static void give_up_all(struct device *d, struct transfer_list *list)
{
    while (list->first) {
        struct transfer *t = list->first;
        list_remove(list, t);
        t->link = NULL;
        op_transferred(d, t, EIO);
    }
}

static void close_links(struct device *d, struct peer *peer)
{
    if (peer->attached) {
        peer->transport->close(d, &peer->read);
        peer->transport->close(d, &peer->write);
    }
    peer->attached = false;
    peer->failed = 0;
}

static void give_up_transfers(struct device *d, struct peer *peer)
{
    give_up_all(d, &peer->read.in_flight);
    give_up_all(d, &peer->read.unsent);
    give_up_all(d, &peer->write.in_flight);
    give_up_all(d, &peer->write.unsent);
    set32(&view_of(peer)->attached, 0);
    set32(&view_of(peer)->in_flight, 0);
    set32(&view_of(peer)->slow, 0);
}

void peer_disconnect(struct device *d, struct peer *peer)
{
    close_links(d, peer);
    give_up_transfers(d, peer);
}

void peer_down(struct device *d, struct peer *peer, int error, bool tell)
{
    uint32_t lost = 0;
    /* The connections go first: whatever a hung peer still does with what it was sent, nobody will read it. */
    close_links(d, peer);
    for (uint32_t slab = 0; slab < d->slabs; slab++) {
        if (d->slab_views[slab].peer == (int32_t)peer->number) {
            slab_lost(d, slab, 0);
            lost++;
        }
    }
    moving_loses_target(d, peer->number);
    give_up_transfers(d, peer);
    peer_hold_ended(d, peer); /* last: who waited for it finds its pages lost */
    if (!tell)
        return;
    count64(&view_of(peer)->failures, 1);
    tally(d, ISW_DEVICE_peers_lost, 1);
    peer_tell(d, ISW_EVENT_PEER_LOST, peer->number, lost, (uint64_t)error);
}

void peers_take_down(struct device *d)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (!peer->attached || !peer->failed)
            continue;
        if (peer_may_be_held(d, peer, peer->failed))
            peer_hold(d, peer, peer->failed);
        else
            peer_down(d, peer, peer->failed, true);
    }
}

/* Nothing comes at all, or answers to others do and one is left out.  A long queue alone is no reason: it has a new oldest
 * request with each answer. */
static bool silent(const struct device *d, struct peer_link *link)
{
    uint64_t limit_ns = (uint64_t)d->config.peer_timeout_ms * 1000000u;
    uint32_t oldest = link->in_flight.first ? link->in_flight.first->id : 0; /* ids begin at 1 << 16 */
    if (oldest != link->oldest) {
        link->oldest = oldest;
        link->oldest_ns = d->now_ns;
    }
    bool waiting = link->in_flight.count || link->unsent.count || link->probing;
    bool nothing = waiting && d->now_ns > link->progress_ns && d->now_ns - link->progress_ns > limit_ns;
    return nothing || (oldest && d->now_ns - link->oldest_ns > limit_ns);
}

/* We stood still, not the peer: what it has been asked counts from now on. */
static void wait_anew(const struct device *d, struct peer_link *link)
{
    link->progress_ns = link->oldest_ns = d->now_ns;
    for (struct transfer *t = link->in_flight.first; t; t = t->next)
        t->asked_ns = d->now_ns;
    for (struct transfer *t = link->unsent.first; t; t = t->next)
        t->asked_ns = d->now_ns;
}

void peers_check_time(struct device *d, bool anew)
{
    peers_check_holds(d, anew);
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (!peer->attached)
            continue;
        if (anew) {
            wait_anew(d, &peer->read);
            wait_anew(d, &peer->write);
        }
        if (silent(d, &peer->read) || silent(d, &peer->write))
            peer_fail(&peer->read, ETIMEDOUT);
        else if (d->config.request_deadline_ms)
            peer_check_pace(d, peer);
    }
}
