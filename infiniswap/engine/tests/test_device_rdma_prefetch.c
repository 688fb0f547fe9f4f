/* Proves that pages come before they are asked for over RDMA as over TCP, into memory that the port is let into, and are read
 * anew where a write came between. */
#include "rdma_bench.h"

enum { READS = 400, LATE_US = 300 };

static struct rdma_bench *open_bench(void)
{
    struct rdma_bench *r = rdma_bench_prepare();
    r->rig.config.prefetch_floor_us = 20;
    rdma_bench_start(r);
    rdma_open(&r->rig, 0);
    rdma_bench_attach(r, 0);
    for (uint64_t page = 0; page < READS; page += 50)
        write_pages(r, page, 50, 1);
    rig_await_backup(&r->rig);
    atomic_store(&r->manners->delay_us_max, LATE_US);
    atomic_store(&r->manners->delay_us_min, LATE_US);
    return r;
}

static uint64_t count(const struct rdma_bench *r, enum isw_device_counter counter)
{
    return rig_counter(&r->rig, counter);
}

TEST_ON_BOTH(a_sequence_is_here)
{
    struct rdma_bench *r = open_bench();
    for (uint64_t page = 0; page < READS; page++)
        expect_pages(r, page, 1, 1);
    uint64_t hits = count(r, ISW_DEVICE_prefetch_hits);
    if (hits < READS - 40)
        FAIL("%llu of %d reads were here", (unsigned long long)hits, READS);
    CHECK(!count(r, ISW_DEVICE_checksum_mismatches) && !count(r, ISW_DEVICE_peers_lost));
    rdma_bench_close(r);
}

/* Each third page is written when a guess of it is here or on its way. */
TEST_ON_BOTH(what_is_written_meanwhile_is_read_anew)
{
    struct rdma_bench *r = open_bench();
    for (uint64_t page = 0; page < READS; page++) {
        bool now = page > 20 && page % 3 == 0;
        if (now)
            write_pages(r, page, 1, (uint8_t)page);
        expect_pages(r, page, 1, now ? (uint8_t)page : 1);
    }
    CHECK(count(r, ISW_DEVICE_prefetch_hits) > 0);
    CHECK(!count(r, ISW_DEVICE_checksum_mismatches) && !count(r, ISW_DEVICE_peers_lost));
    rdma_bench_close(r);
}

/* A path that breaks takes what was guessed along it, and no page. */
TEST_ON_BOTH(a_path_that_breaks_costs_guesses_alone)
{
    struct rdma_bench *r = open_bench();
    for (uint64_t page = 0; page < 100; page++)
        expect_pages(r, page, 1, 1);
    rdma_donor_drop(r->donor[0]);
    for (uint64_t page = 100; page < READS; page++)
        expect_pages(r, page, 1, 1);
    CHECK(!count(r, ISW_DEVICE_request_errors) && !count(r, ISW_DEVICE_checksum_mismatches));
    rdma_bench_close(r);
}
