/* Proves that dirty pages wait, and until when: rewrites meet in memory, a buffer that is half full is written down and no
 * further, in the order of addresses, nobody is passed over for ever, and who has a reason does not wait at all.
 *
 * How many writes are in flight at once, and in which order, is an image's affair: a log gathers them (test_log.c). */
#include "disk_bench.h"

#include <time.h>

enum { SIZE = DISK_BENCH_SIZE, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE, BUFFERS = 256, FOR_EVER_MS = 60000 };

/* 1 MiB may be pending, all slabs are mapped. */
static struct disk_bench *open_bench(uint32_t delay_ms, uint32_t depth)
{
    struct disk_bench *b = disk_bench_prepare(depth);
    b->rig.config.pending_limit_bytes = BUFFERS * PAGE;
    b->rig.config.writeback_delay_ms = delay_ms;
    disk_bench_start(b, SIZE >> 20);
    return b;
}

static uint64_t counter(const struct disk_bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

static uint64_t clock_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void write_page(struct disk_bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    memset(data, (int)(page + 1), PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

static void flush(struct disk_bench *b)
{
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
}

TEST_ON_BOTH(rewrites_meet_in_memory)
{
    enum { REWRITES = 100 };
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    for (uint32_t i = 0; i < REWRITES; i++)
        write_page(b, 7);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_writes), 0);
    flush(b);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_writes), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_written_pages), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_coalesced_pages), REWRITES - 1);
    disk_bench_close(b);
}

/* A page that is written again and again does not get younger by it. */
TEST_ON_BOTH(age_is_that_of_the_first_write)
{
    struct disk_bench *b = open_bench(200, 16);
    uint64_t begun_ns = clock_now_ns();
    while (!counter(b, ISW_DEVICE_backup_writes)) {
        write_page(b, 7);
        if (clock_now_ns() - begun_ns > 60 * 1000000000ull)
            FAIL("a page that is rewritten for a minute never comes to the backup");
    }
    CHECK(clock_now_ns() - begun_ns >= 180 * 1000000ull); /* the loop's clock stands still within a round */
    disk_bench_close(b);
}

TEST_ON_BOTH(neighbours_go_together)
{
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    for (uint32_t i = 0; i < 100; i++)
        write_page(b, i * 37 % 100);
    flush(b);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_writes), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_written_pages), 100);
    disk_bench_close(b);
}

TEST(half_full_is_written_down_and_no_further)
{
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    for (uint32_t i = 0; i < BUFFERS / 2 - 1; i++)
        write_page(b, 2 * i);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_writes), 0);
    write_page(b, BUFFERS);
    WAIT_UNTIL(counter(b, ISW_DEVICE_pending_pages) == BUFFERS / 8 * 3);
    for (uint32_t i = 0; i < BUFFERS / 8 - 1; i++) /* up to one less than a half again */
        write_page(b, 3 * SLAB_PAGES + 2 * i);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_written_pages), BUFFERS / 8);
    CHECK_EQUAL(counter(b, ISW_DEVICE_pending_pages), BUFFERS / 2 - 1);
    disk_bench_close(b);
}

/* The page of the one write that is in flight, and lets it end. */
static uint64_t let_one(struct disk_bench *b)
{
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    uint64_t page = fake_disk_oldest_write(b->disk);
    atomic_store(&b->manners->let_writes, 1);
    WAIT_UNTIL(atomic_load(&b->manners->let_writes) == 0);
    return page;
}

TEST(order_is_that_of_addresses)
{
    enum { PAGES = 64 };
    struct disk_bench *b = open_bench(FOR_EVER_MS, 1);
    atomic_store(&b->manners->hold_writes, true);
    for (uint32_t i = 0; i < PAGES; i++)
        write_page(b, 3 * (i * 29 % PAGES));
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    clients_pump(&b->client, 1, 0);
    for (uint32_t i = 0; i < PAGES; i++)
        CHECK_EQUAL(let_one(b), 3 * i);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    disk_bench_close(b);
}

/* Somebody who always writes just behind the page that is on its way does not keep the disk there. */
TEST(nobody_is_passed_over_for_ever)
{
    enum { FIRST = 10, FAR = 900 };
    struct disk_bench *b = open_bench(0, 1);
    atomic_store(&b->manners->hold_writes, true);
    write_page(b, 0); /* in flight */
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    for (uint32_t i = 1; i < FIRST; i++)
        write_page(b, 2 * i);
    write_page(b, FAR);
    uint64_t page = let_one(b);
    for (uint32_t i = 0; page != FAR; i++) {
        if (i == 2 * FIRST)
            FAIL("page %d waits, while %u that were written later have gone", FAR, i - FIRST);
        pause_us(2000); /* what is written from here on is younger, by the clock of the pages */
        write_page(b, page + 2 + 2 * FIRST);
        page = let_one(b);
    }
    atomic_store(&b->manners->hold_writes, false);
    disk_bench_close(b);
}

TEST_ON_BOTH(only_copy_does_not_wait)
{
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    for (uint32_t i = 0; i < 20; i++)
        write_page(b, 2 * i);
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_writes), 0);
    donor_kill(&b->donor);
    WAIT_UNTIL(!counter(b, ISW_DEVICE_pending_pages));
    CHECK_EQUAL(counter(b, ISW_DEVICE_backup_written_pages), 20);
    disk_bench_close(b);
}

TEST_ON_BOTH(slab_that_is_given_up_does_not_wait)
{
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    for (uint32_t i = 0; i < 20; i++)
        write_page(b, 2 * i);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    disk_bench_close(b);
}

/* Page 7's older version is on its way and held there, and who waits then waits for the newer one behind it.  What is written later,
 * page 400, waits for nobody. */
static void write_behind_older(struct disk_bench *b)
{
    atomic_store(&b->manners->hold_writes, true);
    write_page(b, 7);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting_writes(b->disk) == 1));
    write_page(b, 7);
}

static void write_later(struct disk_bench *b)
{
    static uint8_t in[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, in), 0); /* all before it was taken */
    pause_us(5000); /* the engine counts milliseconds */
    write_page(b, 400);
}

TEST_ON_BOTH(flush_is_not_forgotten_for_what_an_older_write_blocked)
{
    enum { DELAY_MS = 1000000 };
    struct disk_bench *b = open_bench(DELAY_MS, 1);
    write_page(b, 300);
    write_behind_older(b);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    write_later(b);
    uint64_t page = let_one(b);
    CHECK(page == 7 || b->rig.log);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    CHECK_EQUAL(counter(b, ISW_DEVICE_pending_pages), 1);
    disk_bench_close(b);
}

TEST_ON_BOTH(slab_is_given_up_although_an_older_write_blocked)
{
    enum { DELAY_MS = 1000000 };
    struct disk_bench *b = open_bench(DELAY_MS, 16);
    write_behind_older(b);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    write_later(b);
    atomic_store(&b->manners->hold_writes, false);
    rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    client_settle(&b->client);
    CHECK_EQUAL(counter(b, ISW_DEVICE_pending_pages), 1);
    disk_bench_close(b);
}

/* Page-ins that wait for writes make room for themselves; once there are none the writes have it all. */
TEST(page_ins_hold_writes_back)
{
    enum { DEPTH = 64, QUICK = 50, PAGES = 100 };
    static uint8_t in[PAGE];
    struct disk_bench *b = open_bench(FOR_EVER_MS, DEPTH);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 3), 0);
    rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    write_page(b, 3 * SLAB_PAGES); /* on the backup alone */
    for (uint32_t i = 0; i < QUICK; i++)
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 3 * SLAB_PAGES * PAGE, PAGE, NULL, in), 0);
    for (uint32_t i = 0; i < 3; i++) { /* from 64 to 8 beside them, if no quick one was slow by chance */
        atomic_store(&b->manners->hold_reads, true);
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, 3 * SLAB_PAGES * PAGE, PAGE, NULL, in));
        WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting(b->disk) == 1));
        pause_us(500000); /* far more than three times what the quickest took */
        atomic_store(&b->manners->hold_reads, false);
        client_settle(&b->client);
    }
    for (uint32_t i = 0; i < PAGES; i++)
        write_page(b, 2 * i);
    atomic_store(&b->manners->hold_reads, true);
    atomic_store(&b->manners->hold_writes, true);
    CHECK(client_send(&b->client, NBD_CMD_READ, 0, 3 * SLAB_PAGES * PAGE, PAGE, NULL, in));
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting_writes(b->disk) > 0));
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 3);
    CHECK(fake_disk_waiting_writes(b->disk) <= DEPTH / 8);
    atomic_store(&b->manners->hold_reads, false);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting_writes(b->disk) == DEPTH));
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    disk_bench_close(b);
}

/* While a sync is in flight others want one: a second one is for all of them. */
TEST_ON_BOTH(one_sync_is_for_many_flushes)
{
    enum { CLIENTS = 8, EACH = 4 };
    static struct client client[CLIENTS];
    struct disk_bench *b = open_bench(FOR_EVER_MS, 16);
    atomic_store(&b->manners->hold_syncs, true);
    write_page(b, 0);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), counter(b, ISW_DEVICE_backup_syncs) == 1));
    for (uint32_t i = 0; i < CLIENTS; i++) {
        rig_connect(&b->rig, &client[i], false);
        for (uint32_t n = 0; n < EACH; n++)
            CHECK(client_send(&client[i], NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    }
    clients_pump(client, CLIENTS, 0);
    WAIT_UNTIL((clients_pump(client, CLIENTS, 1), counter(b, ISW_DEVICE_in_flight) == 1 + CLIENTS * EACH));
    atomic_store(&b->manners->hold_syncs, false);
    client_settle(&b->client);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        client_settle(&client[i]);
        client_close(&client[i]);
    }
    CHECK_EQUAL(fake_disk_syncs(b->disk), 2);
    disk_bench_close(b);
}
