/* Proves that a move whose time is over leaves behind what the backup has, too, and nothing else: a page that a peer alone has
 * keeps its copy there until the disk or the new peer has it, however late that is. */
#include "fake_backup.h"
#include "fake_peer.h"

#include <errno.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, PAGES = 200, OLD = 0, NEW = 1, LIMIT_MS = 100 };

struct bench {
    struct rig rig;
    struct fake_disk *disk;
    struct fake_manners *manners;
    struct fake_peer *peer[2];
    struct client client;
};

static uint8_t value_of(uint64_t page)
{
    return (uint8_t)(page % 250 + 1);
}

static void write_page(struct bench *b, uint64_t page, uint8_t value)
{
    uint8_t data[PAGE];
    memset(data, value, PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

static void expect_all(struct bench *b)
{
    static uint8_t data[PAGES * PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, PAGES * PAGE, NULL, data), 0);
    for (uint64_t page = 0; page < PAGES; page++)
        if (data[page * PAGE] != value_of(page) || data[page * PAGE + PAGE - 1] != value_of(page))
            FAIL("page %llu reads %02x, not %02x", (unsigned long long)page, data[page * PAGE], value_of(page));
}

static uint32_t pages_with(const struct bench *b, uint32_t flag)
{
    uint32_t count = 0;
    for (uint64_t page = 0; page < PAGES; page++)
        count += (__atomic_load_n(&b->rig.page[page].meta, __ATOMIC_RELAXED) & flag) != 0;
    return count;
}

/* A device whose predecessor was killed: PAGES pages are in the old peer's memory alone, the disk takes nothing, and so few
 * buffers are there that most of them cannot even be pending. */
static struct bench *only_at_the_old_peer(void)
{
    static struct bench bench;
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.peer_timeout_ms = 30000;
    b->disk = fake_disk_open(&b->rig, 720);
    b->manners = fake_disk_manners(b->disk);
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    for (uint32_t i = 0; i < 2; i++)
        b->peer[i] = fake_peer_open(SIZE, 721 + i);
    fake_peer_attach(b->peer[OLD], &b->rig, OLD);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, OLD, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    atomic_store(&b->manners->write_error_one_in, 1);
    for (uint64_t page = 0; page < PAGES; page++)
        write_page(b, page, value_of(page));
    CHECK_EQUAL(isw_device_stop(b->rig.device, 1), -ETIMEDOUT);
    rig_kill(&b->rig);
    client_close(&b->client);
    atomic_store(&b->manners->write_error_one_in, 0);
    atomic_store(&b->manners->hold_writes, true);
    for (uint64_t page = 0; page < SIZE / PAGE; page++)
        b->rig.page[page].meta &= ISW_PAGE_PERSISTENT;
    fake_disk_install(b->disk);
    b->rig.config.recovering = 1;
    b->rig.config.pending_limit_bytes = 1 << 20;
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    for (uint32_t i = 0; i < 2; i++)
        fake_peer_attach(b->peer[i], &b->rig, i);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, OLD, 1), 0);
    CHECK_EQUAL(isw_device_adoption_end(b->rig.device), 0);
    CHECK_EQUAL(pages_with(b, ISW_PAGE_REMOTE), PAGES);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    for (uint32_t i = 0; i < 2; i++)
        fake_peer_close(b->peer[i]);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

/* The move has been late for a while, and many rounds have looked at each page. */
static void wait_until_late(struct bench *b)
{
    WAIT_UNTIL(rig_slab(&b->rig, 0).state == ISW_SLAB_DRAINING);
    uint64_t from = now_ns(), rounds = rig_counter(&b->rig, ISW_DEVICE_loops);
    WAIT_UNTIL(now_ns() - from > 5 * LIMIT_MS * 1000000ull && rig_counter(&b->rig, ISW_DEVICE_loops) > rounds + 5);
}

static void expect_all_kept(struct bench *b)
{
    CHECK_EQUAL(rig_slab(&b->rig, 0).peer, OLD);
    CHECK_EQUAL(pages_with(b, ISW_PAGE_REMOTE), PAGES);
    CHECK_EQUAL(pages_with(b, ISW_PAGE_LOST), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
}

/* Neither the disk nor the new peer takes them: they stay where they are, and go when the disk has them. */
TEST_ON_BOTH(the_disk_has_them_first)
{
    struct bench *b = only_at_the_old_peer();
    atomic_store(&fake_peer_manners(b->peer[NEW])->mute, true);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, NEW, LIMIT_MS), 0);
    wait_until_late(b);
    expect_all_kept(b);
    expect_all(b);
    atomic_store(&b->manners->hold_writes, false);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_MOVED);
    CHECK(event.peer == NEW && event.value == 0); /* on the backup, and not at the peer that says nothing */
    CHECK_EQUAL(pages_with(b, ISW_PAGE_DISK), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    expect_all(b);
    fake_peer_hang_up(b->peer[NEW]);
    close_bench(b);
}

/* The new peer is slow and the disk stands still: they are taken along after the time, every one. */
TEST_ON_BOTH(the_new_peer_has_them_first)
{
    struct bench *b = only_at_the_old_peer();
    atomic_store(&fake_peer_manners(b->peer[NEW])->delay_us_max, 200000);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, NEW, 1), 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_MOVED);
    CHECK(event.peer == NEW && event.value == PAGES);
    CHECK_EQUAL(pages_with(b, ISW_PAGE_LOST), 0);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED).peer, OLD);
    atomic_store(&fake_peer_manners(b->peer[OLD])->corrupt_read_one_in, 1);
    atomic_store(&fake_peer_manners(b->peer[NEW])->delay_us_max, 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    expect_all(b);
    atomic_store(&b->manners->hold_writes, false);
    close_bench(b);
}
