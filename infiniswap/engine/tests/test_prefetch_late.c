/* Proves that nobody waits for a guess whose peer is late: neither for one that was let go before he came, nor for one of a peer
 * that has become slow, and that what such a guess brings in the end is as good as any, or dropped. */
#include "fake_backup.h"
#include "fake_peer.h"

#include "prefetch.h"

enum { SIZE = 4 << 20, SLABS = 4, PAGE = ISW_PAGE_BYTES, PAGES = SIZE / PAGE, FIRST = 260, SOON_US = 1000 };

struct bench {
    struct rig rig;
    struct fake_peer *peer;
    struct peer_manners *manners;
    struct client client;
    uint8_t version[PAGES];
};

static uint64_t count(struct bench *b, enum isw_device_counter counter)
{
    return rig_counter(&b->rig, counter);
}

static uint8_t content(const struct bench *b, uint64_t page)
{
    return (uint8_t)(page * 13 + b->version[page]);
}

static void write_page(struct bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    b->version[page]++;
    memset(data, content(b, page), PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

static void read_page(struct bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < PAGE; i++)
        if (data[i] != content(b, page))
            FAIL("page %llu: %02x, not %02x", (unsigned long long)page, data[i], content(b, page));
}

/* All pages at one peer, which answers soon, and whose pace is known. */
static struct bench *open_bench(uint32_t deadline_ms, uint32_t hedge_floor_us)
{
    static struct bench bench;
    struct bench *b = &bench;
    memset(b, 0, sizeof *b);
    rig_prepare(&b->rig, SIZE);
    b->rig.config.pending_limit_bytes = SIZE;
    b->rig.config.prefetch_floor_us = 100;
    b->rig.config.request_deadline_ms = deadline_ms;
    b->rig.config.hedge_floor_us = hedge_floor_us;
    rig_start(&b->rig);
    b->peer = fake_peer_open(SIZE, 5);
    b->manners = fake_peer_manners(b->peer);
    fake_peer_attach(b->peer, &b->rig, 0);
    for (uint32_t slab = 0; slab < SLABS; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    for (uint64_t page = 0; page < PAGES; page++)
        write_page(b, page);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_us, SOON_US);
    atomic_store(&b->manners->late_one_in, 1);
    struct chance chance = chance_start(1);
    for (uint32_t i = 0; i < 200; i++)
        read_page(b, chance_below(&chance, FIRST - 10));
    return b;
}

static void close_bench(struct bench *b)
{
    CHECK(!count(b, ISW_DEVICE_checksum_mismatches) && !count(b, ISW_DEVICE_peers_lost));
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
        read_page(b, page++);
    WAIT_UNTIL(!fake_peer_waiting(b->peer));
    atomic_store(&b->manners->late_us, late_us);
    for (uint64_t guesses = count(b, ISW_DEVICE_prefetch_guesses); count(b, ISW_DEVICE_prefetch_guesses) == guesses; page++)
        read_page(b, page);
    WAIT_UNTIL(fake_peer_waiting(b->peer));
    return page;
}

/* The first READ that comes for one of its pages waits until it is let go; those behind it do not.  What it brings in the end is
 * what was written last, or dropped, and each guess comes to one end. */
TEST_ON_BOTH(one_that_was_let_go_is_waited_for_no_more)
{
    struct bench *b = open_bench(20000, 2000);
    uint64_t page = guess_late(b, 3000000), waits = count(b, ISW_DEVICE_prefetch_waits), hits = 0;
    atomic_store(&b->manners->late_one_in, 0);
    for (; count(b, ISW_DEVICE_prefetch_waits) == waits; page++) {
        hits = count(b, ISW_DEVICE_prefetch_hits);
        read_page(b, page);
    }
    CHECK_EQUAL(count(b, ISW_DEVICE_prefetch_waits), waits + 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_prefetch_hits), hits); /* else this machine stood still until the answer came */
    write_page(b, page + 1);
    rig_await_backup(&b->rig);
    for (uint64_t i = 0; i < 4; i++)
        read_page(b, page + i);
    CHECK_EQUAL(count(b, ISW_DEVICE_prefetch_waits), waits + 1);
    bool all_read_before = !count(b, ISW_DEVICE_prefetch_dropped); /* that of the page that was written */
    WAIT_UNTIL(count(b, ISW_DEVICE_prefetch_dropped));
    hits = count(b, ISW_DEVICE_prefetch_hits);
    for (uint64_t i = 0; i < 6; i++)
        read_page(b, page + i);
    if (all_read_before)
        CHECK_EQUAL(count(b, ISW_DEVICE_prefetch_hits), hits + 5); /* all but that one, though some were read once */
    WAIT_UNTIL(count(b, ISW_DEVICE_prefetch_guesses) == count(b, ISW_DEVICE_prefetch_hits) + count(b, ISW_DEVICE_prefetch_wasted) +
                                                            count(b, ISW_DEVICE_prefetch_dropped));
    close_bench(b);
}

/* Nobody is asked twice here, so nothing is let go before the deadline: what the backup has comes from there before. */
TEST_ON_BOTH(a_slow_peer_is_not_waited_for)
{
    struct bench *b = open_bench(4000, 0);
    uint64_t page = guess_late(b, 3500000), waits = count(b, ISW_DEVICE_prefetch_waits), last = page + TREND_WINDOW_MAX;
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_SLOW);
    CHECK_EQUAL(event.value, 1);
    while (page < last)
        read_page(b, page++);
    CHECK_EQUAL(count(b, ISW_DEVICE_prefetch_waits), waits);
    CHECK(count(b, ISW_DEVICE_reads_backup_pages) > 0);
    close_bench(b);
}
