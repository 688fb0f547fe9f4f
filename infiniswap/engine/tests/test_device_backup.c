/* Proves what the device owes its clients through the backup: FLUSH and FUA wait for what they promise and for no more, writes
 * of one page reach the disk in order, a full pending buffer stalls writers and nobody else, a failing disk costs no
 * data, and a stop drains everything. */
#include "disk_bench.h"

#include <errno.h>

enum { SIZE = DISK_BENCH_SIZE, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE };

/* A device over a fake disk, one donor attached, slab 0 mapped to it. */
static struct disk_bench *open_bench(uint64_t pending_limit_bytes, uint32_t depth)
{
    struct disk_bench *b = disk_bench_prepare(depth);
    b->rig.config.pending_limit_bytes = pending_limit_bytes;
    disk_bench_start(b, 1);
    return b;
}

static void write_pages(struct disk_bench *b, uint64_t page, uint32_t pages, uint8_t value, uint16_t flags)
{
    static uint8_t data[256 * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, flags, page * PAGE, pages * PAGE, data, NULL), 0);
}

static bool page_is(const uint8_t *image, uint64_t page, uint8_t value)
{
    for (uint32_t i = 0; i < PAGE; i++)
        if (image[page * PAGE + i] != value)
            return false;
    return true;
}

static void expect_read(struct disk_bench *b, uint64_t page, uint8_t value)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    CHECK(page_is(data, 0, value));
}

/* Sends a request and gives the device time to answer it wrongly. */
static void send_unanswered(struct disk_bench *b, uint16_t command, uint64_t page, uint32_t pages, const void *payload, uint16_t flags)
{
    CHECK(client_send(&b->client, command, flags, page * PAGE, pages * PAGE, payload, NULL));
    uint32_t out = b->client.calls_out;
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 3);
    CHECK_EQUAL(b->client.calls_out, out);
}

static void expect_durable(struct disk_bench *b, uint64_t page, uint8_t value)
{
    fake_disk_durable(b->disk, b->image);
    if (!page_is(b->image, page, value))
        FAIL("page %llu begins with %02x, not %02x", (unsigned long long)page, b->image[page * PAGE], value);
}

TEST_ON_BOTH(flush_waits_for_writes_and_sync)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    atomic_store(&b->manners->hold_writes, true);
    atomic_store(&b->manners->hold_syncs, true);
    write_pages(b, 0, 1, 1, 0);
    send_unanswered(b, NBD_CMD_FLUSH, 0, 0, NULL, 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    atomic_store(&b->manners->hold_writes, false);
    WAIT_UNTIL(fake_disk_waiting(b->disk) == 1); /* the sync */
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 3);
    CHECK_EQUAL(b->client.calls_out, 1);
    atomic_store(&b->manners->hold_syncs, false);
    client_settle(&b->client);
    expect_durable(b, 0, 1);
    disk_bench_close(b);
}

TEST_ON_BOTH(flush_does_not_wait_for_later_writes)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    atomic_store(&b->manners->hold_writes, true);
    write_pages(b, 0, 1, 1, 0);
    send_unanswered(b, NBD_CMD_FLUSH, 0, 0, NULL, 0);
    write_pages(b, 100, 1, 2, 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == (b->rig.log ? 1 : 2)); /* a log begins its next chunk when this one ends */
    atomic_store(&b->manners->let_writes, 1);
    client_settle(&b->client);
    expect_durable(b, 0, 1);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    atomic_store(&b->manners->hold_writes, false);
    disk_bench_close(b);
}

TEST_ON_BOTH(fua_waits_for_its_own_write)
{
    static uint8_t data[PAGE];
    struct disk_bench *b = open_bench(4 << 20, 16);
    memset(data, 3, PAGE);
    for (uint32_t page = 0; page < 2 * SLAB_PAGES; page += SLAB_PAGES) { /* on the donor, and on the backup alone */
        atomic_store(&b->manners->hold_writes, true);
        send_unanswered(b, NBD_CMD_WRITE, page, 1, data, NBD_CMD_FLAG_FUA);
        atomic_store(&b->manners->hold_syncs, true);
        atomic_store(&b->manners->hold_writes, false);
        WAIT_UNTIL(!fake_disk_waiting_writes(b->disk));
        for (int i = 0; i < 20; i++)
            clients_pump(&b->client, 1, 3);
        CHECK_EQUAL(b->client.calls_out, 1);
        atomic_store(&b->manners->hold_syncs, false);
        client_settle(&b->client);
        expect_durable(b, page, 3);
    }
    disk_bench_close(b);
}

/* With one backup write at a time, held, everything behind it waits its turn. */
static struct disk_bench *with_a_busy_disk(void)
{
    struct disk_bench *b = open_bench(4 << 20, 1);
    write_pages(b, 5, 1, 1, NBD_CMD_FLAG_FUA);
    atomic_store(&b->manners->hold_writes, true);
    write_pages(b, 100, 1, 9, 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    return b;
}

/* Lets the one write in flight end: the FLUSH must wait for what comes next too. */
static void expect_flush_waits(struct disk_bench *b)
{
    atomic_store(&b->manners->let_writes, 1);
    WAIT_UNTIL(atomic_load(&b->manners->let_writes) == 0);
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 3);
    CHECK_EQUAL(b->client.calls_out, 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
}

/* A page that was acknowledged before the FLUSH and is trimmed after it may be either, but no older version. */
TEST_ON_BOTH(flush_covers_what_is_trimmed_meanwhile)
{
    struct disk_bench *b = with_a_busy_disk();
    write_pages(b, 5, 1, 2, 0);
    send_unanswered(b, NBD_CMD_FLUSH, 0, 0, NULL, 0);
    struct call *call = client_send(&b->client, NBD_CMD_TRIM, 0, 5 * PAGE, PAGE, NULL, NULL);
    CHECK(call);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), b->client.calls_out == 1)); /* TRIM is answered, FLUSH is not */
    expect_flush_waits(b);
    fake_disk_durable(b->disk, b->image);
    CHECK(page_is(b->image, 5, 0) || page_is(b->image, 5, 2));
    disk_bench_close(b);
}

/* A page trimmed before the FLUSH and written after it: likewise. */
TEST_ON_BOTH(flush_covers_a_trim_that_is_written_over)
{
    struct disk_bench *b = with_a_busy_disk();
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, 5 * PAGE, PAGE, NULL, NULL), 0);
    send_unanswered(b, NBD_CMD_FLUSH, 0, 0, NULL, 0);
    write_pages(b, 5, 1, 2, 0);
    expect_flush_waits(b);
    expect_durable(b, 5, 2);
    disk_bench_close(b);
}

/* A write that failed may have reached the disk in part: where nothing was written before, zeroes must come back. */
TEST_ON_BOTH(failed_first_write_leaves_zeroes)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    static uint8_t data[16 * PAGE];
    memset(data, 7, sizeof data);
    for (uint32_t round = 0; round < 8; round++) {
        uint64_t page = SLAB_PAGES + round * 16;
        atomic_store(&b->manners->write_error_one_in, 1);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, sizeof data, data, NULL), NBD_EIO);
        atomic_store(&b->manners->write_error_one_in, 0);
        expect_read(b, page, 0);
    }
    disk_bench_close(b);
}

TEST_ON_BOTH(failing_disk_costs_no_data)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    atomic_store(&b->manners->write_error_one_in, 1);
    for (uint32_t page = 0; page < 64; page += 2)
        write_pages(b, page, 1, (uint8_t)(page + 1), 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), NBD_EIO);
    rig_await(&b->rig, ISW_EVENT_BACKUP_ERROR);
    for (uint32_t page = 0; page < 64; page += 2)
        expect_read(b, page, (uint8_t)(page + 1));
    donor_kill(&b->donor); /* all that is left are the pending buffers */
    rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    for (uint32_t page = 0; page < 64; page += 2)
        expect_read(b, page, (uint8_t)(page + 1));
    CHECK_EQUAL(isw_device_stop(b->rig.device, 50), -ETIMEDOUT); /* it does not stop with pages that exist nowhere else */
    atomic_store(&b->manners->write_error_one_in, 0);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), b->client.ended));
    disk_bench_close(b);
}

TEST_ON_BOTH(failing_sync_fails_the_flush)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    atomic_store(&b->manners->fail_syncs, 1);
    write_pages(b, 0, 1, 1, 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), NBD_EIO);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    expect_durable(b, 0, 1);
    disk_bench_close(b);
}

/* At the pending limit writers stall, reads go on, nothing fails and nothing grows. */
TEST_ON_BOTH(full_pending_buffer_stalls_writers_only)
{
    static uint8_t data[16 * PAGE], in[PAGE];
    struct disk_bench *b = open_bench(1 << 20, 16);
    struct client reader;
    rig_connect(&b->rig, &reader, false);
    for (uint32_t page = 0; page < 64; page++)
        write_pages(b, page, 1, (uint8_t)(page + 1), 0);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->hold_writes, true);
    memset(data, 0x55, sizeof data);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), 0);
    for (uint32_t i = 0; i < 24; i++) /* 384 pages, and room for 256 */
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, (i < 12 ? 64 + i * 16 : SLAB_PAGES + i * 16) * PAGE, sizeof data,
                          data, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_pending_waits) > 0));
    for (uint32_t page = 0; page < 64; page++) {
        CHECK_EQUAL(client_call(&reader, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, in), 0);
        CHECK(page_is(in, 0, (uint8_t)(page + 1)));
        clients_pump(&b->client, 1, 0);
    }
    CHECK(b->client.calls_out >= 8);
    CHECK(rig_counter(&b->rig, ISW_DEVICE_pending_peak_pages) <= 256);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    for (uint32_t i = 0; i < 24; i++)
        expect_read(b, i < 12 ? 64 + i * 16 + 15 : SLAB_PAGES + i * 16, 0x55);
    client_close(&reader);
    disk_bench_close(b);
}

/* What was acknowledged before the stop is on the disk, synced, when it returns. */
TEST_ON_BOTH(stop_drains_everything)
{
    struct disk_bench *b = open_bench(4 << 20, 4);
    for (uint32_t page = 0; page < 128; page++)
        write_pages(b, page, 1, (uint8_t)(page + 1), 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, 64 * PAGE, 8 * PAGE, NULL, NULL), 0);
    atomic_store(&b->manners->delay_us_max, 2000);
    client_close(&b->client);
    rig_stop(&b->rig);
    for (uint32_t page = 0; page < 128; page++)
        expect_durable(b, page, page >= 64 && page < 72 ? 0 : (uint8_t)(page + 1));
    donor_close(&b->donor);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

/* Several pages of one write wait for the backup writes of their older versions: each wakes it, it goes on once. */
TEST_ON_BOTH(rewrite_waits_for_older_writes)
{
    struct disk_bench *b = open_bench(4 << 20, 16);
    atomic_store(&b->manners->hold_writes, true);
    for (uint32_t page = 0; page < 8; page++)
        write_pages(b, page, 1, 1, 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_in_flight));
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0); /* now writes go to the backup itself */
    static uint8_t data[8 * PAGE];
    memset(data, 2, sizeof data);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL));
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 5);
    CHECK_EQUAL(b->client.calls_out, 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    for (uint32_t page = 0; page < 8; page++)
        expect_read(b, page, 2);
    fake_disk_image(b->disk, b->image);
    for (uint32_t page = 0; page < 8; page++)
        CHECK(page_is(b->image, page, 2));
    disk_bench_close(b);
}

/* More reads than the backup takes at once, and when their turn comes the pages need no reading any more. */
TEST_ON_BOTH(waiting_reads_are_never_forgotten)
{
    enum { READS = 500 };
    static uint8_t in[READS][PAGE];
    struct disk_bench *b = open_bench(4 << 20, 16);
    struct client other;
    rig_connect(&b->rig, &other, false);
    write_pages(b, SLAB_PAGES, 256, 1, 0);
    write_pages(b, 2 * SLAB_PAGES, 256, 1, 0);
    atomic_store(&b->manners->hold_reads, true);
    for (uint32_t i = 0; i < READS; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, (SLAB_PAGES + i) * PAGE, PAGE, NULL, in[i]));
    WAIT_UNTIL((clients_pump(&b->client, 1, 0), rig_counter(&b->rig, ISW_DEVICE_in_flight) == READS));
    CHECK_EQUAL(client_call(&other, NBD_CMD_TRIM, 0, SLAB_PAGES * PAGE, 512 * PAGE, NULL, NULL), 0);
    atomic_store(&b->manners->hold_reads, false);
    client_settle(&b->client);
    for (uint32_t i = 0; i < READS; i++)
        CHECK(page_is(in[i], 0, 0)); /* sent before the TRIM, but answered after it */
    client_close(&other);
    disk_bench_close(b);
}
