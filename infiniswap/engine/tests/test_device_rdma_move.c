/* Proves that slabs move over RDMA, and between RDMA and TCP: each place is asked with its own address and key, and a key may
 * be withdrawn once the device has said that it has done with the place; one request too late would break a queue pair. */
#include "rdma_bench.h"

#include <errno.h>
#include <unistd.h>

enum { SLAB_PAGES = 256, TCP = 5 };

static void settle(struct rdma_bench *b, uint32_t from)
{
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    CHECK(event.slab == 0 && event.peer == from);
}

static void expect_remote(struct rdma_bench *b, uint8_t value)
{
    uint64_t remote = rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, SLAB_PAGES, value);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages) - remote, SLAB_PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_peers_lost), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches), 0);
}

TEST_ON_BOTH(each_place_by_its_own_key)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, 1, 0), -EINVAL); /* a region is needed */
    CHECK_EQUAL(rdma_donor_move(b->donor[1], &b->rig, 0, 1, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_MOVED).value, SLAB_PAGES);
    settle(b, 0);
    rdma_donor_revoke(b->donor[0], 0);
    expect_remote(b, 1);
    write_pages(b, 0, SLAB_PAGES, 2);
    rig_await_backup(&b->rig);
    expect_remote(b, 2);
    CHECK_EQUAL(rdma_donor_byte(b->donor[1], 99 * BENCH_PAGE), page_byte(99, 2));
    rdma_bench_close(b);
}

TEST_ON_BOTH(to_tcp_and_back)
{
    static struct donor donor;
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    donor_open(&donor, BENCH_SIZE, b->rig.config.slab_bytes);
    donor_attach(&donor, &b->rig, TCP);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, TCP, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_MOVED).value, SLAB_PAGES);
    settle(b, 0);
    rdma_donor_revoke(b->donor[0], 0);
    expect_remote(b, 1);
    CHECK_EQUAL(rdma_donor_move(b->donor[0], &b->rig, 0, 0, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_MOVED).value, SLAB_PAGES);
    settle(b, TCP);
    donor_scrub(&donor, 0);
    expect_remote(b, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_backup_pages), 0);
    rdma_bench_close(b);
    donor_close(&donor);
}

/* What failed is told only when nothing is under way there any more. */
TEST_ON_BOTH(a_move_called_off_leaves_no_request_behind)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&rdma_donor_manners(b->donor[1])->delay_us_min, 20000);
    atomic_store(&rdma_donor_manners(b->donor[1])->delay_us_max, 30000);
    for (int round = 0; round < 5; round++) {
        uint64_t begun = rig_counter(&b->rig, ISW_DEVICE_moved_pages), until_ns = now_ns() + 10000000000;
        CHECK_EQUAL(rdma_donor_move(b->donor[1], &b->rig, 0, 1, 0), 0);
        while (rig_counter(&b->rig, ISW_DEVICE_moved_pages) == begun && now_ns() < until_ns)
            usleep(1000);
        CHECK_EQUAL(isw_device_slab_move_cancel(b->rig.device, 0), 0);
        CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_MOVE_FAILED).value, ECANCELED);
        rdma_donor_revoke(b->donor[1], 0);
        expect_remote(b, 1);
    }
    rdma_bench_close(b);
}
