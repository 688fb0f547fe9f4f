/* The simulated state file's disk: which pages it would say are lost, should the power fail now. */
#include "sim.h"

static bool says_lost(const struct sim *sim, uint64_t page)
{
    return (sim->page[page].meta & ISW_PAGE_LOST) && sim->page[page].checksum != ISW_LOST_PENDING;
}

void sim_state_open(struct sim *sim)
{
    sim->lost_durable = calloc(2, sim->oracle.pages);
    CHECK(sim->lost_durable);
    sim->lost_syncing = sim->lost_durable + sim->oracle.pages;
}

void sim_state_close(struct sim *sim)
{
    free(sim->lost_durable);
}

void sim_state_step(void *owner, enum sim_state_sync step)
{
    struct sim *sim = owner;
    for (uint64_t page = 0; step == SIM_STATE_BEGUN && page < sim->oracle.pages; page++)
        sim->lost_syncing[page] = says_lost(sim, page);
    if (step == SIM_STATE_SYNCED)
        memcpy(sim->lost_durable, sim->lost_syncing, sim->oracle.pages);
}

void sim_state_synced(struct sim *sim)
{
    sim_state_step(sim, SIM_STATE_BEGUN);
    sim_state_step(sim, SIM_STATE_SYNCED);
}

/* What was changed since it was synced may be there or not. */
void sim_state_power_cut(struct sim *sim)
{
    for (uint64_t page = 0; page < sim->oracle.pages; page++) {
        bool lost = chance_in(&sim->chance, 2) ? says_lost(sim, page) : sim->lost_durable[page];
        sim->page[page] = (struct isw_page){0, lost ? ISW_PAGE_LOST : 0};
    }
}
