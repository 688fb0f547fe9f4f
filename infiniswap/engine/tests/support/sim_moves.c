/* What Python does for a slab that moves: memory for it at the new peer, the record, the settling, the giving back. */
#include "sim.h"

#include "device.h"

#include <errno.h>

/* A process that is killed between any two of the steps loses nothing, so none may be the last. */
void sim_move(struct sim *sim, uint32_t slab, uint32_t number)
{
    struct sim_peer *peer = &sim->peer[number];
    uint32_t count, limit_ms = (uint32_t)chance_below(&sim->chance, 400);
    if (sim->target[slab] && chance_in(&sim->chance, 8)) {
        int result = isw_device_slab_move_cancel(sim->device, slab);
        sim_trace(sim, "the move of slab %u is called off: %d", slab, result);
        CHECK(result == 0 || result == -EINVAL || result == -EALREADY);
        return;
    }
    bool again = sim->target[slab] == number + 1;
    if (!sim->book[slab] || sim->book[slab] == number + 1 || (sim->target[slab] && !again) || sim->leaving[slab] ||
        !peer->attached || isw_device_slabs(sim->device, &count)[slab].state == ISW_SLAB_UNMAPPED)
        return;
    if (!again) {
        sim->target[slab] = number + 1;
        peer->lent[slab] = true;
        if (sim_owing(sim, number + 1))
            oracle_harmed(&sim->oracle, slab);
    }
    int result = isw_device_slab_move(sim->device, slab, number, limit_ms);
    sim_trace(sim, "slab %u is to move to peer %u within %u ms: %d", slab, number, limit_ms, result);
    /* Lost or held meanwhile, or it had moved there when this came: the news are on their way. */
    CHECK(result == 0 || result == -ENOTCONN || result == -EINVAL || result == -EAGAIN || (again && result == -EBUSY));
    if (result && !again) {
        sim->target[slab] = 0;
        sim_peer_take_back(peer, slab);
    }
}

/* Both places have all that is REMOTE. */
static void check_copies(struct sim *sim, uint32_t slab, uint32_t number)
{
    uint64_t first = slab * sim->oracle.slab_pages, end = first + sim->oracle.slab_pages;
    for (uint64_t page = first; page < end && page < sim->oracle.pages && !sim->harmed[number]; page++) {
        const struct isw_page *entry = &sim->page[page];
        uint32_t sum;
        if (!(entry->meta & ISW_PAGE_REMOTE))
            continue;
        if (!sim_seals_look(sim, page, sim->peer[number].memory + page * ISW_PAGE_BYTES, &sum) || sum != entry->checksum)
            FAIL("page %llu is said to have moved to peer %u, and is not there", (unsigned long long)page, number);
    }
}

void sim_hear_moved(struct sim *sim, const struct isw_event *event)
{
    uint32_t count;
    if (sim->target[event->slab] != event->peer + 1)
        return; /* its lease is over */
    if (isw_device_slabs(sim->device, &count)[event->slab].state == ISW_SLAB_DRAINING)
        check_copies(sim, event->slab, event->peer);
    sim->leaving[event->slab] = sim->book[event->slab];
    sim->book[event->slab] = event->peer + 1;
    sim->target[event->slab] = 0;
    sim->draining[event->slab] = false;
    sim_point(&sim->system);
    int result = isw_device_slab_settle(sim->device, event->slab);
    sim_trace(sim, "slab %u settles at peer %u with %llu pages: %d", event->slab, event->peer, (unsigned long long)event->value, result);
    CHECK(result == 0 || result == -EINVAL);
    sim->met.moves += !result;
    sim->met.moved_pages += event->value;
    sim_point(&sim->system);
}

void sim_hear_move_failed(struct sim *sim, const struct isw_event *event)
{
    if (sim->target[event->slab] != event->peer + 1)
        return;
    sim->target[event->slab] = 0;
    sim_peer_take_back(&sim->peer[event->peer], event->slab);
}

bool sim_left(struct sim *sim, uint32_t slab, uint32_t peer)
{
    if (sim->leaving[slab] != peer + 1)
        return false;
    sim->leaving[slab] = 0;
    sim_peer_take_back(&sim->peer[peer], slab);
    return true;
}

void sim_moves_end_with(struct sim *sim, uint32_t peer)
{
    for (uint32_t slab = 0; slab < sim->slabs; slab++) {
        if (sim->target[slab] == peer + 1)
            sim->target[slab] = 0;
        if (sim->leaving[slab] == peer + 1)
            sim->leaving[slab] = 0;
    }
}

void sim_moves_recover(struct sim *sim)
{
    for (uint32_t slab = 0; slab < SIM_SLABS_MAX; slab++) {
        if (sim->target[slab])
            sim_peer_take_back(&sim->peer[sim->target[slab] - 1], slab);
        if (sim->leaving[slab])
            sim_peer_take_back(&sim->peer[sim->leaving[slab] - 1], slab);
    }
    memset(sim->target, 0, sizeof sim->target);
    memset(sim->leaving, 0, sizeof sim->leaving);
}
