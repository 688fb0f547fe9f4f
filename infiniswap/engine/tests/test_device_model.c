/* Proves invariants 1 to 6 and 8 of the design against a model: whatever overlapping reads, writes, trims and flushes of any
 * alignment several connections send, while donors die and come back, also with their memory, slabs are mapped, given up and
 * moved, and the backup delays, reorders and fails, every read returns what the device may hold, and after a stop the image is
 * the device. */
#include "load.h"

#include <errno.h>

enum { SIZE = (2 << 20) + (300 << 10), DONORS = 3 };

struct world {
    struct rig rig;
    struct load load;
    struct fake_disk *disk;
    struct chance chance;
    struct donor donor[DONORS];
    bool attached[DONORS], held[DONORS];
    bool died[DONORS]; /* and its memory with it */
    bool draining[8]; /* slabs, until the news of their release */
    uint32_t target[8], leaving[8]; /* of slabs that move: peer + 1 that is to have it, that had it */
    uint32_t losses, mappings, releases, returns, moves;
    uint64_t guesses; /* that were read */
};

static struct world *explained;

static void explain(void)
{
    struct world *w = explained;
    uint64_t at = model_wrong_at, page = at / ISW_PAGE_BYTES;
    fprintf(stderr, "\npage %llu: meta %08x; ", (unsigned long long)page, w->rig.page[page].meta);
    if (w->rig.device) {
        struct isw_slab_view view = rig_slab(&w->rig, (uint32_t)(at / w->rig.config.slab_bytes));
        fprintf(stderr, "slab: state %u, peer %d, generation %u; ", view.state, view.peer, view.generation);
    }
    fprintf(stderr, "at the donors");
    for (uint32_t i = 0; i < DONORS; i++)
        fprintf(stderr, " %02x%s", w->donor[i].slabs[at], w->attached[i] ? "" : " (not attached)");
    if (w->disk) {
        fake_disk_image(w->disk, w->load.scratch);
        fprintf(stderr, "; on the disk %02x", w->load.scratch[at]);
    }
}

static void world_open(struct world *w, uint32_t backup_engine, bool fake, bool crowded, uint32_t grace_ms)
{
    memset(w, 0, sizeof *w);
    explained = w;
    check_explain = explain;
    w->chance = chance_start(100);
    rig_prepare(&w->rig, SIZE);
    if (crowded)
        rig_crowd(&w->rig);
    w->rig.config.backup_engine = backup_engine;
    w->rig.config.pending_limit_bytes = 2 << 20;
    w->rig.config.peer_grace_ms = grace_ms;
    w->rig.config.prefetch_floor_us = getenv("ISW_TEST_PREFETCH") != NULL;
    if (fake) {
        w->disk = fake_disk_open(&w->rig, 101);
        fake_disk_install(w->disk);
    }
    rig_start(&w->rig);
    load_open(&w->load, &w->rig, w->disk, 102);
    for (uint32_t i = 0; i < DONORS; i++)
        donor_open(&w->donor[i], SIZE, w->rig.config.slab_bytes);
}

static void peer_gone(struct world *w, uint32_t peer)
{
    w->attached[peer] = w->held[peer] = false;
    for (uint32_t slab = 0; slab < w->rig.slabs; slab++) {
        w->target[slab] = w->target[slab] == peer + 1 ? 0 : w->target[slab];
        w->leaving[slab] = w->leaving[slab] == peer + 1 ? 0 : w->leaving[slab];
    }
}

static void moved(struct world *w, const struct isw_event *event)
{
    int result = isw_device_slab_settle(w->rig.device, event->slab);
    CHECK(result == 0 || result == -EINVAL);
    w->moves += !result;
    w->draining[event->slab] = false;
}

static void take_news(struct world *w)
{
    struct isw_event events[64];
    uint32_t peers;
    int count = isw_device_events(w->rig.device, events, 64);
    for (int i = 0; i < count; i++) {
        if (events[i].attachment && events[i].attachment != isw_device_peers(w->rig.device, &peers)[events[i].peer].attachment)
            continue; /* it has died since, and come back */
        if (events[i].kind == ISW_EVENT_PEER_LOST)
            peer_gone(w, events[i].peer);
        if (events[i].kind == ISW_EVENT_PEER_HELD) {
            w->attached[events[i].peer] = false;
            w->held[events[i].peer] = true;
        }
        if (events[i].kind == ISW_EVENT_SLAB_MOVED && w->target[events[i].slab] == events[i].peer + 1) {
            w->target[events[i].slab] = 0;
            moved(w, &events[i]);
        }
        if (events[i].kind == ISW_EVENT_MOVE_FAILED && w->target[events[i].slab] == events[i].peer + 1) {
            w->target[events[i].slab] = w->leaving[events[i].slab] = 0;
            donor_scrub(&w->donor[events[i].peer], events[i].slab);
        }
        if (events[i].kind == ISW_EVENT_SLAB_RELEASED) {
            if (w->leaving[events[i].slab] == events[i].peer + 1)
                w->leaving[events[i].slab] = 0;
            donor_scrub(&w->donor[events[i].peer], events[i].slab); /* nothing refers to it, it may be anybody's now */
            w->draining[events[i].slab] = false;
            w->releases++;
        }
        CHECK(events[i].kind != ISW_EVENT_MISMATCH && events[i].kind != ISW_EVENT_OVERFLOW);
        CHECK(events[i].kind != ISW_EVENT_SLAB_LOST);
    }
}

static void attach(struct world *w, uint32_t peer)
{
    donor_attach(&w->donor[peer], &w->rig, peer);
    w->attached[peer] = true;
    w->died[peer] = false;
}

/* A donor that lost its memory has no lease any more, and is not resumed. */
static void come_back(struct world *w, uint32_t peer)
{
    int result = -ENOENT;
    if (!w->died[peer]) {
        donor_attach(&w->donor[peer], &w->rig, peer);
        result = isw_device_peer_resume(w->rig.device, peer);
        CHECK(result == 0 || result == -ENOTCONN); /* its time was over, or it broke again */
    }
    w->held[peer] = result == -ENOTCONN && !w->died[peer];
    w->attached[peer] = !result;
    w->returns += !result;
    if (!result)
        return;
    int ended = isw_device_peer_detach(w->rig.device, peer);
    CHECK(ended == 0 || ended == -ENOTCONN);
    take_news(w); /* a release that this has ended */
    peer_gone(w, peer);
    donor_kill(&w->donor[peer]);
}

static void move(struct world *w, uint32_t slab, uint32_t peer)
{
    struct isw_slab_view view = rig_slab(&w->rig, slab);
    if (w->target[slab] || w->leaving[slab] || !w->attached[peer] || view.state == ISW_SLAB_UNMAPPED)
        return;
    int result = isw_device_slab_move(w->rig.device, slab, peer, (uint32_t)chance_below(&w->chance, 100));
    CHECK(result == 0 || result == -ENOTCONN || result == -EINVAL || result == -EBUSY || result == -EAGAIN);
    if (result)
        return;
    w->target[slab] = peer + 1;
    w->leaving[slab] = (uint32_t)view.peer + 1;
}

static void change_mapping(struct world *w)
{
    struct chance *c = &w->chance;
    uint32_t slab = (uint32_t)chance_below(c, w->rig.slabs), peer = (uint32_t)chance_below(c, DONORS);
    int result;
    for (uint32_t i = 0; !w->held[peer] && i < DONORS && chance_in(c, 2); i++) /* rare, and soon over */
        peer = w->held[i] ? i : peer;
    switch (chance_below(c, 24)) {
    case 0: /* dies, or is started anew and keeps its memory */
        if (!w->attached[peer])
            return;
        if (chance_in(c, 2)) {
            donor_restart(&w->donor[peer]);
            return;
        }
        w->died[peer] = true;
        donor_kill(&w->donor[peer]);
        w->losses++;
        return;
    case 1: /* is let go */
        if (!w->attached[peer])
            return;
        result = isw_device_peer_detach(w->rig.device, peer);
        CHECK(result == 0 || result == -ENOTCONN);
        take_news(w); /* a release that the detaching has ended */
        peer_gone(w, peer);
        donor_kill(&w->donor[peer]);
        return;
    case 2:
    case 3:
    case 4:
        if (w->held[peer])
            come_back(w, peer);
        else if (!w->attached[peer])
            attach(w, peer);
        return;
    case 5:
    case 6:
    case 7:
    case 8:
    case 9:
        result = isw_device_slab_unmap(w->rig.device, slab);
        CHECK(result == 0 || result == -EINVAL || result == -EBUSY || result == -EAGAIN);
        w->draining[slab] = w->draining[slab] || !result;
        return;
    case 10:
    case 11:
    case 12:
    case 13:
        move(w, slab, peer);
        return;
    default:
        if (w->draining[slab] || w->target[slab] || w->leaving[slab] == peer + 1)
            return;
        result = isw_device_slab_map(w->rig.device, slab, peer, 0);
        CHECK(result == 0 || result == -EBUSY || result == -ENOTCONN);
        w->mappings += result == 0;
    }
}

static void change_disk(struct world *w, bool errors)
{
    static const uint32_t delays_us[] = {0, 100, 1000, 8000};
    struct fake_manners *m = fake_disk_manners(w->disk);
    struct chance *c = &w->chance;
    atomic_store(&m->delay_us_max, delays_us[chance_below(c, 4)]);
    atomic_store(&m->hold_writes, chance_in(c, 6));
    atomic_store(&m->hold_syncs, chance_in(c, 6));
    if (errors) {
        atomic_store(&m->write_error_one_in, chance_in(c, 3) ? 12 : 0);
        atomic_store(&m->sync_error_one_in, chance_in(c, 3) ? 4 : 0);
        atomic_store(&m->read_error_one_in, chance_in(c, 4) ? 12 : 0);
    }
}

static void be_good(struct world *w)
{
    struct fake_manners *m = fake_disk_manners(w->disk);
    atomic_store(&m->delay_us_max, 0);
    atomic_store(&m->hold_writes, false);
    atomic_store(&m->hold_syncs, false);
    atomic_store(&m->write_error_one_in, 0);
    atomic_store(&m->sync_error_one_in, 0);
    atomic_store(&m->read_error_one_in, 0);
}

static void check_ends(struct world *w)
{
    static uint8_t image[SIZE];
    if (w->disk)
        be_good(w);
    load_settle(&w->load);
    load_read_all(&w->load);
    load_disconnect(&w->load);
    rig_stop(&w->rig);
    if (w->disk)
        fake_disk_image(w->disk, image);
    else
        rig_image(&w->rig, image);
    model_check(&w->load.model, image, "the image after a stop");
    if (w->disk) {
        fake_disk_durable(w->disk, image);
        model_check(&w->load.model, image, "what is durable after a stop");
    }
    for (uint32_t page = 0; page < SIZE / ISW_PAGE_BYTES; page++)
        /* doubtful: an fdatasync has failed, and nobody wrote the page again */
        CHECK(!(w->rig.page[page].meta & ~(uint32_t)(ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL)) ||
              (w->load.errors_allowed && w->load.lost_pages && (w->rig.page[page].meta & ISW_PAGE_LOST)));
}

/* A new device on the image and the state of the last one. */
static void check_restart(struct world *w)
{
    if (w->disk)
        fake_disk_install(w->disk);
    for (uint32_t page = 0; page < SIZE / ISW_PAGE_BYTES; page++)
        w->rig.page[page].meta &= ~(uint32_t)ISW_PAGE_REMOTE; /* leases were given back */
    rig_start(&w->rig);
    load_read_all(&w->load);
    load_disconnect(&w->load);
    rig_stop(&w->rig);
}

static void world_close(struct world *w)
{
    load_close(&w->load);
    for (uint32_t i = 0; i < DONORS; i++)
        donor_close(&w->donor[i]);
    if (w->disk)
        fake_disk_close(w->disk);
    rig_end(&w->rig);
}

/* What the test is about has happened. */
static bool met(const struct world *w)
{
    const struct load *load = &w->load;
    return load->reads && load->writes && load->flushes && w->losses && w->mappings && w->releases && w->returns && w->moves &&
           (!load->errors_allowed || load->errors) && (!load->along || w->guesses);
}

static void run(uint32_t backup_engine, bool fake, bool errors, uint64_t steps)
{
    struct world w;
    world_open(&w, backup_engine, fake, true, 2000); /* some come back in time, however busy the machine is */
    steps = scaled(w.rig.log ? steps / 2 : steps); /* to be quick: more of them, ISW_TEST_SCALE */
    w.load.errors_allowed = w.load.ends_allowed = errors; /* a long simple reply cannot be taken back */
    /* How soon depends on the machine: on most at once, on a busy one after some thousand. */
    for (uint64_t step = 0; step < steps || (!met(&w) && step < 40 * steps); step++) {
        load_step(&w.load);
        take_news(&w);
        w.guesses = rig_counter(&w.rig, ISW_DEVICE_prefetch_hits);
        if (chance_in(&w.chance, 3))
            change_mapping(&w);
        if (fake && chance_in(&w.chance, 24))
            change_disk(&w, errors);
        if (chance_in(&w.chance, 200)) {
            if (fake)
                be_good(&w);
            load_settle(&w.load);
            load_read_all(&w.load);
        }
    }
    check_ends(&w);
    check_restart(&w);
    if (!met(&w))
        fprintf(stderr, "\nlosses %u, mappings %u, releases %u, returns %u, moves %u, errors %llu", w.losses, w.mappings,
                w.releases, w.returns, w.moves, (unsigned long long)w.load.errors);
    CHECK_MET(met(&w));
    world_close(&w);
}

TEST_ON_BOTH(donors_die_uring)
{
    run(0, false, false, 700);
}

TEST_ON_BOTH(donors_die_threads)
{
    run(ISW_BACKUP_THREADS, false, false, 500);
}

/* What seals, and what it seals for, has nothing to do with the backup. */
TEST(donors_die_sealed)
{
    setenv("ISW_TEST_SEALED", "1", 1);
    run(0, false, false, 500);
}

/* Pages are read before they are asked for, from donors and from the backup, while all that happens to them. */
TEST_ON_BOTH(guesses)
{
    setenv("ISW_TEST_PREFETCH", "1", 1);
    run(0, false, false, 400);
    run(0, true, true, 300);
}

TEST_ON_BOTH(slow_backup)
{
    run(0, true, false, 500);
}

TEST_ON_BOTH(failing_backup)
{
    run(0, true, true, 400);
}

static void some_steps(struct world *w, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i++) {
        load_step(&w->load);
        take_news(w);
    }
}

static bool all_gone(const struct world *w)
{
    for (uint32_t i = 0; i < DONORS; i++)
        if (w->attached[i] || w->held[i])
            return false;
    return true;
}

/* An fdatasync fails while those who hold the other copies may come back yet, and then they do not. */
static void lose_both(struct world *w)
{
    struct fake_manners *m = fake_disk_manners(w->disk);
    for (uint32_t i = 0; i < DONORS; i++)
        if (!w->attached[i] && !w->held[i])
            attach(w, i);
    for (uint32_t slab = 0; slab < w->rig.slabs; slab++)
        isw_device_slab_map(w->rig.device, slab, slab % DONORS, 0);
    some_steps(w, 60);
    atomic_store(&m->sync_error_one_in, 1);
    atomic_store(&m->hold_syncs, true);
    some_steps(w, 40);
    for (uint32_t i = 0; i < DONORS; i++)
        if (w->attached[i]) {
            w->died[i] = true;
            donor_kill(&w->donor[i]);
        }
    some_steps(w, 20);
    atomic_store(&m->hold_syncs, false);
    while (!all_gone(w))
        some_steps(w, 1);
    be_good(w);
    load_settle(&w->load);
    load_read_all(&w->load);
}

/* Two losses at once cost pages: those are said to be lost, and no others read as anything but what they hold. */
TEST_ON_BOTH(two_losses)
{
    struct world w;
    world_open(&w, 0, true, false, 300);
    w.load.errors_allowed = w.load.ends_allowed = true;
    for (uint32_t round = 0; !w.load.lost_pages && round < 60; round++)
        lose_both(&w);
    check_ends(&w);
    check_restart(&w);
    CHECK_MET(w.load.lost_pages);
    world_close(&w);
}
