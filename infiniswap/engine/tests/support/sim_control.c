/* What Python does beside a running device, as far as the engine sees it: peers are attached and reattached, slabs mapped and
 * given up, news read, and the record kept of which peer may hold which slab. */
#include "sim.h"

#include "device.h"

#include <errno.h>

enum { NEWS_MOST = 64 };

static void control_due(void *owner, uint64_t life)
{
    struct sim *sim = owner;
    if (life != sim->life)
        return;
    sim->controlled = true;
    sim->system.poked = true;
    sim_at(&sim->system, sim->system.now_ns + 200000 + chance_below(&sim->chance, 4 * sim->pace_ns), control_due, sim, life);
}

void sim_attach(struct sim *sim, uint32_t number)
{
    struct sim_peer *peer = &sim->peer[number];
    int fds[2];
    if (!peer->leased) {
        sim_peer_end_lease(peer);
        peer->leased = true;
        sim->harmed[number] = false;
    }
    sim_peer_connect(peer, fds);
    sim_trace(sim, "peer %u is attached", number);
    CHECK_EQUAL(isw_device_peer_attach(sim->device, number, fds[0], fds[1]), 0);
    peer->attached = true;
}

bool sim_owing(const struct sim *sim, uint32_t book)
{
    return book && sim->harmed[book - 1] && sim_peer_owes(&sim->peer[book - 1]);
}

static void slab_given_back(struct sim *sim, uint32_t slab, uint32_t peer)
{
    sim->draining[slab] = false;
    if (sim->book[slab] != peer + 1)
        return;
    sim->book[slab] = 0;
    sim_peer_take_back(&sim->peer[peer], slab);
}

static void peer_gone(struct sim *sim, uint32_t number)
{
    struct sim_peer *peer = &sim->peer[number];
    peer->attached = peer->held = false;
    for (uint32_t slab = 0; slab < sim->slabs; slab++)
        if (sim->book[slab] == number + 1)
            slab_given_back(sim, slab, number);
    sim_moves_end_with(sim, number);
    sim_peer_end_lease(peer);
}

static void hear(struct sim *sim, const struct isw_event *event)
{
    uint32_t peers;
    sim_trace(sim, "news %u: peer %u, slab %u, value %llu", event->kind, event->peer, event->slab,
              (unsigned long long)event->value);
    if (event->attachment && event->attachment != isw_device_peers(sim->device, &peers)[event->peer].attachment)
        return; /* that lease is over, and another one has begun */
    switch (event->kind) {
    case ISW_EVENT_PEER_LOST:
        if (!sim->harmed[event->peer])
            FAIL("peer %u is lost without a reason: %s", event->peer, strerror((int)event->value));
        sim->met.peers_lost++;
        peer_gone(sim, event->peer);
        break;
    case ISW_EVENT_PEER_HELD:
        if (!sim->harmed[event->peer])
            FAIL("peer %u breaks without a reason: %s", event->peer, strerror((int)event->value));
        sim->peer[event->peer].attached = false;
        sim->peer[event->peer].held = true;
        break;
    case ISW_EVENT_SLAB_LOST:
        if (!sim->harmed[event->peer])
            FAIL("slab %u is lost without a reason: %s", event->slab, strerror((int)event->value));
        slab_given_back(sim, event->slab, event->peer);
        break;
    case ISW_EVENT_SLAB_RELEASED:
        if (!sim_left(sim, event->slab, event->peer))
            slab_given_back(sim, event->slab, event->peer);
        break;
    case ISW_EVENT_SLAB_MOVED:
        sim_hear_moved(sim, event);
        break;
    case ISW_EVENT_MOVE_FAILED:
        sim_hear_move_failed(sim, event);
        break;
    case ISW_EVENT_MISMATCH:
        if (!sim->harmed[event->peer])
            FAIL("page %llu fails its checksum, and nobody has touched it", (unsigned long long)event->value);
        break;
    case ISW_EVENT_BACKUP_ERROR:
        if (!sim->disk.faults)
            FAIL("a backup error (%s), and the disk has none", strerror((int)event->value));
        break;
    case ISW_EVENT_OVERFLOW:
        FAIL("news are lost");
    default:
        break;
    }
}

/* holding.py: the same lease is reached again, or is gone. */
static void try_again(struct sim *sim, uint32_t number)
{
    struct sim_peer *peer = &sim->peer[number];
    int fds[2], result = -ENOENT;
    if (peer->leased) {
        sim_peer_connect(peer, fds);
        CHECK_EQUAL(isw_device_peer_attach(sim->device, number, fds[0], fds[1]), 0);
        result = isw_device_peer_resume(sim->device, number);
    }
    sim_trace(sim, "peer %u is resumed: %d", number, result);
    peer->attached = !result;
    if (!result) {
        peer->held = false;
        sim->met.peers_resumed++;
        return;
    }
    result = isw_device_peer_detach(sim->device, number);
    CHECK(result == 0 || result == -ENOTCONN);
    peer_gone(sim, number);
}

static void map(struct sim *sim, uint32_t slab, uint32_t peer)
{
    uint32_t count;
    if (sim->book[slab] || sim->target[slab] || sim->leaving[slab] == peer + 1 || !sim->peer[peer].attached || isw_device_slabs(sim->device, &count)[slab].state)
        return;
    CHECK_EQUAL(isw_device_slab_forget(sim->device, slab), 0);
    sim->book[slab] = peer + 1;
    sim->peer[peer].lent[slab] = true;
    if (sim_owing(sim, peer + 1))
        oracle_harmed(&sim->oracle, slab);
    int result = isw_device_slab_map(sim->device, slab, peer, 0);
    sim_trace(sim, "slab %u is mapped to peer %u: %d", slab, peer, result);
    CHECK(result == 0 || result == -ENOTCONN); /* lost meanwhile: its news are on their way */
    if (result)
        slab_given_back(sim, slab, peer);
}

void sim_control_start(struct sim *sim)
{
    memset(sim->draining, 0, sizeof sim->draining);
    sim->controlled = false;
    for (uint32_t i = 0; i < sim->peers; i++)
        if (!sim->peer[i].attached && sim->peer[i].alive && !chance_in(&sim->chance, 4))
            sim_attach(sim, i);
    for (uint32_t slab = 0; slab < sim->slabs; slab++)
        if (chance_in(&sim->chance, 2))
            map(sim, slab, (uint32_t)chance_below(&sim->chance, sim->peers));
    control_due(sim, sim->life);
}

static void unmap(struct sim *sim, uint32_t slab)
{
    if (sim->draining[slab] || !sim->book[slab])
        return;
    int result = isw_device_slab_unmap(sim->device, slab);
    sim_trace(sim, "slab %u is given up: %d", slab, result);
    CHECK(result == 0 || result == -EINVAL || result == -EBUSY || result == -EAGAIN);
    sim->draining[slab] = !result;
}

static void detach(struct sim *sim, uint32_t number)
{
    if (!sim->peer[number].attached)
        return;
    for (uint32_t slab = 0; slab < sim->slabs; slab++)
        if (sim->book[slab] == number + 1 || sim->target[slab] == number + 1)
            oracle_harmed(&sim->oracle, slab);
    int result = isw_device_peer_detach(sim->device, number);
    sim_trace(sim, "peer %u is detached: %d", number, result);
    CHECK(result == 0 || result == -ENOTCONN);
    if (!result)
        peer_gone(sim, number);
}

void sim_control(struct sim *sim)
{
    struct isw_event events[NEWS_MOST];
    struct chance *chance = &sim->chance;
    sim->controlled = false;
    int count = isw_device_events(sim->device, events, NEWS_MOST);
    for (int i = 0; i < count; i++)
        hear(sim, &events[i]);
    if (sim->stopping || count == NEWS_MOST)
        return;
    uint32_t peer = (uint32_t)chance_below(chance, sim->peers), slab = (uint32_t)chance_below(chance, sim->slabs);
    struct sim_client *client = &sim->client[chance_below(chance, SIM_CLIENTS)];
    switch (chance_below(chance, 10)) { /* one thing a turn: the next one's news may change what is right */
    case 0:
    case 1:
        map(sim, slab, peer);
        break;
    case 2:
        if (sim->peer[peer].held && sim->peer[peer].alive)
            try_again(sim, peer);
        else if (!sim->peer[peer].attached && sim->peer[peer].alive)
            sim_attach(sim, peer);
        break;
    case 3:
        sim->peer[peer].alive = true;
        break;
    case 4:
        if (sim_has(sim, SIM_UNMAPS))
            unmap(sim, slab);
        break;
    case 5:
    case 6:
        if (sim_has(sim, SIM_MOVES))
            sim_move(sim, slab, peer);
        break;
    case 7:
        if (sim_has(sim, SIM_DETACHES) && chance_in(chance, 8))
            detach(sim, peer);
        break;
    default:
        if (client->fd < 0)
            sim_client_connect(client);
        break;
    }
}
