#include "sim.h"

#include "device.h"
#include "loop.h"
#include "seed.h"

#include "nbd_wire.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

enum { SLAB_BYTES = 1 << 20, SIZE_BYTES = (2 << 20) + (300 << 10), ANSWER_MS = 15000, STOP_MS = 20000 };

const char *const sim_trouble_names[SIM_TROUBLES] = {
    "disk reads fail", "disk writes fail", "disk full", "syncs fail", "syncs drop", "bad sectors", "slow disk", "disk stalls",
    "late answers", "silent peers", "dying peers", "refused slabs", "flipped bits", "garbage", "forgetful peers", "restarting peers",
    "bytes in pieces", "unmaps", "moves", "detaches", "clients leave", "kills", "power cuts", "early stops", "killed recoveries",
};

void sim_trace(struct sim *sim, const char *format, ...)
{
    va_list list;
    if (!sim->options.trace)
        return;
    fprintf(stderr, "%10.6f %6llu  ", (double)(sim->system.now_ns - 1000000000) / 1e9, (unsigned long long)sim->oracle.now);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}

bool sim_has(const struct sim *sim, enum sim_trouble trouble)
{
    return !sim->quiet && (sim->troubles >> trouble & 1);
}

static uint32_t rate(struct sim *sim, enum sim_trouble trouble, uint32_t least)
{
    uint32_t one_in = least << chance_below(&sim->chance, 5); /* drawn in any case: the rest of the seed stays as it is */
    return sim_has(sim, trouble) ? one_in : 0;
}

/* How disk and peers behave from now on. */
static void draw_manners(struct sim *sim)
{
    struct sim_disk_manners *disk = &sim->disk.manners;
    disk->request_ns_max = sim_has(sim, SIM_DISK_SLOW) ? 20000000 : 200000;
    disk->sync_ns_max = sim_has(sim, SIM_DISK_SLOW) ? 100000000 : 2000000;
    disk->stall_one_in = rate(sim, SIM_DISK_STALLS, 50);
    disk->stall_ns = 1500000000;
    disk->read_error_one_in = rate(sim, SIM_DISK_READS, 10);
    disk->write_error_one_in = rate(sim, SIM_DISK_WRITES, 10);
    disk->error = sim_has(sim, SIM_DISK_FULL) ? ENOSPC : EIO;
    disk->sync_error_one_in = rate(sim, SIM_DISK_SYNCS, 3);
    disk->sync_drop_one_in = sim_has(sim, SIM_DISK_DROPS) ? 2 : 0;
    disk->bad_one_in = rate(sim, SIM_DISK_BAD, 100);
    disk->fail_nth = sim->quiet ? 0 : sim->options.disk_nth;
    for (uint64_t page = 0; sim->quiet && page < sim->disk.pages; page++)
        sim->disk.flags[page] &= (uint8_t)~SIM_PAGE_BAD;
    for (uint32_t i = 0; i < sim->peers; i++) {
        struct sim_peer_manners *m = &sim->peer[i].manners;
        m->late_one_in = rate(sim, SIM_PEERS_LATE, 30);
        m->late_ns = sim->config.peer_timeout_ms * 1200000;
        m->silent_one_in = rate(sim, SIM_PEERS_SILENT, 60);
        m->dies_one_in = rate(sim, SIM_PEERS_DIE, 60);
        m->restarts_one_in = rate(sim, SIM_PEERS_RESTART, 60);
        m->refuses_one_in = rate(sim, SIM_PEERS_REFUSE, 40);
        m->flips_one_in = rate(sim, SIM_PEERS_FLIP, 20);
        m->garbage_one_in = rate(sim, SIM_PEERS_GARBAGE, 60);
        m->chopped = sim_has(sim, SIM_PIECES);
        m->script = sim->script ? &sim->script : NULL;
        m->script_end = sim->options.script + sim->options.script_bytes;
        if (sim->script)
            m->garbage_one_in = sim->quiet ? 0 : 3;
        m->fail_nth = sim->quiet || i ? 0 : sim->options.peer_nth;
        m->fail_kind = sim->options.peer_kind;
    }
}

static uint64_t order(void *owner)
{
    return oracle_now(owner);
}

/* The backup's copy does not count any more: what is left is a remote one, now or after it was promoted; harm that has come
 * before to the place that it is promoted to counts while it may still tell there. */
static void disk_suspected(void *owner, uint64_t page)
{
    struct sim *sim = owner;
    uint32_t slab = (uint32_t)(page / sim->oracle.slab_pages);
    bool remote = (sim->page[page].meta & ISW_PAGE_REMOTE) || sim_owing(sim, sim->book[slab]) || sim_owing(sim, sim->target[slab]);
    oracle_write_torn(&sim->oracle, page, remote ? sim->life_order : oracle_now(&sim->oracle));
}

static void disk_told(void *owner, const char *what, uint64_t first, uint64_t pages, int error)
{
    struct sim *sim = owner;
    sim_trace(sim, "disk: %s of %llu + %llu: %s", what, (unsigned long long)first, (unsigned long long)pages,
              error ? strerror(error) : "done");
    for (uint64_t page = first; error && page < first + pages; page++)
        if (sim->page[page].meta & ISW_PAGE_WRITING)
            oracle_write_torn(&sim->oracle, page, sim->life_order);
    if (!error || pages)
        return;
    /* A sync.  What a killed process had not synced its successor does not know: its first may have failed over anything. */
    bool inherits = sim->config.recovering && !sim->disk.syncs;
    for (uint64_t page = 0; inherits && page < sim->oracle.pages; page++)
        disk_suspected(sim, page);
}

/* Where another copy is to be had the page must be as it was: only that copy is what is left, should it come to harm. */
static void disk_doubted(void *owner, uint64_t page, bool still)
{
    struct sim *sim = owner;
    uint32_t meta = sim->page[page].meta;
    sim_trace(sim, "disk: page %llu is %s", (unsigned long long)page, still ? "doubtful" : "sure again");
    if (!still) {
        sim->oracle.page[page].doubtful = false;
        return;
    }
    disk_suspected(sim, page);
    if (!(meta & ISW_PAGE_REMOTE) || (meta & ISW_PAGE_BUSY))
        oracle_doubted(&sim->oracle, page);
}

/* The process died before it heard of a failed sync, and nobody hears of it again: no program can mend that. */
static void disk_unheard(void *owner, uint64_t page)
{
    struct sim *sim = owner;
    oracle_doubted(&sim->oracle, page);
}

static void peer_harmed(void *owner, uint32_t peer, uint32_t slab, const char *what)
{
    struct sim *sim = owner;
    sim_trace(sim, "peer %u %s (slab %d)", peer, what, slab == SIM_SLABS_MAX ? -1 : (int)slab);
    sim->harmed[peer] = true;
    sim->met.faults++;
    for (uint32_t i = 0; i < sim->slabs; i++)
        if ((sim->book[i] == peer + 1 || sim->target[i] == peer + 1) && (slab == SIM_SLABS_MAX || slab == i))
            oracle_harmed(&sim->oracle, i);
}

static void explain(void *owner, uint64_t sector)
{
    const struct sim *sim = owner;
    uint64_t page = sector / SIM_PAGE_SECTORS, at = sector * SIM_SECTOR, words[2 + SIM_PEERS];
    memcpy(&words[0], sim->disk.image + at, 8);
    memcpy(&words[1], sim->disk.durable + at, 8);
    fprintf(stderr, "flags %02x; on the disk: write %llu, durable: write %llu; slab %u, on record at peer %d;",
            sim->page[page].meta, (unsigned long long)words[0] >> 8, (unsigned long long)words[1] >> 8,
            (unsigned)(page / sim->oracle.slab_pages), (int)sim->book[page / sim->oracle.slab_pages] - 1);
    for (uint32_t i = 0; i < sim->peers; i++) {
        memcpy(&words[2], sim->peer[i].memory + at, 8);
        fprintf(stderr, " peer %u: write %llu;", i, (unsigned long long)words[2] >> 8);
    }
    fputc('\n', stderr);
}

/* ---- one seed ---- */

static void draw_config(struct sim *sim)
{
    static const uint64_t sizes[] = {SIZE_BYTES, 2 << 20, (1 << 20) + (4 << 10), SIZE_BYTES};
    struct chance *c = &sim->chance;
    void *state = sim->config.state;
    uint64_t state_bytes = sim->config.state_bytes;
    sim->config = (struct isw_device_config){
        .size_bytes = sizes[chance_below(c, 4)],
        .slab_bytes = SLAB_BYTES,
        .pending_limit_bytes = 1 << (20 + chance_below(c, 2)),
        .state = state,
        .state_bytes = state_bytes,
        .state_fd = 1, /* nobody looks at its number */
        .backup_fd = -1,
        .backup_sparse = 1,
        .backup_depth = 1u << chance_below(c, 6),
        .writeback_delay_ms = chance_in(c, 2) ? 0 : (uint32_t)chance_below(c, 200),
        .connections_max = SIM_CLIENTS + 1,
        .peers_max = SIM_PEERS,
        .peer_timeout_ms = 100 + (uint32_t)chance_below(c, 900),
        .client_stall_timeout_ms = 5000,
    };
    if (sim->config.writeback_delay_ms >= 100) /* pages wait for as long as anybody wants them to */
        sim->config.writeback_delay_ms = (sim->config.writeback_delay_ms - 99) * 50;
    sim->config.hedge_floor_us = sim->config.peer_timeout_ms % 2 ? 500 : 0;
    sim->config.backup_log_borrows = sim->config.peer_timeout_ms % 3 ? ISW_BORROW_ALWAYS : ISW_BORROW_NEVER;
    sim->config.prefetch_floor_us = sim->options.guesses || sim->config.peer_timeout_ms % 5 < 2; /* with pages that are read in a row: sim_load.c */
    sim->config.peer_grace_ms = chance_in(c, 3) ? 0 : (uint32_t)chance_below(c, 1000);
    sim->config.request_deadline_ms = sim->config.peer_timeout_ms % 3 ? sim->config.peer_timeout_ms / 4 : 0;
    uint64_t intents_offset, pages_offset, total;
    CHECK_EQUAL(isw_state_layout(sim->config.size_bytes, &intents_offset, &pages_offset, &total), 0);
    if (!state) {
        sim->config.state_bytes = total > (4u << 20) ? total : 4u << 20;
        sim->config.state = aligned_alloc(ISW_PAGE_BYTES, sim->config.state_bytes);
        CHECK(sim->config.state);
    }
    memset(sim->config.state, 0, total);
    seed_state(sim->config.state);
    sim->page = (struct isw_page *)(void *)((uint8_t *)sim->config.state + pages_offset);
    sim->intents = (struct isw_intent *)(void *)((uint8_t *)sim->config.state + intents_offset);
    sim->slabs = (uint32_t)((sim->config.size_bytes + SLAB_BYTES - 1) / SLAB_BYTES);
    sim->peers = 1 + (uint32_t)chance_below(c, SIM_PEERS);
}

static void open_world(struct sim *sim, const struct sim_options *options)
{
    struct sim_met met = sim->met;
    sim->options = *options;
    sim->script = options->script;
    sim->chance = (struct chance){options->seed * 0x2545f4914f6cdd1dull};
    chance_next(&sim->chance);
    sim_system_open(&sim->system, (struct chance){chance_next(&sim->chance)});
    sim->system.watched = options->trace ? options->page : UINT64_MAX;
    sim->quiet = sim->stopping = false;
    sim->flush_told = sim->life = sim->operations = sim->digest = 0;
    sim->device = NULL;
    sim->remains = SIM_NOTHING;
    sim->met = met;
    memset(sim->book, 0, sizeof sim->book);
    memset(sim->target, 0, sizeof sim->target);
    memset(sim->leaving, 0, sizeof sim->leaving);
    memset(sim->harmed, 0, sizeof sim->harmed);
    sim->troubles = 0;
    for (uint32_t i = 0; i < SIM_TROUBLES; i++)
        sim->troubles |= (uint64_t)chance_in(&sim->chance, 3) << i;
    sim->troubles &= ~options->without;
    if (options->log) /* whatever fails of a log is not about a page: test_log_model.c has that */
        sim->troubles &= ~(1ull << SIM_DISK_SYNCS | 1ull << SIM_DISK_BAD);
    draw_config(sim);
    oracle_open(&sim->oracle, sim->config.size_bytes, SLAB_BYTES);
    sim->oracle.explain = explain;
    sim->oracle.owner = sim;
    sim_disk_open(&sim->disk, &sim->system, sim->config.size_bytes, (struct chance){chance_next(&sim->chance)});
    sim->disk.order = order;
    sim->disk.order_owner = &sim->oracle;
    sim->disk.told = disk_told;
    sim->disk.doubted = disk_doubted;
    sim->disk.suspected = disk_suspected;
    sim->disk.unheard = disk_unheard;
    sim->disk.state = sim_state_step;
    sim_state_open(sim);
    sim_seals_open(sim);
    sim->disk.owner = sim;
    sim->log.used = false;
    if (options->log)
        sim_log_open(&sim->log, &sim->disk, sim->config.size_bytes, (struct chance){options->seed + 1});
    for (uint32_t i = 0; i < SIM_PEERS; i++) {
        sim_peer_open(&sim->peer[i], &sim->system, i, sim->config.size_bytes, SLAB_BYTES, (struct chance){chance_next(&sim->chance)});
        sim->peer[i].harmed = peer_harmed;
        sim->peer[i].owner = sim;
    }
    sim_load_open(sim);
}

static void close_world(struct sim *sim)
{
    sim->met.seeds++;
    sim->met.operations += sim->operations;
    sim->met.rounds += sim->system.rounds;
    sim->met.faults += sim->disk.faults;
    for (uint32_t i = 0; i < SIM_PEERS; i++)
        sim_peer_close(&sim->peer[i]);
    sim->met.borrowed += sim->log.borrowed;
    if (sim->log.used)
        sim_log_close(&sim->log);
    sim_disk_close(&sim->disk);
    sim_state_close(sim);
    sim_seals_close(sim);
    oracle_close(&sim->oracle);
    sim_system_close(&sim->system);
}

void sim_turn(struct sim *sim)
{
    loop_round((struct device *)sim->device);
    sim_check(sim);
    sim->digest = (sim->digest ^ sim->system.now_ns ^ sim->oracle.now << 40) * 0x100000001b3ull;
    if (sim->controlled)
        sim_control(sim);
}

static bool life_over(const struct sim *sim)
{
    return sim->operations >= sim->life_operations;
}

static void be_quiet(struct sim *sim)
{
    sim_trace(sim, "quiet from here on");
    sim->quiet = true;
    draw_manners(sim);
}

static void compare_image(struct sim *sim)
{
    uint64_t now = oracle_now(&sim->oracle);
    if (!sim_any_doubtful(sim)) /* else such a stop ends with 1, and is no FLUSH */
        oracle_flushed(&sim->oracle, now);
    for (uint64_t page = 0; page < sim->oracle.pages; page++) {
        if (sim->page[page].meta & ISW_PAGE_LOST) {
            if (!oracle_may_be_lost(&sim->oracle, page))
                FAIL("page %llu is lost without a reason", (unsigned long long)page);
            continue;
        }
        if (sim->oracle.page[page].doubtful) /* what it reads as, and what is durable, need not be the same */
            continue;
        oracle_read(&sim->oracle, now, page * SIM_PAGE_SECTORS, SIM_PAGE_SECTORS, sim->disk.durable + page * ISW_PAGE_BYTES,
                    "the image after a stop");
    }
}

static void stop(struct sim *sim)
{
    sim_trace(sim, "stop");
    sim->stopping = true;
    int result = isw_device_stop(sim->device, 1000);
    bool quiet = sim->quiet;
    if (result == -ETIMEDOUT) {
        be_quiet(sim);
        result = isw_device_stop(sim->device, STOP_MS);
    }
    if (result)
        FAIL("stop: %s", strerror(-result));
    sim->system.kill_in = 0;
    isw_device_free(sim->device);
    sim->device = NULL;
    sim->life++;
    sim_step(&sim->system, 0);
    uint64_t until_ns = sim->system.now_ns + 10000000; /* what was answered is heard */
    while (sim_step(&sim->system, until_ns))
        ;
    sim_clients_cut(sim);
    for (uint32_t i = 0; i < sim->peers; i++)
        sim->peer[i].attached = sim->peer[i].held = false;
    if (sim->log.used) {
        sim_log_stop(&sim->log);
        sim_log_durable(&sim->log, sim->disk.durable);
    }
    compare_image(sim);
    sim->quiet = quiet;
    sim->remains = sim_any_doubtful(sim) ? SIM_DOUBTED : SIM_STOPPED;
    sim->met.stops++;
}

static void quiet_end(struct sim *sim)
{
    be_quiet(sim);
    sim_until(sim, sim_clients_idle, ANSWER_MS, "all is answered");
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        if (sim->client[i].fd < 0)
            sim_client_connect(&sim->client[i]);
    sim_load_read_all(sim);
    sim_client_ask(&sim->client[0], NBD_CMD_FLUSH, 0, 0, 0);
    sim_until(sim, sim_clients_idle, ANSWER_MS, "a FLUSH is answered");
    sim_until(sim, sim_all_durable, ANSWER_MS, "all is on the backup");
    stop(sim);
}

/* A life until its end, which is drawn; the last one ends in quiet. */
static void live(struct sim *sim, bool last)
{
    bool kill = !last && (sim_has(sim, SIM_KILLS) || sim_has(sim, SIM_POWER_CUTS)) && !chance_in(&sim->chance, 4);
    bool cut = sim_has(sim, SIM_POWER_CUTS) && (!sim_has(sim, SIM_KILLS) || chance_in(&sim->chance, 2));
    bool early = !last && sim_has(sim, SIM_STOPS_EARLY) && chance_in(&sim->chance, 3);
    bool killed_recovery = sim_has(sim, SIM_KILLS_RECOVERY) && chance_in(&sim->chance, 3);
    uint64_t operations = 20 + chance_below(&sim->chance, 150), points = 1 + chance_below(&sim->chance, 1u << (6 + chance_below(&sim->chance, 9)));
    sim->quiet = false;
    draw_manners(sim);
    if (setjmp(sim->system.killed)) {
        sim_kill(sim);
        if (cut) {
            sim_trace(sim, "the power fails");
            sim_disk_power_cut(&sim->disk);
            if (sim->log.used)
                sim_log_power_cut(&sim->log);
            sim_state_power_cut(sim);
            oracle_power_cut(&sim->oracle);
            sim->remains = SIM_CUT;
            sim->met.cuts++;
        }
        return;
    }
    sim->system.kill_in = kill && killed_recovery ? points : 0;
    sim_start(sim);
    sim->life_operations = sim->operations + (early ? 0 : operations);
    if (sim->life_operations > sim->options.operations_max)
        sim->life_operations = sim->options.operations_max;
    sim_load_start(sim);
    sim->system.kill_in = kill ? points : 0;
    sim_until(sim, life_over, 600000, "clients come to their end");
    if (kill && !chance_in(&sim->chance, 3))
        longjmp(sim->system.killed, 1);
    if (last)
        quiet_end(sim);
    else
        stop(sim);
}

void sim_end(struct sim *sim)
{
    free(sim->config.state);
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        free(sim->client[i].outgoing.data);
        free(sim->client[i].incoming.data);
    }
}

void sim_run(struct sim *sim, const struct sim_options *options)
{
    open_world(sim, options);
    uint64_t lives = 1 + chance_below(&sim->chance, 4);
    for (uint64_t i = 0; i < lives; i++)
        live(sim, i + 1 == lives);
    close_world(sim);
}
