/* Proves with the model that data stays right over RDMA whatever its ports and donors do: overlapping requests of several
 * clients while requests fail, hang, come late, are flushed or corrupted, keys are withdrawn, slabs move, queue pairs break, the RDMA
 * device goes and comes back, and a donor over TCP dies and comes back beside them. */
#include "fake_verbs.h"
#include "load.h"

#include <errno.h>

enum { SIZE = (2 << 20) + (300 << 10), SLABS = 3, DONORS = 3, TCP = DONORS };

struct world {
    struct rig rig;
    struct load load;
    struct fake_verbs *verbs;
    struct rdma_donor *donor[DONORS];
    struct donor tcp;
    bool attached[DONORS + 1], ready[DONORS + 1];
    bool open;
    struct chance chance;
    uint64_t lost, mismatches, closings, device_losses, moves;
};

static void take_news(struct world *w)
{
    struct isw_event events[64];
    int count = isw_device_events(w->rig.device, events, 64);
    for (int i = 0; i < count; i++) {
        const struct isw_event *e = &events[i];
        CHECK(e->kind != ISW_EVENT_SLAB_LOST && e->kind != ISW_EVENT_OVERFLOW);
        if (e->kind == ISW_EVENT_PEER_LOST) {
            CHECK(w->attached[e->peer]); /* once */
            w->attached[e->peer] = w->ready[e->peer] = false;
            w->lost++;
        }
        if (e->kind == ISW_EVENT_PEER_READY) {
            CHECK(w->attached[e->peer] && !w->ready[e->peer]);
            w->ready[e->peer] = true;
        }
        if (e->kind == ISW_EVENT_RDMA_LOST) {
            w->open = false;
            w->device_losses++;
        }
        w->mismatches += e->kind == ISW_EVENT_MISMATCH;
        if (e->kind == ISW_EVENT_SLAB_MOVED) {
            int result = isw_device_slab_settle(w->rig.device, e->slab);
            CHECK(result == 0 || result == -EINVAL);
            w->moves += !result && e->value;
        }
    }
}

static uint32_t rarely(struct chance *c, uint32_t one_in)
{
    return chance_in(c, 5) ? one_in : 0;
}

static void be_good(struct rdma_manners *m)
{
    atomic_store(&m->hang, 0);
    atomic_store(&m->mute, false);
    atomic_store(&m->delay_us_max, 0);
    atomic_store(&m->fail_one_in, 0);
}

static void change_manners(struct world *w)
{
    static const enum ibv_wc_status statuses[] = {
        IBV_WC_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_REM_OP_ERR, IBV_WC_LOC_QP_OP_ERR, IBV_WC_RNR_RETRY_EXC_ERR};
    struct chance *c = &w->chance;
    struct rdma_manners *m = rdma_donor_manners(w->donor[chance_below(c, DONORS)]);
    struct fake_faults *f = fake_verbs_faults(w->verbs);
    atomic_store(&m->delay_us_max, chance_in(c, 2) ? (uint32_t)chance_below(c, 5000) : 0);
    atomic_store(&m->status, statuses[chance_below(c, 5)]);
    atomic_store(&m->fail_one_in, rarely(c, 60));
    atomic_store(&m->corrupt_read_one_in, rarely(c, 5));
    atomic_store(&m->corrupt_write_one_in, rarely(c, 5));
    atomic_store(&m->hang, chance_in(c, 16) ? 1 + (uint32_t)chance_below(c, 3) : 0);
    atomic_store(&m->mute, chance_in(c, 24));
    atomic_store(&f->late_completions, chance_in(c, 2));
    atomic_store(&f->notify_late, chance_in(c, 8));
    atomic_store(&f->post_error, chance_in(c, 30) ? ENOMEM : 0);
    atomic_store(&f->poll_fails, chance_in(c, 50));
}

static void open_again(struct world *w)
{
    struct isw_rdma_port port;
    char error[256];
    int result = isw_device_rdma_close(w->rig.device);
    CHECK(result == 0 || result == -ENODEV);
    w->closings += result == 0;
    take_news(w);
    for (uint32_t i = 0; i < DONORS; i++)
        CHECK(!w->attached[i]);
    fake_verbs_expect_nothing(w->verbs);
    CHECK_EQUAL(isw_device_rdma_open(w->rig.device, "fake0", 1, (uint32_t)chance_below(&w->chance, 3) * 500, &port, error,
                                     sizeof error), 0);
    w->open = true;
}

/* A peer that its news have not been heard of yet may be lost: then the device says so. */
static void attach(struct world *w, uint32_t peer)
{
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    CHECK_EQUAL(isw_device_rdma_prepare(w->rig.device, peer, numbers), 0);
    struct isw_rdma_path path = rdma_donor_path(w->donor[peer], numbers);
    CHECK_EQUAL(isw_device_rdma_connect(w->rig.device, peer, &path), 0);
    int result = isw_device_peer_attach_rdma(w->rig.device, peer);
    CHECK(result == 0 || result == -ENODEV || result == -ENOMEM);
    w->attached[peer] = result == 0;
    if (result)
        take_news(w);
}

static void break_something(struct world *w)
{
    struct chance *c = &w->chance;
    struct rdma_donor *donor = w->donor[chance_below(c, DONORS)];
    uint32_t number = rdma_donor_queue_pair(donor, (uint32_t)chance_below(c, 2)), peer = (uint32_t)chance_below(c, DONORS);
    switch (chance_below(c, 12)) {
    case 0:
        rdma_donor_kill(donor);
        break;
    case 1:
        rdma_donor_drop(donor);
        break;
    case 2:
        rdma_donor_revoke(donor, (uint32_t)chance_below(c, SLABS));
        break;
    case 3:
        if (w->attached[TCP])
            donor_kill(&w->tcp);
        break;
    case 4:
        w->open = w->open && !chance_in(c, 4);
        break;
    case 5:
        fake_verbs_event(w->verbs, chance_in(c, 3) ? IBV_EVENT_DEVICE_FATAL : IBV_EVENT_PORT_ERR, 1);
        break;
    case 6:
        take_news(w);
        if (w->attached[peer] && isw_device_peer_detach(w->rig.device, peer) == 0) {
            take_news(w); /* it may have become ready before */
            w->attached[peer] = w->ready[peer] = false;
        }
        break;
    case 7:
        fake_verbs_event(w->verbs, IBV_EVENT_QP_FATAL, number);
        break;
    default:
        break;
    }
}

static void change_mapping(struct world *w)
{
    uint32_t slab = (uint32_t)chance_below(&w->chance, SLABS), peer = (uint32_t)chance_below(&w->chance, DONORS + 1);
    take_news(w);
    if (!w->open)
        open_again(w);
    if (!w->attached[peer] && peer == TCP) {
        donor_attach(&w->tcp, &w->rig, TCP);
        w->attached[TCP] = true;
    } else if (!w->attached[peer]) {
        attach(w, peer);
    }
    uint32_t limit_ms = (uint32_t)chance_below(&w->chance, 100);
    if (chance_in(&w->chance, 5))
        isw_device_slab_unmap(w->rig.device, slab);
    else if (chance_in(&w->chance, 3) && peer == TCP)
        isw_device_slab_move(w->rig.device, slab, peer, limit_ms);
    else if (chance_in(&w->chance, 3))
        rdma_donor_move(w->donor[peer % DONORS], &w->rig, slab, peer % DONORS, limit_ms);
    else if (peer == TCP)
        isw_device_slab_map(w->rig.device, slab, peer, 0);
    else
        rdma_donor_map(w->donor[peer], &w->rig, slab, peer);
}

static void run(void)
{
    static struct world world;
    static uint8_t image[SIZE];
    struct world *w = &world;
    w->chance = chance_start(400);
    w->verbs = fake_verbs_open(401);
    *fake_verbs_limits(w->verbs) = (struct fake_limits){
        .max_sge = 5, .max_sge_rd = 7, .max_qp_wr = 40, .max_cqe = 1 << 12, .reads_max = 16, .inline_bytes = 512};
    rig_prepare(&w->rig, SIZE);
    rig_crowd(&w->rig);
    w->rig.config.peer_timeout_ms = 150;
    w->rig.config.request_deadline_ms = 50;
    w->rig.config.hedge_floor_us = 1000;
    w->rig.config.pending_limit_bytes = 2 << 20;
    rig_start(&w->rig);
    for (uint32_t i = 0; i < DONORS; i++)
        w->donor[i] = rdma_donor_open(w->verbs, SIZE, w->rig.config.slab_bytes, 402 + i);
    donor_open(&w->tcp, SIZE, w->rig.config.slab_bytes);
    load_open(&w->load, &w->rig, NULL, 410);
    uint64_t steps = scaled(w->rig.log ? 900 : 1500); /* to be quick: more of them, ISW_TEST_SCALE */
    for (uint64_t step = 0; step < steps; step++) {
        load_step(&w->load);
        if (chance_in(&w->chance, 3))
            change_mapping(w);
        if (chance_in(&w->chance, 10))
            change_manners(w);
        if (chance_in(&w->chance, 10))
            break_something(w);
        take_news(w);
    }
    for (uint32_t i = 0; i < DONORS; i++)
        be_good(rdma_donor_manners(w->donor[i]));
    load_settle(&w->load);
    load_read_all(&w->load);
    load_disconnect(&w->load);
    take_news(w);
    CHECK_EQUAL(rig_counter(&w->rig, ISW_DEVICE_lost_pages), 0);
    CHECK_MET(w->moves && w->lost > 20 && w->mismatches && w->closings > 2 && w->device_losses);
    CHECK_MET(rig_counter(&w->rig, ISW_DEVICE_rdma_late_completions) && rig_counter(&w->rig, ISW_DEVICE_rdma_sleeps));
    CHECK_MET(rig_counter(&w->rig, ISW_DEVICE_reads_remote_pages) > 1000);
    rig_stop(&w->rig);
    rig_image(&w->rig, image);
    model_check(&w->load.model, image, "the image after a stop");
    load_close(&w->load);
    for (uint32_t i = 0; i < DONORS; i++)
        rdma_donor_close(w->donor[i]);
    donor_close(&w->tcp);
    fake_verbs_close(w->verbs);
    rig_end(&w->rig);
}

TEST_ON_BOTH(bad_ports_against_the_model)
{
    run();
}

/* The same of a device that seals; what it does to its backup is the same. */
TEST(bad_ports_sealed)
{
    setenv("ISW_TEST_SEALED", "1", 1);
    run();
}
