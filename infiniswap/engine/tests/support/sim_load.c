/* What the clients of a simulation ask for, and when. */
#include "sim.h"

#include "nbd_wire.h"

static uint64_t below(struct sim_client *c, uint64_t bound)
{
    return chance_below(&c->chance, bound);
}

/* A range of at most `most` sectors, mostly inside a window, often of whole pages. */
static void draw_range(struct sim_client *c, uint64_t most, uint64_t *first, uint64_t *sectors)
{
    const struct sim *sim = c->sim;
    uint64_t all = sim->oracle.sectors, begin = 0, length = all;
    if (!chance_in(&c->chance, 20)) {
        uint64_t number = below(c, SIM_WINDOWS);
        begin = sim->window[number].first;
        length = sim->window[number].sectors;
    }
    *first = begin + below(c, length);
    *sectors = 1 + below(c, chance_in(&c->chance, 8) ? most : 4 * SIM_PAGE_SECTORS);
    if (!chance_in(&c->chance, 3)) {
        *first -= *first % SIM_PAGE_SECTORS;
        *sectors = (*sectors + SIM_PAGE_SECTORS - 1) / SIM_PAGE_SECTORS * SIM_PAGE_SECTORS;
    }
    if (*sectors > all - *first)
        *sectors = all - *first;
}

/* Pages a step apart, into a window and behind it: what is guessed meets what is written. */
static void read_along(struct sim_client *c)
{
    const struct sim *sim = c->sim;
    if (!c->along_left || c->along >= sim->oracle.pages) {
        static const uint32_t steps[] = {1, 1, 2, 7};
        uint64_t first = sim->window[below(c, SIM_WINDOWS)].first / SIM_PAGE_SECTORS;
        c->along = first > 16 ? first - 16 : 0;
        c->along_step = steps[below(c, 4)];
        c->along_left = 24 + (uint32_t)below(c, 40);
    }
    sim_client_ask(c, NBD_CMD_READ, 0, c->along * SIM_PAGE_SECTORS, SIM_PAGE_SECTORS);
    c->along += c->along_step;
    c->along_left--;
}

static void ask(struct sim_client *c)
{
    if (c->sim->config.prefetch_floor_us && c->number < 2 && !chance_in(&c->chance, 3)) {
        read_along(c);
        return;
    }
    uint64_t first, sectors, dice = below(c, 100);
    uint16_t fua = chance_in(&c->chance, 12) ? NBD_CMD_FLAG_FUA : 0;
    if (dice < 44) {
        draw_range(c, SIM_WRITE_SECTORS_MAX, &first, &sectors);
        sim_client_ask(c, NBD_CMD_WRITE, fua, first, sectors);
    } else if (dice < 78) {
        draw_range(c, SIM_READ_SECTORS_MAX, &first, &sectors);
        sim_client_ask(c, NBD_CMD_READ, 0, first, sectors);
    } else if (dice < 85) {
        sim_client_ask(c, NBD_CMD_FLUSH, 0, 0, 0);
    } else if (dice < 96) {
        draw_range(c, chance_in(&c->chance, 10) ? c->sim->oracle.sectors : 64 * SIM_PAGE_SECTORS, &first, &sectors);
        sim_client_ask(c, dice < 90 ? NBD_CMD_TRIM : NBD_CMD_WRITE_ZEROES, fua, first, sectors);
    } else if (c->structured) {
        draw_range(c, c->sim->oracle.sectors, &first, &sectors);
        sim_client_ask(c, NBD_CMD_BLOCK_STATUS, chance_in(&c->chance, 4) ? NBD_CMD_FLAG_REQ_ONE : 0, first, sectors);
    }
}

static void think(void *owner, uint64_t life)
{
    struct sim_client *c = owner;
    struct sim *sim = c->sim;
    if (life != sim->life || sim->quiet || sim->operations >= sim->life_operations)
        return;
    if (c->fd >= 0 && !c->gone && c->out < c->depth)
        ask(c);
    if (c->fd >= 0 && !c->gone && sim_has(sim, SIM_LEAVERS) && chance_in(&c->chance, 60))
        sim_client_leave(c);
    sim_at(&sim->system, sim->system.now_ns + 1000 + below(c, sim->pace_ns), think, c, life);
}

void sim_load_open(struct sim *sim)
{
    static const uint64_t paces_ns[] = {40000, 400000, 4000000};
    sim->pace_ns = paces_ns[chance_below(&sim->chance, 3)];
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        struct sim_client *c = &sim->client[i];
        *c = (struct sim_client){.sim = sim, .number = i, .fd = -1, .structured = i % 2 == 0, .outgoing = c->outgoing,
                                 .incoming = c->incoming, .chance = {chance_next(&sim->chance)}};
        c->depth = 1 + (uint32_t)below(c, SIM_REQUESTS);
        c->outgoing.start = c->outgoing.end = c->incoming.start = c->incoming.end = 0;
    }
    for (uint32_t i = 0; i < SIM_WINDOWS; i++) {
        uint64_t slab_sectors = sim->oracle.slab_pages * SIM_PAGE_SECTORS, length = (1 + chance_below(&sim->chance, 24)) * SIM_PAGE_SECTORS;
        uint64_t border = slab_sectors * (1 + chance_below(&sim->chance, sim->slabs - 1)), all = sim->oracle.sectors;
        sim->window[i].sectors = length;
        sim->window[i].first = i == 0 ? border - length / 2 / SIM_PAGE_SECTORS * SIM_PAGE_SECTORS
                                      : chance_below(&sim->chance, all - length) / SIM_PAGE_SECTORS * SIM_PAGE_SECTORS;
        if (sim->window[i].first + length > all)
            sim->window[i].first = all - length;
    }
}

void sim_load_start(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        if (sim->client[i].fd < 0)
            sim_client_connect(&sim->client[i]);
        sim_at(&sim->system, sim->system.now_ns + below(&sim->client[i], sim->pace_ns), think, &sim->client[i], sim->life);
    }
}

void sim_until(struct sim *sim, bool (*is)(const struct sim *sim), uint64_t limit_ms, const char *what)
{
    uint64_t until_ns = sim->system.now_ns + limit_ms * 1000000;
    while (!is(sim)) {
        sim_turn(sim);
        if (sim->system.now_ns > until_ns)
            FAIL("%s: not after %llu ms", what, (unsigned long long)limit_ms);
    }
}

void sim_load_read_all(struct sim *sim)
{
    struct sim_client *c = &sim->client[0];
    for (uint64_t at = 0; at < sim->oracle.sectors; at += SIM_READ_SECTORS_MAX) {
        uint64_t left = sim->oracle.sectors - at;
        sim_client_ask(c, NBD_CMD_READ, 0, at, left < SIM_READ_SECTORS_MAX ? left : SIM_READ_SECTORS_MAX);
    }
    sim_until(sim, sim_clients_idle, 10000, "everything is read");
}
