/* A peer whose connections broke is held for peer_grace_ms: its daemon may be one that restarts and has kept its memory.  Till
 * then its slabs stay its own, their pages stay REMOTE and nobody asks for them there:
 *
 *   a page-in comes from the pending buffer or the backup; a page that only the peer has is waited for, as that of a peer that
 *   is silent: until the hold ends, or for peer_timeout_ms, after which the peer is lost
 *   a page-out goes to the backup, is answered when it is there, and ends the remote copy
 *   nothing is promoted, resynced, mapped there or given up from there
 *
 * Python tries to reach the same lease again.  It attaches new connections (isw_device_peer_attach, or over RDMA, telling the
 * regions anew with isw_device_slab_region), and isw_device_peer_resume makes the copies count again.  What was on its way when
 * the connections broke counts no more: such a page has lost REMOTE; what lands late is found by its checksum. */
#include "device.h"
#include "moving.h"
#include "op.h"
#include "op_move.h"
#include "peer.h"
#include "peer_held.h"
#include "slab.h"
#include "transport.h"

static bool holds_slabs(const struct device *d, const struct peer *peer)
{
    for (uint32_t slab = 0; slab < d->slabs; slab++)
        if (d->slab_views[slab].peer == (int32_t)peer->number)
            return true;
    return false;
}

/* Silence and nonsense are no restart, and a port that is gone no fault of the peer's.  One that breaks again before it is
 * resumed may break once more over TCP; over RDMA somebody waits for the outcome of its trial. */
bool peer_may_be_held(const struct device *d, const struct peer *peer, int error)
{
    bool told = error == ETIMEDOUT || error == EPROTO || error == ENODEV;
    bool trial = d->peer_views[peer->number].attached == 0 || (peer->hold.until_ns && peer->transport->takes_regions);
    return d->config.peer_grace_ms && !told && !trial && holds_slabs(d, peer);
}

void peer_hold(struct device *d, struct peer *peer, int error)
{
    bool first = !peer->hold.until_ns;
    if (first) {
        peer->hold = (struct peer_hold){.until_ns = d->now_ns + d->config.peer_grace_ms * 1000000ull, .error = error};
        peer->hold.waiters_end = &peer->hold.waiters;
        d->peers_held++;
        set32(&view_of(peer)->held, 1);
    }
    sweep_hurry(d);
    moving_loses_target(d, peer->number); /* what has not moved there yet does not wait for it */
    peer_disconnect(d, peer);
    if (!first)
        return;
    count64(&view_of(peer)->failures, 1);
    tally(d, ISW_DEVICE_peers_held, 1);
    peer_tell(d, ISW_EVENT_PEER_HELD, peer->number, 0, (uint64_t)error);
}

void peer_hold_ended(struct device *d, struct peer *peer)
{
    struct op *list = peer->hold.waiters;
    if (!peer->hold.until_ns)
        return;
    peer->hold = (struct peer_hold){0};
    d->peers_held--;
    set32(&view_of(peer)->held, 0);
    while (list) {
        struct op *op = list;
        list = op->next;
        op_runnable(d, op);
    }
}

int peer_resume(struct device *d, struct peer *peer)
{
    if (!peer->hold.until_ns || !peer->attached || peer->failed || !view_of(peer)->attached)
        return -ENOTCONN;
    peer_hold_ended(d, peer);
    tally(d, ISW_DEVICE_peers_resumed, 1);
    for (uint32_t slab = 0; slab < d->slabs; slab++) /* what was written meanwhile is on the backup alone */
        if (d->slab_views[slab].peer == (int32_t)peer->number)
            movers_add(d, (uint64_t)slab << d->slab_shift);
    return 0;
}

void op_wait_for_held(struct device *d, struct op *op, uint32_t number)
{
    struct peer_hold *hold = &d->peers[number].hold;
    if (!hold->waiters)
        hold->waited_ns = d->now_ns;
    op->next = NULL;
    *hold->waiters_end = op;
    hold->waiters_end = &op->next;
}

void peers_check_holds(struct device *d, bool anew)
{
    for (uint32_t i = 0; d->peers_held && i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        struct peer_hold *hold = &peer->hold;
        if (!hold->until_ns)
            continue;
        if (anew) {
            hold->until_ns = d->now_ns + d->config.peer_grace_ms * 1000000ull;
            hold->waited_ns = d->now_ns;
        }
        bool waited = hold->waiters && d->now_ns - hold->waited_ns >= d->config.peer_timeout_ms * 1000000ull;
        if (waited || d->now_ns >= hold->until_ns)
            peer_down(d, peer, hold->error, true);
    }
}
