/* A device whose slabs are all at one fake peer, and the pages that a client has written to it. */
#ifndef PREFETCH_BENCH_H
#define PREFETCH_BENCH_H

#include "fake_backup.h"
#include "fake_peer.h"

enum { BENCH_PAGES_MAX = (16 << 20) / ISW_PAGE_BYTES };

struct bench {
    struct rig rig;
    struct fake_peer *peer;
    struct peer_manners *manners;
    struct client client;
    uint8_t version[BENCH_PAGES_MAX]; /* of each page, by which its content is told */
};

/* Forgets what was; the rig's config may be changed until bench_connect. */
void bench_prepare(struct bench *b, uint64_t size_bytes);
void bench_connect(struct bench *b, uint32_t slabs); /* starts, maps all of them to the peer, and connects */
uint64_t bench_count(struct bench *b, enum isw_device_counter counter);
uint8_t bench_content(const struct bench *b, uint64_t page);
void bench_write_page(struct bench *b, uint64_t page); /* its next version */
void bench_read_page(struct bench *b, uint64_t page);  /* it must be its version */

#endif
