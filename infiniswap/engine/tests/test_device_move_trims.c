/* Proves that what is trimmed while its slab moves costs memory nowhere: whichever peer has the slab in the end is told, and what
 * was written since stays. */
#include "fake_peer.h"

#include <errno.h>

enum { SIZE = 3 << 20, SLAB_PAGES = 256, PAGE = ISW_PAGE_BYTES, OLD = 0, NEW = 1, PEERS = 2 };

struct bench {
    struct rig rig;
    struct fake_peer *peer[PEERS];
    struct peer_manners *old_manners;
    struct client client;
};

static void write_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[SLAB_PAGES * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, pages * PAGE, data, NULL), 0);
}

/* Slab 0 is at the old peer, and full. */
static struct bench *open_bench(uint32_t deadline_ms)
{
    static struct bench bench;
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.request_deadline_ms = deadline_ms;
    rig_start(&b->rig);
    for (uint32_t i = 0; i < PEERS; i++) {
        b->peer[i] = fake_peer_open(SIZE, 700 + i);
        fake_peer_attach(b->peer[i], &b->rig, i);
    }
    b->old_manners = fake_peer_manners(b->peer[OLD]);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, OLD, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == SLAB_PAGES); /* else this machine stood still, and it comes back */
    return b;
}

static void close_bench(struct bench *b)
{
    CHECK(!rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches) && !rig_counter(&b->rig, ISW_DEVICE_peers_lost));
    client_close(&b->client);
    rig_stop(&b->rig);
    for (uint32_t i = 0; i < PEERS; i++)
        fake_peer_close(b->peer[i]);
    rig_end(&b->rig);
}

static void expect_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[SLAB_PAGES * PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, pages * PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < pages * PAGE; i++)
        if (data[i] != value)
            FAIL("page %llu: %02x, not %02x", (unsigned long long)(page + i / PAGE), data[i], value);
}

static void trim(struct bench *b, uint32_t pages)
{
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, 0, pages * PAGE, NULL, NULL), 0);
}

static bool is_free(struct bench *b, uint32_t peer, uint32_t pages)
{
    return !fake_peer_byte(b->peer[peer], 0) && !fake_peer_byte(b->peer[peer], (pages - 1) * PAGE);
}

static void begin_move(struct bench *b)
{
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, NEW, 0), 0);
}

static void expect_moved(struct bench *b, uint64_t pages)
{
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_MOVED).value, pages);
}

static void settle(struct bench *b)
{
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED).peer, OLD);
}

/* The new peer has all of them, and its place is not on record yet. */
TEST_ON_BOTH(trimmed_before_it_is_settled)
{
    struct bench *b = open_bench(0);
    begin_move(b);
    expect_moved(b, SLAB_PAGES);
    trim(b, 64);
    write_pages(b, 8, 1, 2); /* to the backup; the page's copy there is what came before */
    CHECK_EQUAL(fake_peer_byte(b->peer[NEW], 63 * PAGE), 1);
    settle(b);
    write_pages(b, 5, 1, 3); /* before it is told, or after */
    WAIT_UNTIL(is_free(b, NEW, 64));
    expect_pages(b, 0, 5, 0);
    expect_pages(b, 5, 1, 3);
    expect_pages(b, 6, 2, 0);
    expect_pages(b, 8, 1, 2);
    expect_pages(b, 9, 55, 0);
    expect_pages(b, 64, SLAB_PAGES - 64, 1);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == SLAB_PAGES - 62);
    CHECK(fake_peer_byte(b->peer[NEW], 5 * PAGE) == 3 && fake_peer_byte(b->peer[NEW], 8 * PAGE) == 2);
    expect_pages(b, 5, 1, 3);
    expect_pages(b, 8, 1, 2);
    close_bench(b);
}

/* The new peer has a copy of them, and the rest is on its way. */
TEST_ON_BOTH(trimmed_behind_its_copy)
{
    struct bench *b = open_bench(0);
    atomic_store(&fake_peer_manners(b->peer[NEW])->late_us, 500000);
    atomic_store(&fake_peer_manners(b->peer[NEW])->late_one_in, 1);
    begin_move(b);
    WAIT_UNTIL(fake_peer_byte(b->peer[NEW], 7 * PAGE));
    trim(b, 8);
    atomic_store(&fake_peer_manners(b->peer[NEW])->late_one_in, 0);
    expect_moved(b, SLAB_PAGES - 8);
    CHECK_EQUAL(fake_peer_byte(b->peer[NEW], 7 * PAGE), 1);
    settle(b);
    WAIT_UNTIL(is_free(b, NEW, 8));
    expect_pages(b, 0, 8, 0);
    expect_pages(b, 8, SLAB_PAGES - 8, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_backup_pages), 0);
    close_bench(b);
}

/* The old peer was slow, so it is owed a TRIM when the move begins, and keeps the slab after all. */
TEST_ON_BOTH(owed_beyond_a_move_that_fails)
{
    struct bench *b = open_bench(200);
    atomic_store(&b->old_manners->late_us, 1500000);
    atomic_store(&b->old_manners->late_one_in, 1);
    write_pages(b, 100, 16, 2);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_SLOW).value, 1);
    trim(b, 64);
    begin_move(b);
    pause_us(100000); /* some ticks */
    CHECK_EQUAL(isw_device_slab_move_cancel(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_MOVE_FAILED).value, ECANCELED);
    CHECK_EQUAL(fake_peer_byte(b->peer[OLD], 0), 1);
    atomic_store(&b->old_manners->late_one_in, 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_SLOW).value, 0);
    WAIT_UNTIL(is_free(b, OLD, 64));
    expect_pages(b, 0, 64, 0);
    expect_pages(b, 64, 36, 1);
    expect_pages(b, 100, 16, 2);
    close_bench(b);
}
