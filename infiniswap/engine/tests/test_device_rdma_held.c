/* Proves that a donor over RDMA that restarts with its memory costs no copy: it is held, reached over new queue pairs under new
 * keys, and its copies count again. */
#include "rdma_bench.h"

#include <errno.h>

enum { PAGES = 32, GRACE_MS = 60000 };

static struct rdma_bench *open_bench(void)
{
    struct rdma_bench *b = rdma_bench_prepare();
    b->rig.config.peer_grace_ms = GRACE_MS;
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    write_pages(b, 0, PAGES, 1);
    rig_await_backup(&b->rig);
    return b;
}

static void come_back(struct rdma_bench *b)
{
    rdma_donor_attach(b->donor[0], &b->rig, 0);
    for (uint32_t slab = 0; slab < BENCH_SLABS; slab++)
        CHECK_EQUAL(rdma_donor_tell(b->donor[0], &b->rig, slab, 0), 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), 0);
}

static void expect_copies_there(struct rdma_bench *b)
{
    uint64_t before = rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == PAGES);
    expect_pages(b, 0, PAGES / 2, 1);
    expect_pages(b, PAGES / 2, PAGES / 2, 2);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), before + PAGES);
    CHECK(!rig_counter(&b->rig, ISW_DEVICE_peers_lost) && !rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches));
}

/* Its queue pairs break: the engine finds out by itself. */
TEST_ON_BOTH(queue_pairs_that_break)
{
    struct rdma_bench *b = open_bench();
    rdma_donor_restart(b->donor[0]);
    expect_pages(b, 0, PAGES, 1); /* asked there, and then of the backup */
    rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    write_pages(b, PAGES / 2, PAGES / 2, 2);
    CHECK_EQUAL(rdma_donor_tell(b->donor[0], &b->rig, 0, 1), -ENOTCONN);
    come_back(b);
    expect_copies_there(b);
    CHECK_EQUAL(rdma_donor_tell(b->donor[0], &b->rig, 0, 0), -ENOTCONN); /* only while it is held */
    rdma_bench_close(b);
}

/* Nothing is asked while it restarts, so only the control side knows. */
TEST_ON_BOTH(daemon_that_ends_unheard)
{
    struct rdma_bench *b = open_bench();
    rdma_donor_restart(b->donor[0]);
    CHECK_EQUAL(isw_device_peer_hold(b->rig.device, 0), 0);
    expect_pages(b, 0, PAGES, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_backup_pages), PAGES);
    write_pages(b, PAGES / 2, PAGES / 2, 2);
    come_back(b);
    expect_copies_there(b);
    rdma_bench_close(b);
}

/* The trial of its new path fails: who waits for that hears of a loss. */
TEST_ON_BOTH(path_that_carries_nothing)
{
    struct rdma_bench *b = open_bench();
    CHECK_EQUAL(isw_device_peer_hold(b->rig.device, 0), 0);
    rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    atomic_store(&b->manners->hang, 3);
    rdma_donor_begin(b->donor[0], &b->rig, 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN); /* it is not known yet whether the path is good */
    rdma_donor_drop(b->donor[0]);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_LOST).peer, 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN);
    expect_pages(b, 0, PAGES, 1);
    rdma_bench_close(b);
}

/* A key that is withdrawn breaks the queue pairs of all slabs; only the one that is gone is lost. */
TEST_ON_BOTH(slab_taken_by_force_costs_no_other)
{
    struct rdma_bench *b = open_bench();
    isw_device *d = b->rig.device;
    write_pages(b, 256, PAGES, 3);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(isw_device_slab_gone(d, 0, 0), -ENOTCONN); /* it is not held */
    rdma_donor_revoke(b->donor[0], 0);
    expect_pages(b, 0, PAGES, 1); /* asked there, and then of the backup */
    rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    rdma_donor_attach(b->donor[0], &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_gone(d, 0, 1), -ENOTCONN);
    CHECK_EQUAL(isw_device_slab_gone(d, 0, 0), 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_LOST);
    CHECK(event.peer == 0 && event.slab == 0 && event.value == ESHUTDOWN);
    CHECK_EQUAL(isw_device_slab_gone(d, 0, 0), -ENOTCONN);
    for (uint32_t slab = 1; slab < BENCH_SLABS; slab++)
        CHECK_EQUAL(rdma_donor_tell(b->donor[0], &b->rig, slab, 0), 0);
    CHECK_EQUAL(isw_device_peer_resume(d, 0), 0);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_UNMAPPED);
    CHECK_EQUAL(rig_slab(&b->rig, 1).remote_pages, PAGES);
    uint64_t remote = rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 256, PAGES, 3);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), remote + PAGES);
    expect_pages(b, 0, PAGES, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), remote + PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_slabs_lost), 1);
    CHECK(!rig_counter(&b->rig, ISW_DEVICE_peers_lost) && !rig_counter(&b->rig, ISW_DEVICE_lost_pages));
    rdma_bench_close(b);
}
