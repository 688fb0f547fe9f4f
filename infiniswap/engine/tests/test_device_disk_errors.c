/* Proves that a disk that fails in part costs no more than that part: a failed fdatasync is not forgotten, one bad sector
 * keeps nothing else from the backup, and what a backup that was cut short has lost is told instead of read as zeroes. */
#include "fake_backup.h"
#include "rig.h"

#include <errno.h>
#include <unistd.h>

enum { SIZE = 16 << 20, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE };

struct bench {
    struct rig rig;
    struct fake_disk *disk; /* NULL: the backup is a file */
    struct fake_manners *manners;
    struct donor donor;
    struct client client;
    uint8_t image[SIZE];
};
static struct bench bench;

/* A device, a donor, slab 0 mapped to it. */
static struct bench *open_bench(bool fake)
{
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    if (fake) {
        b->disk = fake_disk_open(&b->rig, 7);
        b->manners = fake_disk_manners(b->disk);
        fake_disk_install(b->disk);
    }
    rig_start(&b->rig);
    donor_open(&b->donor, SIZE, 1 << 20);
    donor_attach(&b->donor, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    return b;
}

static void close_bench(struct bench *b)
{
    if (b->client.fd >= 0)
        client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&b->donor);
    if (b->disk)
        fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static uint32_t write_page(struct bench *b, uint64_t page, uint8_t value, uint16_t flags)
{
    static uint8_t data[PAGE];
    memset(data, value, PAGE);
    return client_call(&b->client, NBD_CMD_WRITE, flags, page * PAGE, PAGE, data, NULL);
}

static uint32_t call(struct bench *b, uint16_t command, uint64_t page)
{
    static uint8_t data[PAGE];
    uint32_t bytes = command == NBD_CMD_FLUSH ? 0 : PAGE;
    return client_call(&b->client, command, 0, bytes ? page * PAGE : 0, bytes, NULL, command == NBD_CMD_READ ? data : NULL);
}

static uint32_t flush(struct bench *b)
{
    return call(b, NBD_CMD_FLUSH, 0);
}

static uint8_t byte_of(struct bench *b, uint64_t page)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    return data[PAGE - 1];
}

static void expect_durable(struct bench *b, uint64_t page, uint8_t value)
{
    fake_disk_durable(b->disk, b->image);
    CHECK_EQUAL(b->image[page * PAGE], value);
}

/* ---- fdatasync ---- */

TEST_ON_BOTH(failed_sync_is_made_good_from_remote_memory)
{
    struct bench *b = open_bench(true);
    for (uint64_t page = 0; page < 50; page++)
        CHECK_EQUAL(write_page(b, page, (uint8_t)(page + 1), 0), 0);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->sync_loses, true);
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), 0);
    for (uint64_t page = 0; page < 50; page++)
        expect_durable(b, page, (uint8_t)(page + 1));
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_doubtful_pages), 0);
    close_bench(b);
}

TEST_ON_BOTH(failed_sync_of_the_only_copy_is_said_until_it_is_written)
{
    struct bench *b = open_bench(true);
    for (uint64_t page = 0; page < 3; page++)
        CHECK_EQUAL(write_page(b, 2 * SLAB_PAGES + page, 1, 0), 0); /* not mapped: on the backup at once */
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_doubtful_pages), 3);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(write_page(b, 0, 5, NBD_CMD_FLAG_FUA), 0); /* others are not its concern */
    CHECK_EQUAL(write_page(b, 2 * SLAB_PAGES, 2, 0), 0);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(call(b, NBD_CMD_TRIM, 2 * SLAB_PAGES + 2), 0);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    CHECK_EQUAL(write_page(b, 2 * SLAB_PAGES + 1, 2, 0), 0);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 2 * SLAB_PAGES, 2);
    expect_durable(b, 2 * SLAB_PAGES + 1, 2);
    expect_durable(b, 2 * SLAB_PAGES + 2, 0);
    close_bench(b);
}

/* A killed process does not make doubtful pages good. */
TEST_ON_BOTH(doubt_outlives_the_process)
{
    struct bench *b = open_bench(true);
    CHECK_EQUAL(write_page(b, 2 * SLAB_PAGES, 1, 0), 0);
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    rig_kill(&b->rig);
    client_close(&b->client);
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(write_page(b, 2 * SLAB_PAGES, 2, 0), 0);
    CHECK_EQUAL(flush(b), 0);
    close_bench(b);
}

TEST_ON_BOTH(failed_sync_after_a_trim)
{
    struct bench *b = open_bench(true);
    CHECK_EQUAL(write_page(b, 7, 1, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(call(b, NBD_CMD_TRIM, 7), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_punch_slabs) == 0);
    atomic_store(&b->manners->sync_loses, true);
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 7, 0);
    close_bench(b);
}

TEST_ON_BOTH(stop_does_not_spin_while_syncs_fail)
{
    struct bench *b = open_bench(true);
    CHECK_EQUAL(write_page(b, 0, 1, 0), 0);
    rig_await_backup(&b->rig);
    client_close(&b->client);
    atomic_store(&b->manners->sync_error_one_in, 1);
    uint64_t begun = fake_disk_syncs(b->disk);
    CHECK_EQUAL(isw_device_stop(b->rig.device, 1), -ETIMEDOUT);
    WAIT_UNTIL(fake_disk_syncs(b->disk) > begun);
    begun = fake_disk_syncs(b->disk);
    CHECK_EQUAL(isw_device_stop(b->rig.device, 2500), -ETIMEDOUT);
    CHECK(fake_disk_syncs(b->disk) - begun <= (b->rig.log ? 20 : 4)); /* one a second, and five with which a log tries to mend itself */
    atomic_store(&b->manners->sync_error_one_in, 0);
    close_bench(b);
}

/* Nobody flushes a swap area: what is remembered for the next fdatasync has a bound all the same. */
TEST_ON_BOTH(syncs_by_itself_when_much_was_written)
{
    struct bench *b = open_bench(true);
    static uint8_t data[PAGE];
    uint64_t deadline = now_ns() + 3 * WAIT_S_MAX * 1000000000ull, page = 0;
    while (!rig_counter(&b->rig, ISW_DEVICE_backup_syncs)) { /* the device's; a log has its own */
        CHECK(now_ns() < deadline);
        while (b->client.calls_out < 300) {
            page = (page + 3) % (SIZE / PAGE - SLAB_PAGES);
            CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, (SLAB_PAGES + page) * PAGE, PAGE, data, NULL));
        }
        clients_pump(&b->client, 1, 1);
    }
    client_settle(&b->client);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_flush_requests), 0);
    CHECK(rig_counter(&b->rig, ISW_DEVICE_backup_writes) > 10000); /* and not with each write */
    close_bench(b);
}

/* ---- a bad sector: over an image, where it is a page's own; in a log it is one of many places ---- */

TEST(bad_page_keeps_no_other_from_the_backup)
{
    struct bench *b = open_bench(true);
    atomic_store(&b->manners->bad_block, 1 + 100);
    static uint8_t data[200 * PAGE];
    memset(data, 3, sizeof data);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_pending_pages) == 1);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages) == 1);
    uint64_t begun = now_ns();
    for (int i = 0; i < 20; i++) { /* each rewrite with its neighbours goes through */
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL), 0);
        WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_pending_pages) == 1);
    }
    CHECK(now_ns() - begun < 15 * 1000000000ull); /* a pause a turn would take longer */
    CHECK_EQUAL(write_page(b, 50, 4, NBD_CMD_FLAG_FUA), 0);
    expect_durable(b, 50, 4);
    CHECK_EQUAL(byte_of(b, 100), 3);
    begun = now_ns();
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(write_page(b, 100, 5, NBD_CMD_FLAG_FUA), NBD_EIO);
    CHECK(now_ns() - begun < 15 * 1000000000ull);
    atomic_store(&b->manners->bad_block, 0); /* as when the drive has found a spare sector */
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 100, 5);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages), 0);
    close_bench(b);
}

TEST(flush_before_the_bad_page_is_not_its_concern)
{
    struct bench *b = open_bench(true);
    atomic_store(&b->manners->hold_syncs, true);
    atomic_store(&b->manners->bad_block, 1 + 100);
    CHECK_EQUAL(write_page(b, 3, 3, 0), 0);
    struct call *early = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(early && client_send(&b->client, NBD_CMD_WRITE, 0, 100 * PAGE, PAGE, bench.image, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages) == 1));
    atomic_store(&b->manners->hold_syncs, false);
    client_settle(&b->client);
    CHECK_EQUAL(early->error, 0);
    atomic_store(&b->manners->bad_block, 0);
    close_bench(b);
}

/* While it rests, the bad page is written over, trimmed, and written through. */
TEST(what_happens_to_a_resting_page)
{
    struct bench *b = open_bench(true);
    for (int turn = 0; turn < 3; turn++) {
        atomic_store(&b->manners->bad_block, 1 + 100);
        CHECK_EQUAL(write_page(b, 100, 3, 0), 0);
        WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages) == 1);
        if (turn == 0)
            CHECK_EQUAL(write_page(b, 100, 4, 0), 0);
        if (turn == 1)
            CHECK_EQUAL(call(b, NBD_CMD_TRIM, 100), 0);
        if (turn == 2) {
            CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
            CHECK_EQUAL(write_page(b, 100, 5, 0), NBD_EIO);
            CHECK_EQUAL(byte_of(b, 100), 3);
            atomic_store(&b->manners->bad_block, 0);
            CHECK_EQUAL(write_page(b, 100, 5, 0), 0);
        }
        atomic_store(&b->manners->bad_block, 0);
        CHECK_EQUAL(flush(b), 0);
        expect_durable(b, 100, turn == 0 ? 4 : turn == 1 ? 0 : 5);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages), 0);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_pending_pages), 0);
    }
    close_bench(b);
}

/* The older version fails while a newer one waits to be written through: it must not wake beside that and land over it. */
TEST(bad_page_does_not_wake_beside_a_newer_write)
{
    struct bench *b = open_bench(true);
    atomic_store(&b->manners->hold_writes, true);
    CHECK_EQUAL(write_page(b, 100, 3, 0), 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    memset(bench.image, 4, PAGE);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 100 * PAGE, PAGE, bench.image, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_write_requests) == 2));
    atomic_store(&b->manners->bad_block, 1 + 100);
    atomic_store(&b->manners->let_writes, 1);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_errors) == 1);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    atomic_store(&b->manners->bad_block, 0);
    uint64_t begun = now_ns();
    WAIT_UNTIL(now_ns() - begun > 2500000000ull); /* one that rested would have been tried by now: the fake disk tells */
    CHECK_EQUAL(fake_disk_waiting_writes(b->disk), 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    CHECK_EQUAL(byte_of(b, 100), 4);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 100, 4);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_pending_pages), 0);
    close_bench(b);
}

/* Pages are brought to a peer that has their slab anew, some at a time, and one of them cannot be read: the rest comes, and it is
 * not tried for ever. */
TEST_ON_BOTH(bad_sector_keeps_no_other_from_a_peer)
{
    enum { FIRST = SLAB_PAGES, COUNT = 64, BAD = FIRST + 20 };
    struct bench *b = open_bench(true);
    static uint8_t data[COUNT * PAGE];
    memset(data, 3, sizeof data);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, FIRST * PAGE, sizeof data, data, NULL), 0);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->bad_read, 1 + (int)(rig_place(&b->rig, BAD) / PAGE));
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), 0);
    WAIT_UNTIL(rig_slab(&b->rig, 1).remote_pages == COUNT - 1);
    CHECK_EQUAL(call(b, NBD_CMD_READ, BAD), NBD_EIO);
    pause_us(100000); /* in which it could be tried very often */
    CHECK(rig_counter(&b->rig, ISW_DEVICE_backup_reads) <= COUNT);
    for (uint64_t page = FIRST; page < FIRST + COUNT; page++)
        if (page != BAD)
            CHECK_EQUAL(byte_of(b, page), 3);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), COUNT - 1);
    CHECK_EQUAL(write_page(b, BAD, 4, 0), 0);
    CHECK_EQUAL(rig_slab(&b->rig, 1).remote_pages, COUNT);
    CHECK_EQUAL(byte_of(b, BAD), 4);
    close_bench(b);
}

/* A log takes another segment for what the bad block refused, and comes back to it lap after lap: that costs no page, and no FLUSH
 * fails for long. */
TEST(bad_block_of_a_log_costs_no_page)
{
    rig_logs = true;
    struct bench *b = open_bench(true);
    rig_logs = false;
    static uint8_t data[200 * PAGE];
    CHECK_EQUAL(write_page(b, 0, 1, NBD_CMD_FLAG_FUA), 0);
    atomic_store(&b->manners->bad_block, 1 + (int)(rig_place(&b->rig, 0) / PAGE) + 20);
    for (uint32_t round = 1; round <= 400; round++) { /* some laps */
        memset(data, (int)round, sizeof data);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL), 0);
        uint32_t failed = 0;
        while (flush(b))
            CHECK(++failed < 3);
        if (round % 50 == 1)
            for (uint64_t page = 0; page < 200; page += 199)
                expect_durable(b, page, (uint8_t)round);
    }
    CHECK(rig_counter(&b->rig, ISW_DEVICE_backup_errors) > 1); /* it was met again */
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages), 0);
    close_bench(b);
}

/* ---- a backup that somebody cuts short ---- */

TEST_ON_BOTH(cut_backup_loses_only_what_was_there_and_says_so)
{
    struct bench *b = open_bench(false);
    uint64_t alone = 3 * SLAB_PAGES, held = 10, kept = 2 * SLAB_PAGES;
    CHECK_EQUAL(write_page(b, held, 1, 0), 0);
    CHECK_EQUAL(write_page(b, kept, 2, 0), 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 4, 0, 0), 0);
    CHECK_EQUAL(write_page(b, alone, 4, 0), 0);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(write_page(b, 4 * SLAB_PAGES, 3, NBD_CMD_FLAG_FUA), 0);
    uint64_t cut = rig_place(&b->rig, alone);
    CHECK(ftruncate(b->rig.config.backup_fd, (off_t)cut) == 0);
    CHECK_EQUAL(write_page(b, SIZE / PAGE - 1, 9, 0), 0); /* of an image the last page: the file is as long as before */
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_BACKUP_CUT);
    CHECK_EQUAL(event.slab, 1);
    CHECK_EQUAL(event.value, cut);
    CHECK_EQUAL(call(b, NBD_CMD_READ, alone), NBD_EIO);
    CHECK_EQUAL(flush(b), NBD_EIO); /* once */
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(byte_of(b, held), 1);
    CHECK_EQUAL(byte_of(b, kept), 2);
    CHECK_EQUAL(byte_of(b, 4 * SLAB_PAGES), 3);
    CHECK_EQUAL(byte_of(b, SIZE / PAGE - 1), 9);
    CHECK_EQUAL(write_page(b, alone, 5, 0), 0);
    CHECK_EQUAL(byte_of(b, alone), 5);
    CHECK_EQUAL(flush(b), 0);
    rig_image(&b->rig, b->image);
    CHECK_EQUAL(b->image[4 * SLAB_PAGES * PAGE], 3); /* there again, from remote memory */
    close_bench(b);
}

/* Nobody writes: it is noticed all the same. */
TEST_ON_BOTH(cut_backup_is_noticed_when_idle)
{
    struct bench *b = open_bench(false);
    CHECK_EQUAL(write_page(b, 3 * SLAB_PAGES, 4, 0), 0);
    off_t whole = lseek(b->rig.config.backup_fd, 0, SEEK_END);
    CHECK(ftruncate(b->rig.config.backup_fd, 0) == 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_BACKUP_CUT).slab, 1);
    CHECK_EQUAL(lseek(b->rig.config.backup_fd, 0, SEEK_END), whole);
    CHECK_EQUAL(call(b, NBD_CMD_READ, 3 * SLAB_PAGES), NBD_EIO);
    CHECK_EQUAL(call(b, NBD_CMD_READ, 3 * SLAB_PAGES + 1), 0);
    close_bench(b);
}
