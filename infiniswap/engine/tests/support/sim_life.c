/* The lives of a simulated device: started on what the last one left, killed, stopped, cut off from power.  What Python
 * does to the state file before a start (infiniswap/device/startup.py, recovery.py) is done here in C. */
#include "sim.h"

#include "device.h"

#include <errno.h>
#include <sys/mman.h>

enum { DRAIN_MS = 6000, PAGE = ISW_PAGE_BYTES };

/* ---- the end of a life ---- */

void sim_kill(struct sim *sim)
{
    struct device *d = (struct device *)sim->device;
    sim_trace(sim, "the process is killed");
    sim->system.kill_in = 0;
    sim->life++;
    sim_disk_killed(&sim->disk);
    if (sim->log.used)
        sim_log_killed(&sim->log);
    sim_close_all(&sim->system);
    sim_clients_cut(sim);
    for (uint32_t i = 0; i < sim->peers; i++)
        sim->peer[i].attached = sim->peer[i].held = false;
    if (d) {
        seals_close(d);
        munmap(d->arena, d->arena_bytes);
        free(d);
    }
    sim->device = NULL;
    oracle_process_killed(&sim->oracle);
    sim->remains = SIM_KILLED;
    sim->met.kills++;
}

/* ---- what a start makes of the remains ---- */

static bool intended(const struct sim *sim, uint64_t page, uint32_t sum)
{
    for (uint32_t i = 0; i < ISW_OPS; i++) {
        const struct isw_intent *intent = &sim->intents[i];
        if (intent->pages && page >= intent->first_page && page < intent->first_page + intent->pages &&
            intent->checksum[page - intent->first_page] == sum)
            return true;
    }
    return false;
}

/* The backup may have the next version already. */
static bool written_through(const struct sim *sim, uint64_t page)
{
    for (uint32_t i = 0; i < ISW_OPS; i++) {
        const struct isw_intent *intent = &sim->intents[i];
        if (intent->to_backup && page >= intent->first_page && page - intent->first_page < intent->pages)
            return true;
    }
    return false;
}

/* recovery.py: drop_remote */
static void drop_remote(struct sim *sim, struct isw_page *entry)
{
    uint32_t meta = entry->meta & ISW_PAGE_PERSISTENT;
    if (!(meta & (ISW_PAGE_REMOTE | ISW_PAGE_WRITING)))
        return;
    bool orphaned = (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE, first_write = meta == ISW_PAGE_WRITING;
    entry->meta = orphaned ? ISW_PAGE_LOST
                  : first_write ? ISW_PAGE_DISK
                                : meta & ~(uint32_t)(ISW_PAGE_REMOTE | ISW_PAGE_WRITING);
    sim->met.lost_pages += orphaned;
}

/* recovery.py: settle_page */
static void settle(struct sim *sim, uint64_t page, const uint8_t *remote)
{
    struct isw_page *entry = &sim->page[page];
    uint32_t sum;
    bool known = sim_seals_try(sim, page, remote, &sum);
    sim->met.settled++;
    if (!known)
        drop_remote(sim, entry);
    else if ((entry->meta & ISW_PAGE_REMOTE) && sum == entry->checksum)
        entry->meta &= ~(uint32_t)(written_through(sim, page) ? ISW_PAGE_WRITING | ISW_PAGE_DISK : ISW_PAGE_WRITING);
    else if (intended(sim, page, sum))
        *entry = (struct isw_page){sum, ISW_PAGE_REMOTE};
    else
        drop_remote(sim, entry);
}

static bool drained(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->peers; i++)
        if (!sim_peer_drained(&sim->peer[i]))
            return false;
    return true;
}

static void wait_for_last_writes(struct sim *sim)
{
    uint64_t until_ns = sim->system.now_ns + DRAIN_MS * 1000000ull;
    while (!drained(sim) && sim_step(&sim->system, until_ns))
        ;
    for (uint32_t i = 0; i < sim->peers; i++)
        sim_peer_drop_links(&sim->peer[i]);
}

/* Leases that live on keep their slabs; the rest is dropped. */
void sim_recover(struct sim *sim)
{
    wait_for_last_writes(sim);
    sim_moves_recover(sim);
    for (uint32_t i = 0; i < sim->peers; i++) {
        struct sim_peer *peer = &sim->peer[i];
        if (peer->leased && sim_has(sim, SIM_PEERS_FORGET) && chance_in(&sim->chance, 4))
            sim_peer_die(peer); /* or cannot be reached: its lease is given up */
    }
    for (uint64_t page = 0; page < sim->oracle.pages; page++) {
        uint32_t slab = (uint32_t)(page / sim->oracle.slab_pages), book = sim->book[slab];
        bool lives = book && sim->peer[book - 1].leased && sim->peer[book - 1].lent[slab];
        struct isw_page *entry = &sim->page[page];
        if (!lives)
            drop_remote(sim, entry);
        else if (entry->meta & ISW_PAGE_WRITING)
            settle(sim, page, sim->peer[book - 1].memory + page * PAGE);
        if (!(page % 16))
            sim_point(&sim->system); /* killed again, half-way */
    }
    for (uint32_t i = 0; i < ISW_OPS; i++)
        sim->intents[i].pages = 0;
    for (uint32_t slab = 0; slab < sim->slabs; slab++) {
        uint32_t book = sim->book[slab];
        if (book && !(sim->peer[book - 1].leased && sim->peer[book - 1].lent[slab]))
            sim->book[slab] = 0;
    }
    sim->met.recoveries++;
}

static void give_leases_back(struct sim *sim)
{
    memset(sim->book, 0, sizeof sim->book);
    memset(sim->target, 0, sizeof sim->target);
    memset(sim->leaving, 0, sizeof sim->leaving);
    for (uint32_t i = 0; i < sim->peers; i++)
        sim_peer_end_lease(&sim->peer[i]);
}

/* The page table anew, from what the backup holds; pages known to be lost stay so (state.py: Start.REBUILD). */
static void rebuild(struct sim *sim)
{
    for (uint64_t page = 0; page < sim->oracle.pages; page++) {
        bool lost = sim->page[page].meta & ISW_PAGE_LOST;
        bool data = sim->log.used ? sim_log_has(&sim->log, page) : sim->disk.flags[page] & SIM_PAGE_ALLOCATED;
        sim->page[page] = (struct isw_page){0, lost ? ISW_PAGE_LOST : data ? ISW_PAGE_DISK : 0};
    }
    memset(sim->intents, 0, ISW_OPS * sizeof *sim->intents);
    sim_seals_anew(sim);
    give_leases_back(sim);
    sim_state_synced(sim);
}

static void adopt(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->peers; i++)
        if (sim->peer[i].leased)
            sim_attach(sim, i);
    for (uint32_t slab = 0; slab < sim->slabs; slab++)
        if (sim->book[slab]) {
            sim_trace(sim, "slab %u of peer %u is adopted", slab, sim->book[slab] - 1);
            int result = isw_device_slab_map(sim->device, slab, sim->book[slab] - 1, 1);
            CHECK(result == 0 || result == -ENOTCONN);
        }
    CHECK_EQUAL(isw_device_adoption_end(sim->device), 0);
}

void sim_start(struct sim *sim)
{
    char error[256] = "";
    sim_trace(sim, "start, on what was %s", sim->remains == SIM_KILLED    ? "killed"
                                            : sim->remains == SIM_DOUBTED ? "stopped in doubt"
                                            : sim->remains == SIM_STOPPED ? "stopped"
                                            : sim->remains == SIM_CUT     ? "cut off from power"
                                                                          : "never there");
    bool recovering = sim->remains == SIM_KILLED || sim->remains == SIM_DOUBTED;
    if (sim->log.used)
        sim->config.backup_log = sim_log_start(&sim->log, sim->remains != SIM_CUT && sim->remains != SIM_NOTHING);
    if (sim->remains == SIM_DOUBTED)
        give_leases_back(sim);
    if (recovering)
        sim_recover(sim);
    else
        rebuild(sim);
    sim->life++;
    sim->life_order = oracle_now(&sim->oracle);
    sim->guessed = sim->dropped = sim->ready_ns = 0;
    sim->met.lives++;
    sim->stopping = false;
    if (sim->log.used)
        sim_log_install(&sim->log);
    else
        sim_disk_install(&sim->disk);
    sim->config.recovering = recovering;
    sim->device = isw_device_start(&sim->config, error, sizeof error);
    if (!sim->device)
        FAIL("the device does not start: %s", error);
    if (recovering)
        adopt(sim);
    sim_control_start(sim);
}
