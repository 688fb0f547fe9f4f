#include "prefetch_bench.h"

enum { PAGE = ISW_PAGE_BYTES, SEED = 5 };

void bench_prepare(struct bench *b, uint64_t size_bytes)
{
    memset(b, 0, sizeof *b);
    rig_prepare(&b->rig, size_bytes);
    b->rig.config.pending_limit_bytes = size_bytes;
    b->rig.config.prefetch_floor_us = 100;
}

void bench_connect(struct bench *b, uint32_t slabs)
{
    rig_start(&b->rig);
    b->peer = fake_peer_open(b->rig.config.size_bytes, SEED);
    b->manners = fake_peer_manners(b->peer);
    fake_peer_attach(b->peer, &b->rig, 0);
    for (uint32_t slab = 0; slab < slabs; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
}

uint64_t bench_count(struct bench *b, enum isw_device_counter counter)
{
    return rig_counter(&b->rig, counter);
}

uint8_t bench_content(const struct bench *b, uint64_t page)
{
    return (uint8_t)(page * 13 + b->version[page]);
}

void bench_write_page(struct bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    b->version[page]++;
    memset(data, bench_content(b, page), PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

void bench_read_page(struct bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < PAGE; i++)
        if (data[i] != bench_content(b, page))
            FAIL("page %llu: %02x, not %02x", (unsigned long long)page, data[i], bench_content(b, page));
}
