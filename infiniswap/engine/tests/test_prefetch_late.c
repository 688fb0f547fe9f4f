/* Proves that nobody waits for a guess whose peer is late: neither for one that was let go before he came, nor for one of a peer
 * that has become slow, and that what such a guess brings in the end is as good as any, or dropped. */
#include "prefetch_bench.h"

#include "prefetch.h"

enum { SIZE = 4 << 20, SLABS = 4, PAGE = ISW_PAGE_BYTES, PAGES = SIZE / PAGE, FIRST = 260, SOON_US = 1000 };

/* All pages at one peer, which answers soon, and whose pace is known. */
static struct bench *open_bench(uint32_t deadline_ms, uint32_t hedge_floor_us)
{
    static struct bench bench;
    struct bench *b = &bench;
    bench_prepare(b, SIZE);
    b->rig.config.request_deadline_ms = deadline_ms;
    b->rig.config.hedge_floor_us = hedge_floor_us;
    bench_connect(b, SLABS);
    for (uint64_t page = 0; page < PAGES; page++)
        bench_write_page(b, page);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_us, SOON_US);
    atomic_store(&b->manners->late_one_in, 1);
    struct chance chance = chance_start(1);
    for (uint32_t i = 0; i < 200; i++)
        bench_read_page(b, chance_below(&chance, FIRST - 10));
    return b;
}

static void close_bench(struct bench *b)
{
    CHECK(!bench_count(b, ISW_DEVICE_checksum_mismatches) && !bench_count(b, ISW_DEVICE_peers_lost));
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_peer_close(b->peer);
    rig_end(&b->rig);
}

/* Reads along until guesses are on their way that are answered late_us from now.  Returns the next page. */
static uint64_t guess_late(struct bench *b, uint32_t late_us)
{
    uint64_t page = FIRST;
    while (page < FIRST + 100)
        bench_read_page(b, page++);
    WAIT_UNTIL(!fake_peer_waiting(b->peer));
    atomic_store(&b->manners->late_us, late_us);
    for (uint64_t guesses = bench_count(b, ISW_DEVICE_prefetch_guesses); bench_count(b, ISW_DEVICE_prefetch_guesses) == guesses; page++)
        bench_read_page(b, page);
    WAIT_UNTIL(fake_peer_waiting(b->peer));
    return page;
}

/* The first READ that comes for one of its pages waits until it is let go; those behind it do not.  What it brings in the end is
 * what was written last, or dropped, and each guess comes to one end. */
TEST_ON_BOTH(one_that_was_let_go_is_waited_for_no_more)
{
    struct bench *b = open_bench(20000, 2000);
    uint64_t page = guess_late(b, 3000000), waits = bench_count(b, ISW_DEVICE_prefetch_waits), hits = 0;
    atomic_store(&b->manners->late_one_in, 0);
    for (; bench_count(b, ISW_DEVICE_prefetch_waits) == waits; page++) {
        hits = bench_count(b, ISW_DEVICE_prefetch_hits);
        bench_read_page(b, page);
    }
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_waits), waits + 1);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_hits), hits); /* else this machine stood still until the answer came */
    bench_write_page(b, page + 1);
    rig_await_backup(&b->rig);
    for (uint64_t i = 0; i < 4; i++)
        bench_read_page(b, page + i);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_waits), waits + 1);
    bool all_read_before = !bench_count(b, ISW_DEVICE_prefetch_dropped); /* that of the page that was written */
    WAIT_UNTIL(bench_count(b, ISW_DEVICE_prefetch_dropped));
    hits = bench_count(b, ISW_DEVICE_prefetch_hits);
    for (uint64_t i = 0; i < 6; i++)
        bench_read_page(b, page + i);
    if (all_read_before)
        CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_hits), hits + 5); /* all but that one, though some were read once */
    WAIT_UNTIL(bench_count(b, ISW_DEVICE_prefetch_guesses) == bench_count(b, ISW_DEVICE_prefetch_hits) + bench_count(b, ISW_DEVICE_prefetch_wasted) +
                                                            bench_count(b, ISW_DEVICE_prefetch_dropped));
    close_bench(b);
}

/* Nobody is asked twice here, so nothing is let go before the deadline: what the backup has comes from there before. */
TEST_ON_BOTH(a_slow_peer_is_not_waited_for)
{
    struct bench *b = open_bench(4000, 0);
    uint64_t page = guess_late(b, 3500000), waits = bench_count(b, ISW_DEVICE_prefetch_waits), last = page + TREND_WINDOW_MAX;
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_SLOW);
    CHECK_EQUAL(event.value, 1);
    while (page < last)
        bench_read_page(b, page++);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_waits), waits);
    CHECK(bench_count(b, ISW_DEVICE_reads_backup_pages) > 0);
    close_bench(b);
}
