#include "rdma_bench.h"

static struct rdma_bench bench;

static void explain(void)
{
    uint32_t count;
    const uint64_t *counters = bench.rig.device ? isw_device_counters(bench.rig.device, &count) : NULL;
    for (uint32_t i = 0; counters && i < count; i++) {
        uint64_t value = __atomic_load_n(&counters[i], __ATOMIC_RELAXED);
        if (value)
            fprintf(stderr, "\n%s %llu", isw_device_counter_name(i), (unsigned long long)value);
    }
}

struct rdma_bench *rdma_bench_prepare(void)
{
    struct rdma_bench *b = &bench;
    memset(b, 0, sizeof *b);
    check_explain = explain;
    b->verbs = fake_verbs_open(300);
    b->faults = fake_verbs_faults(b->verbs);
    b->counts = fake_verbs_counts(b->verbs);
    rig_prepare(&b->rig, BENCH_SIZE);
    return b;
}

void rdma_bench_start(struct rdma_bench *b)
{
    rig_start(&b->rig);
    for (uint32_t i = 0; i < BENCH_DONORS; i++)
        b->donor[i] = rdma_donor_open(b->verbs, BENCH_SIZE, b->rig.config.slab_bytes, 301 + i);
    b->manners = rdma_donor_manners(b->donor[0]);
    rig_connect(&b->rig, &b->client, true);
}

void rdma_bench_attach(struct rdma_bench *b, uint32_t number)
{
    rdma_donor_attach(b->donor[number], &b->rig, number);
    for (uint32_t slab = 0; slab < BENCH_SLABS; slab++)
        CHECK_EQUAL(rdma_donor_map(b->donor[number], &b->rig, slab, number), 0);
}

struct rdma_bench *rdma_bench_open(uint32_t poll_us, uint32_t peer_timeout_ms)
{
    struct rdma_bench *b = rdma_bench_prepare();
    b->rig.config.peer_timeout_ms = peer_timeout_ms;
    rdma_bench_start(b);
    rdma_open(&b->rig, poll_us);
    rdma_bench_attach(b, 0);
    return b;
}

void rdma_bench_close(struct rdma_bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    for (uint32_t i = 0; i < BENCH_DONORS; i++)
        rdma_donor_close(b->donor[i]);
    fake_verbs_close(b->verbs);
    rig_end(&b->rig);
}

static void fill(uint8_t *data, uint64_t page, uint32_t pages, uint8_t value)
{
    for (uint32_t i = 0; i < pages; i++) {
        struct chance c = {(page + i) * 1000003 + value};
        for (uint32_t at = 0; at < BENCH_PAGE; at += 8) {
            uint64_t word = chance_next(&c);
            memcpy(data + i * BENCH_PAGE + at, &word, 8);
        }
    }
}

uint8_t page_byte(uint64_t page, uint8_t value)
{
    uint8_t data[BENCH_PAGE];
    fill(data, page, 1, value);
    return data[0];
}

void write_pages(struct rdma_bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[BENCH_SIZE];
    fill(data, page, pages, value);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * BENCH_PAGE, pages * BENCH_PAGE, data, NULL), 0);
}

void expect_pages(struct rdma_bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[BENCH_SIZE], wanted[BENCH_SIZE];
    fill(wanted, page, pages, value);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * BENCH_PAGE, pages * BENCH_PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < pages; i++)
        if (memcmp(data + i * BENCH_PAGE, wanted + i * BENCH_PAGE, BENCH_PAGE))
            FAIL("page %llu begins with %02x %02x, not %02x %02x", (unsigned long long)(page + i), data[i * BENCH_PAGE],
                 data[i * BENCH_PAGE + 1], wanted[i * BENCH_PAGE], wanted[i * BENCH_PAGE + 1]);
}

void expect_loss(struct rdma_bench *b, uint32_t peer, int error)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    CHECK_EQUAL(event.peer, peer);
    CHECK_EQUAL(event.value, error);
    for (uint32_t slab = 0; slab < BENCH_SLABS; slab++)
        CHECK(rig_slab(&b->rig, slab).peer != (int32_t)peer);
}

uint32_t count_news(struct rdma_bench *b, uint32_t kind)
{
    struct isw_event event;
    uint32_t count = 0;
    while (isw_device_events(b->rig.device, &event, 1))
        count += event.kind == kind;
    return count;
}
