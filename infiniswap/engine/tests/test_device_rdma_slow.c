/* Proves that what an RDMA peer does not answer in time goes another way, without its buffers. */
#include "rdma_bench.h"

enum { DEADLINE_MS = 200, LATE_US = 1500 * 1000 };

/* The port may read and write our buffers until it says that it is done: the software port fails the test if one is used
 * for something else before. */
TEST_ON_BOTH(buffers_stay_with_the_port)
{
    struct rdma_bench *r = rdma_bench_prepare();
    r->rig.config.request_deadline_ms = DEADLINE_MS;
    rdma_bench_start(r);
    rdma_open(&r->rig, 0);
    rdma_bench_attach(r, 0);
    static uint8_t out[64 * BENCH_PAGE], in[64 * BENCH_PAGE];
    memset(out, 1, sizeof out);
    CHECK_EQUAL(client_call(&r->client, NBD_CMD_WRITE, 0, 0, sizeof out, out, NULL), 0);
    rig_await_backup(&r->rig);
    atomic_store(&r->manners->delay_us_max, LATE_US);
    atomic_store(&r->manners->delay_us_min, LATE_US);
    CHECK_EQUAL(client_call(&r->client, NBD_CMD_READ, 0, 0, sizeof in, NULL, in), 0);
    CHECK(memcmp(in, out, sizeof in) == 0);
    memset(out, 2, sizeof out);
    CHECK_EQUAL(client_call(&r->client, NBD_CMD_WRITE, 0, 0, sizeof out, out, NULL), 0);
    atomic_store(&r->manners->delay_us_min, 0);
    atomic_store(&r->manners->delay_us_max, 0);
    CHECK(rig_counter(&r->rig, ISW_DEVICE_overdue_page_ins) && rig_counter(&r->rig, ISW_DEVICE_overdue_page_outs));
    for (uint32_t i = 0; i < 100; i++) {
        CHECK_EQUAL(client_call(&r->client, NBD_CMD_WRITE, 0, 0, sizeof out, out, NULL), 0);
        CHECK_EQUAL(client_call(&r->client, NBD_CMD_READ, 0, 0, sizeof in, NULL, in), 0);
        CHECK(memcmp(in, out, sizeof in) == 0);
    }
    WAIT_UNTIL(rig_slab(&r->rig, 0).remote_pages == 64);
    CHECK_EQUAL(client_call(&r->client, NBD_CMD_READ, 0, 0, sizeof in, NULL, in), 0);
    CHECK(memcmp(in, out, sizeof in) == 0);
    CHECK(!rig_counter(&r->rig, ISW_DEVICE_checksum_mismatches) && !rig_counter(&r->rig, ISW_DEVICE_peers_lost));
    rdma_bench_close(r);
}
