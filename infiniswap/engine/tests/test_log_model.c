/* Proves what a log promises over whole lives, from seeds: whatever is asked of it, in whatever order and with whatever errors the
 * disk answers, and wherever its process is killed or the power fails (in a checkpoint, while it cleans, while it is opened), each
 * page is a version that it may be (support/log_oracle.h), and it goes on from there.
 *
 * ISW_LOG_SEEDS, ISW_LOG_FIRST: how many seeds, from which on; ISW_LOG_WITHOUT: troubles (1 << enum) that are left out. */
#include "log_rig.h"

#include "log_format.h"

#include <errno.h>

enum { MIB_PAGES = 256 };

enum trouble {
    SUPERBLOCK_ROTS, READS_FAIL, WRITES_FAIL, DISK_FULL, SYNCS_FAIL, SYNCS_DROP, LATE, KILLS, POWER_CUTS, DEATHS_IN_START, STOPS, IN_ORDER, FULL_DEVICE,
    TROUBLES
};

static struct log_rig rig;
static struct {
    uint64_t lives, kills, cuts, start_deaths, requests, errors, sync_errors, reads_failed, torn, bad, replayed, stops, rots, refused,
        lent, lent_newer, corrupted;
} met;

struct world {
    struct chance chance;
    uint32_t troubles;
    bool cut; /* the power has failed since a start went well */
};

static uint64_t given(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static bool has(const struct world *w, enum trouble trouble)
{
    return w->troubles >> trouble & 1;
}

static uint32_t rate(struct world *w, enum trouble trouble, uint32_t least)
{
    uint32_t one_in = least << chance_below(&w->chance, 5);
    return has(w, trouble) ? one_in : 0;
}

static void be_quiet(void)
{
    rig.disk.manners = (struct log_disk_manners){.pieces_one_in = 8};
}

static void draw_manners(struct world *w)
{
    be_quiet();
    struct log_disk_manners *m = &rig.disk.manners;
    m->read_error_one_in = rate(w, READS_FAIL, 20);
    m->write_error_one_in = rate(w, WRITES_FAIL, 10);
    m->error = has(w, DISK_FULL) ? 28 /* ENOSPC */ : 5 /* EIO */;
    m->sync_error_one_in = rate(w, SYNCS_FAIL, 2);
    m->drop_one_in = rate(w, SYNCS_DROP, 1);
    m->late_one_in = rate(w, LATE, 2);
    m->in_order = has(w, IN_ORDER);
}

static struct log_rig_load draw_load(struct world *w)
{
    struct chance *c = &w->chance;
    struct log_rig_load load = {.reads = (uint32_t)chance_below(c, 40), .zeroes = (uint32_t)chance_below(c, 12)};
    load.syncs = (uint32_t)chance_below(c, chance_in(c, 2) ? 3 : 20);
    load.states = (uint32_t)chance_below(c, 3);
    load.depth = 1 + (uint32_t)chance_below(c, LOG_RIG_SLOTS);
    load.pages_max = 1u << chance_below(c, 9);
    if (chance_in(c, 2)) {
        load.hot_first = chance_below(c, rig.oracle.pages);
        load.hot_pages = 1 + chance_below(c, rig.oracle.pages - load.hot_first);
    }
    if (has(w, FULL_DEVICE))
        load.zeroes = 0;
    return load;
}

/* What a tool sees, without changing anything, is what counts from then on. */
static void look_without_writing(struct world *w, uint32_t flags)
{
    char error[256] = "";
    uint64_t writes = rig.disk.writes, syncs = rig.disk.syncs;
    uint8_t data[4 * ISW_PAGE_BYTES] __attribute__((aligned(4096)));
    isw_log *log = isw_log_open(rig.disk.fd, flags | ISW_LOG_READ_ONLY, error, sizeof error);
    if (!log)
        FAIL("the log cannot be opened to be read: %s", error);
    for (int i = 0; i < 20; i++) {
        uint64_t page = chance_below(&w->chance, rig.oracle.pages - 4);
        int result = isw_log_read(log, data, page * ISW_PAGE_BYTES, ISW_PAGE_BYTES);
        log_oracle_read(&rig.oracle, page, result ? NULL : data, false, "a read by a tool");
    }
    isw_log_close(log);
    CHECK(rig.disk.writes == writes && rig.disk.syncs == syncs);
}

static bool is_durable(uint64_t block)
{
    return !memcmp(rig.disk.image + block * ISW_PAGE_BYTES, rig.disk.durable + block * ISW_PAGE_BYTES, ISW_PAGE_BYTES);
}

/* A superblock rots, and not the one that is left while a power cut would take the other.  Where that log is not used, it never has: a
 * tool would be called for. */
static void rot(struct world *w, uint32_t flags)
{
    uint64_t block = chance_below(&w->chance, LOG_SUPERBLOCKS);
    uint32_t byte = (uint32_t)chance_below(&w->chance, 100);
    if (!is_durable(LOG_SUPERBLOCKS - 1 - block))
        return;
    log_disk_rot(&rig.disk, block, byte);
    isw_log *log = isw_log_open(rig.disk.fd, flags | ISW_LOG_READ_ONLY, (char[128]){0}, 128);
    met.rots++;
    if (log) {
        isw_log_close(log);
        return;
    }
    CHECK(errno == EUCLEAN || errno == EBADMSG || errno == EMEDIUMTYPE);
    met.refused += errno == EUCLEAN;
    log_disk_rot(&rig.disk, block, byte);
}

/* Until a start goes well; after it each page is looked at. */
static void start(struct world *w)
{
    for (bool again = true;; again = chance_in(&w->chance, 2)) {
        uint32_t flags = w->cut || chance_in(&w->chance, 4) ? 0 : ISW_LOG_SAME_BOOT;
        be_quiet();
        rig.disk.dead = false;
        if (has(w, SUPERBLOCK_ROTS) && chance_in(&w->chance, 2))
            rot(w, flags);
        if (chance_in(&w->chance, 4))
            look_without_writing(w, flags);
        rig.disk.kill_in = again && has(w, DEATHS_IN_START) ? chance_below(&w->chance, 1u << chance_below(&w->chance, 7)) : 0;
        if (log_rig_start(&rig, flags))
            break;
        met.start_deaths++;
        log_rig_kill(&rig);
        if (has(w, POWER_CUTS) && chance_in(&w->chance, 2)) {
            log_rig_power_cut(&rig);
            w->cut = true;
        }
    }
    struct isw_log_info info;
    isw_log_info(rig.log, &info);
    met.torn += info.torn_pages;
    met.bad += info.bad_pages;
    met.replayed += info.replayed_chunks;
    rig.disk.kill_in = 0;
    w->cut = false;
    log_rig_read_all(&rig);
    log_rig_check_extents(&rig);
}

static void fill(void)
{
    for (uint64_t page = 0; page < rig.oracle.pages; page += LOG_RIG_WRITE_PAGES) {
        uint64_t left = rig.oracle.pages - page;
        log_rig_do(&rig, BACKUP_WRITE, page, left < LOG_RIG_WRITE_PAGES ? left : LOG_RIG_WRITE_PAGES);
    }
}

/* Ends with a process dead, or stopped. */
static void live(struct world *w)
{
    bool stops = has(w, STOPS) && chance_in(&w->chance, 2), dies = has(w, KILLS) || has(w, POWER_CUTS);
    if (has(w, FULL_DEVICE) && chance_in(&w->chance, 2))
        fill();
    draw_manners(w);
    rig.disk.kill_in = dies && !stops ? 1 + chance_below(&w->chance, 1u << chance_below(&w->chance, 15)) : 0;
    for (uint64_t phases = 1 + chance_below(&w->chance, 3); phases && !rig.disk.dead; phases--) {
        struct log_rig_load load = draw_load(w);
        log_rig_run(&rig, &load, 1 + chance_below(&w->chance, 1u << chance_below(&w->chance, 12)));
    }
    met.lives++;
    if (stops && !rig.disk.dead) {
        rig.disk.kill_in = 0;
        log_rig_settle(&rig);
        rig.disk.kill_in = has(w, KILLS) && chance_in(&w->chance, 3) ? 1 + chance_below(&w->chance, 4) : 0; /* over what signs it */
        log_rig_stop(&rig);
        if (rig.disk.dead)
            log_disk_kill(&rig.disk);
        rig.disk.kill_in = 0;
        met.stops++;
        log_oracle_killed(&rig.oracle); /* nothing was out, so it reads the same; but nobody hears of errors any more */
        return;
    }
    log_rig_kill(&rig);
    met.kills++;
    if (has(w, POWER_CUTS) && (!has(w, KILLS) || chance_in(&w->chance, 2))) {
        log_rig_power_cut(&rig);
        w->cut = true;
        met.cuts++;
    }
}

/* All goes well again: what is asked is done, and what is synced is there. */
static void end_well(struct world *w)
{
    struct log_rig_load load = draw_load(w);
    be_quiet();
    rig.disk.now_ns += 2000000000;
    log_rig_run(&rig, &load, 200);
    log_rig_settle(&rig);
    log_rig_do(&rig, BACKUP_SYNC, 0, 0); /* may tell of an error that was */
    rig.disk.now_ns += 2000000000;
    for (uint64_t page = 0; page < rig.oracle.pages; page++) /* as the device does then */
        if (log_oracle_placed(&rig.oracle, page) < 0)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_read_all(&rig);
    log_rig_check_extents(&rig);
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    for (uint64_t page = 0; page < rig.oracle.pages; page++)
        CHECK(rig.oracle.page[page].count == 1);
    w->cut = true;
    start(w);
    rig.disk.kill_in = 0;
    log_rig_stop(&rig);
}

static void run_seed(uint64_t seed)
{
    struct world w = {.chance = {seed * 0x2545f4914f6cdd1dull}};
    check_seed(seed);
    chance_next(&w.chance);
    for (uint32_t i = 0; i < TROUBLES; i++)
        w.troubles |= (uint32_t)chance_in(&w.chance, 3) << i;
    w.troubles |= chance_in(&w.chance, 2) ? 1u << KILLS : 1u << POWER_CUTS;
    w.troubles &= ~(uint32_t)given("ISW_LOG_WITHOUT", 0);
    uint64_t pages = (1ull << chance_below(&w.chance, 5)) * MIB_PAGES + (chance_in(&w.chance, 2) ? chance_below(&w.chance, 300) : 0);
    log_rig_open(&rig, pages * ISW_PAGE_BYTES, (struct chance){chance_next(&w.chance)});
    rig.lends = seed % 2 ? ISW_BORROW_ALWAYS : 0;
    log_lender_start(&rig);
    for (uint64_t lives = 1 + chance_below(&w.chance, 6); lives; lives--) {
        live(&w);
        start(&w);
    }
    end_well(&w);
    met.requests += rig.requests;
    met.errors += rig.errors;
    met.sync_errors += rig.sync_errors;
    met.reads_failed += rig.oracle.errors;
    met.lent += rig.lent;
    met.lent_newer += rig.lent_newer;
    met.corrupted += rig.corrupted;
    log_rig_close(&rig);
}

#if defined(__SANITIZE_THREAD__)
enum { SEEDS = 3 }; /* there is one thread */
#elif defined(__SANITIZE_ADDRESS__)
enum { SEEDS = 20 };
#else
enum { SEEDS = 150 };
#endif

TEST(lives)
{
    uint64_t seed;
    if (check_seed_given(&seed)) {
        run_seed(seed);
        return;
    }
    uint64_t first = given("ISW_LOG_FIRST", 1), seeds = given("ISW_LOG_SEEDS", scaled(SEEDS));
    for (seed = first; seed < first + seeds; seed++)
        run_seed(seed);
    fprintf(stderr, "%llu seeds: %llu lives, %llu killed, %llu cut off, %llu stopped, %llu dead over a start; %llu requests, %llu failed, "
                    "%llu syncs failed, %llu reads; %llu chunks replayed, %llu pages torn, %llu bad; of %llu superblocks rotten %llu refused; %llu pages lent, %llu newer, %llu wrong\n",
            (unsigned long long)seeds, (unsigned long long)met.lives, (unsigned long long)met.kills, (unsigned long long)met.cuts,
            (unsigned long long)met.stops, (unsigned long long)met.start_deaths, (unsigned long long)met.requests,
            (unsigned long long)met.errors, (unsigned long long)met.sync_errors, (unsigned long long)met.reads_failed,
            (unsigned long long)met.replayed, (unsigned long long)met.torn, (unsigned long long)met.bad,
            (unsigned long long)met.rots, (unsigned long long)met.refused, (unsigned long long)met.lent, (unsigned long long)met.lent_newer, (unsigned long long)met.corrupted);
    if (seeds >= SEEDS)
        CHECK_MET(met.kills && met.cuts && met.stops && met.start_deaths && met.sync_errors && met.errors && met.replayed && met.torn && met.lent && met.lent_newer && met.corrupted);
}
