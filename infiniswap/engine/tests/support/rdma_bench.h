/* A device, donors over RDMA and one client, for tests that look at one thing at a time. */
#ifndef RDMA_BENCH_H
#define RDMA_BENCH_H

#include "fake_verbs.h"

enum { BENCH_SIZE = (2 << 20) + (300 << 10), BENCH_SLABS = 3, BENCH_DONORS = 3, BENCH_PAGE = ISW_PAGE_BYTES };

struct rdma_bench {
    struct rig rig;
    struct fake_verbs *verbs;
    struct rdma_donor *donor[BENCH_DONORS];
    struct rdma_manners *manners; /* of the first */
    struct fake_faults *faults;
    struct fake_counts *counts;
    struct client client;
};

/* For changes of configuration and limits; then _start: device, client, donors, nothing opened. */
struct rdma_bench *rdma_bench_prepare(void);
void rdma_bench_start(struct rdma_bench *bench);
/* All at once: "fake0" is open, the first donor is peer 0, all slabs are mapped there. */
struct rdma_bench *rdma_bench_open(uint32_t poll_us, uint32_t peer_timeout_ms);
/* Attaches donor number as that peer and maps all slabs there. */
void rdma_bench_attach(struct rdma_bench *bench, uint32_t number);
/* An orderly stop, after which nothing may be left. */
void rdma_bench_close(struct rdma_bench *bench);
/* Every page gets a content that depends on value and page. */
void write_pages(struct rdma_bench *bench, uint64_t page, uint32_t pages, uint8_t value);
void expect_pages(struct rdma_bench *bench, uint64_t page, uint32_t pages, uint8_t value);
/* The first byte of a page so written. */
uint8_t page_byte(uint64_t page, uint8_t value);
void expect_loss(struct rdma_bench *bench, uint32_t peer, int error);
/* Takes all news that there are and counts those of the kind. */
uint32_t count_news(struct rdma_bench *bench, uint32_t kind);

#endif
