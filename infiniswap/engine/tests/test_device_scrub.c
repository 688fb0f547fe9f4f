/* Proves that a scrub finds every copy that does not meet its checksum, makes it anew from the other one, and that nothing
 * else changes: clients are served meanwhile, a page with no good copy is told as lost, and the rate is kept. */
#include "fake_backup.h"
#include "load.h"

#include <errno.h>
#include <unistd.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, PAGES = 256, FAST = 1 << 20 };

struct bench {
    struct rig rig;
    struct fake_disk *disk; /* NULL: the backup is a file */
    struct fake_manners *manners;
    struct donor donor;
    struct client client;
};

/* A device, slab 0 mapped to a real donor and full of pages that both have. */
static struct bench *open_bench(bool fake)
{
    static struct bench bench;
    static uint8_t data[PAGES * PAGE];
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    if (fake) {
        b->disk = fake_disk_open(&b->rig, 3);
        b->manners = fake_disk_manners(b->disk);
        fake_disk_install(b->disk);
    }
    rig_start(&b->rig);
    donor_open(&b->donor, SIZE, 1 << 20);
    donor_attach(&b->donor, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    for (uint32_t i = 0; i < PAGES; i++)
        memset(data + i * PAGE, (int)(i + 1), PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, PAGES * PAGE, data, NULL), 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    rig_await_backup(&b->rig);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&b->donor);
    if (b->disk)
        fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static void scrub(struct bench *b, uint32_t pages_per_s)
{
    CHECK_EQUAL(isw_device_scrub(b->rig.device, pages_per_s), 0);
    rig_await(&b->rig, ISW_EVENT_SCRUBBED);
}

static void spoil_backup(struct bench *b, uint64_t page)
{
    uint8_t byte = 0xee;
    CHECK_EQUAL(pwrite(b->rig.config.backup_fd, &byte, 1, (off_t)rig_place(&b->rig, page) + 77), 1);
}

static uint32_t read_page(struct bench *b, uint64_t page, uint8_t *in)
{
    return client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, in);
}

static void expect_page(struct bench *b, uint64_t page)
{
    uint8_t in[PAGE];
    CHECK_EQUAL(read_page(b, page, in), 0);
    CHECK_EQUAL(in[0], (uint8_t)(page + 1));
    CHECK_EQUAL(in[77], (uint8_t)(page + 1));
}

TEST_ON_BOTH(good_copies_are_left_alone)
{
    struct bench *b = open_bench(false);
    uint64_t writes = rig_counter(&b->rig, ISW_DEVICE_backup_writes);
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_checked_pages), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_position_pages), SIZE / PAGE);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_backup_writes), writes);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches), 0);
    scrub(b, FAST); /* and again */
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_checked_pages), 2 * PAGES);
    close_bench(b);
}

TEST_ON_BOTH(wrong_remote_copy_is_made_anew_from_the_backup)
{
    struct bench *b = open_bench(false);
    b->donor.slabs[5 * PAGE + 9] ^= 1;
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_remote_repairs), 1);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == PAGES);
    CHECK_EQUAL(b->donor.slabs[5 * PAGE + 9], 6);
    expect_page(b, 5);
    close_bench(b);
}

TEST_ON_BOTH(wrong_backup_copy_is_made_anew_from_the_remote_one)
{
    struct bench *b = open_bench(false);
    static uint8_t image[SIZE];
    spoil_backup(b, 7);
    spoil_backup(b, 8);
    spoil_backup(b, 255);
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_backup_repairs), 3);
    WAIT_UNTIL((rig_image(&b->rig, image), image[7 * PAGE + 77] == 8 && image[8 * PAGE + 77] == 9 && image[255 * PAGE + 77] == 0));
    close_bench(b);
}

/* Of an image: a log has checksums of its own. */
TEST(wrong_checksum_is_mended_when_both_copies_agree)
{
    struct bench *b = open_bench(false);
    spoil_backup(b, 3);
    b->donor.slabs[3 * PAGE + 77] = 0xee;
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_record_repairs), 1);
    uint8_t in[PAGE];
    CHECK_EQUAL(read_page(b, 3, in), 0);
    CHECK_EQUAL(in[77], 0xee);
    close_bench(b);
}

/* What has rotted in a log cannot be read, so no copy is good: whatever a donor says beside it. */
TEST(rot_in_a_log_agrees_with_nothing)
{
    rig_logs = true;
    struct bench *b = open_bench(false);
    rig_logs = false;
    uint8_t in[PAGE];
    spoil_backup(b, 3);
    b->donor.slabs[3 * PAGE + 77] = 0xee;
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_record_repairs), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 1);
    CHECK_EQUAL(read_page(b, 3, in), EIO);
    close_bench(b);
}

/* A donor that answers with what a bad backup has would be believed, were pages not sealed. */
TEST_ON_BOTH(sealed_copies_that_agree_are_not_believed)
{
    setenv("ISW_TEST_SEALED", "1", 1);
    struct bench *b = open_bench(false);
    uint8_t in[PAGE];
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_remote_repairs), 0); /* all open */
    spoil_backup(b, 3);
    CHECK_EQUAL(pread(b->rig.config.backup_fd, b->donor.slabs + 3 * PAGE, PAGE, (off_t)rig_place(&b->rig, 3)), PAGE);
    b->donor.slabs[5 * PAGE + 9] ^= 1;
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_record_repairs), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_remote_repairs), 1);
    CHECK_EQUAL(read_page(b, 3, in), EIO);
    CHECK_EQUAL(read_page(b, 5, in), 0);
    CHECK_EQUAL(in[9], 6);
    close_bench(b);
}

TEST_ON_BOTH(page_without_a_good_copy_is_lost_and_says_so)
{
    struct bench *b = open_bench(false);
    uint8_t in[PAGE], out[PAGE] = {4};
    spoil_backup(b, 3);
    b->donor.slabs[3 * PAGE + 5] ^= 1;
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 1);
    CHECK_EQUAL(read_page(b, 3, in), EIO);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 3 * PAGE, PAGE, out, NULL), 0);
    CHECK_EQUAL(read_page(b, 3, in), 0);
    CHECK_EQUAL(in[0], 4);
    close_bench(b);
}

TEST_ON_BOTH(unreadable_backup_is_written_again_where_a_remote_copy_is)
{
    struct bench *b = open_bench(true);
    atomic_store(&b->manners->read_error_one_in, 1);
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_backup_repairs), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    atomic_store(&b->manners->read_error_one_in, 0);
    for (uint32_t page = 0; page < PAGES; page += 50)
        expect_page(b, page);
    close_bench(b);
}

/* The only copy is on the backup and cannot be read: told, and nothing is taken for lost, for disks recover. */
TEST_ON_BOTH(unreadable_only_copy_is_counted)
{
    struct bench *b = open_bench(true);
    rig_unmap(&b->rig, 0);
    atomic_store(&b->manners->read_error_one_in, 1);
    scrub(b, FAST);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_unreadable_pages), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    atomic_store(&b->manners->read_error_one_in, 0);
    expect_page(b, 9);
    close_bench(b);
}

static void verify(struct bench *b)
{
    CHECK_EQUAL(isw_device_verify(b->rig.device, FAST), 0);
    rig_await(&b->rig, ISW_EVENT_SCRUBBED);
}

/* All kinds of differences are counted and told, and found again the next time: nothing was mended, or marked as wrong. */
TEST_ON_BOTH(verification_finds_and_changes_nothing)
{
    struct bench *b = open_bench(false);
    uint64_t writes = rig_counter(&b->rig, ISW_DEVICE_backup_writes);
    verify(b);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_remote_pages), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_backup_pages), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_skipped_pages), 0);
    b->donor.slabs[5 * PAGE + 9] ^= 1;
    spoil_backup(b, 7);
    spoil_backup(b, 9);
    b->donor.slabs[9 * PAGE + 77] = 0xee;
    spoil_backup(b, 11);
    b->donor.slabs[11 * PAGE + 5] ^= 1;
    bool log = b->rig.log; /* whose own checksums say that it cannot be read, so nothing agrees with it */
    uint32_t backup = log ? ISW_COPY_UNREADABLE : ISW_COPY_BACKUP, both = log ? 180 + ISW_COPY_REMOTE + backup : 90 + ISW_COPY_RECORD;
    for (uint32_t pass = 1; pass <= 2; pass++) {
        CHECK_EQUAL(isw_device_verify(b->rig.device, FAST), 0);
        uint64_t seen = 0;
        for (uint32_t i = 0; i < (log ? 6 : 5); i++) {
            struct isw_event event = rig_await(&b->rig, ISW_EVENT_DIFFERS);
            seen += event.value * 10 + event.slab;
        }
        CHECK_EQUAL(seen, 50 + ISW_COPY_REMOTE + 70 + backup + both + 220 + ISW_COPY_REMOTE + backup);
        rig_await(&b->rig, ISW_EVENT_SCRUBBED);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_wrong_remote), (log ? 3 : 2) * pass);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_wrong_backup), log ? 0 : 2 * pass);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_unreadable_pages), log ? 3 * pass : 0);
        CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_wrong_records), log ? 0 : pass);
    }
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_checked_pages), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_backup_writes), writes);
    CHECK_EQUAL(rig_slab(&b->rig, 0).remote_pages, PAGES);
    scrub(b, FAST); /* which does mend */
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_remote_repairs), 1);
    close_bench(b);
}

TEST_ON_BOTH(verification_reads_what_is_not_on_the_backup_yet)
{
    struct bench *b = open_bench(true);
    uint8_t page[PAGE] = {1};
    atomic_store(&b->manners->write_error_one_in, 1);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 3 * PAGE, PAGE, page, NULL), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_resting_pages) == 1);
    b->donor.slabs[3 * PAGE + 9] ^= 1;
    verify(b);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_remote_pages), PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_backup_pages), PAGES - 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_wrong_remote), 1);
    atomic_store(&b->manners->write_error_one_in, 0);
    close_bench(b);
}

TEST_ON_BOTH(verification_tells_what_cannot_be_read_and_not_for_ever)
{
    struct bench *b = open_bench(true);
    for (uint32_t slab = 1; slab < 3; slab++) { /* pages without a remote copy, too */
        static uint8_t data[PAGES * PAGE];
        memset(data, (int)slab, sizeof data);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, slab * (uint64_t)PAGES * PAGE, PAGES * PAGE, data, NULL), 0);
    }
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->read_error_one_in, 1);
    verify(b);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_unreadable_pages), 3 * PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_scrub_unreadable_pages), 0);
    atomic_store(&b->manners->read_error_one_in, 0);
    verify(b);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_verify_unreadable_pages), 3 * PAGES);
    close_bench(b);
}

TEST_ON_BOTH(rate_is_kept_and_a_scrub_can_be_ended)
{
    struct bench *b = open_bench(false);
    uint64_t began = now_ns();
    scrub(b, 1024); /* 256 pages: a quarter of a second, less what may be behind */
    CHECK(now_ns() - began > 100000000);
    CHECK_EQUAL(isw_device_scrub(b->rig.device, 1), 0);
    CHECK_EQUAL(isw_device_scrub(b->rig.device, 1), -EBUSY);
    CHECK_EQUAL(isw_device_scrub(b->rig.device, 0), 0);
    WAIT_UNTIL(isw_device_scrub(b->rig.device, FAST) == 0);
    rig_await(&b->rig, ISW_EVENT_SCRUBBED);
    CHECK_EQUAL(isw_device_scrub(b->rig.device, 1), 0); /* a stop does not wait for it */
    close_bench(b);
}

TEST_ON_BOTH(nothing_changes_under_load)
{
    static struct load load;
    struct rig rig;
    struct donor donor;
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    donor_open(&donor, SIZE, 1 << 20);
    donor_attach(&donor, &rig, 0);
    for (uint32_t slab = 0; slab < 3; slab++)
        CHECK_EQUAL(isw_device_slab_map(rig.device, slab, 0, 0), 0);
    load_open(&load, &rig, NULL, 11);
    for (uint64_t i = 0; i < scaled(300); i++) {
        /* The next as soon as one has ended, in turns. */
        int begun = i % 2 ? isw_device_verify(rig.device, FAST) : isw_device_scrub(rig.device, FAST);
        CHECK(begun == 0 || begun == -EBUSY);
        load_step(&load);
    }
    load_settle(&load);
    load_read_all(&load);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_scrub_backup_repairs) + rig_counter(&rig, ISW_DEVICE_scrub_record_repairs), 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_verify_wrong_remote) + rig_counter(&rig, ISW_DEVICE_verify_wrong_backup), 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_verify_wrong_records), 0);
    CHECK_MET(rig_counter(&rig, ISW_DEVICE_scrub_checked_pages) + rig_counter(&rig, ISW_DEVICE_verify_remote_pages) > 0);
    load_close(&load);
    rig_stop(&rig);
    donor_close(&donor);
    rig_end(&rig);
}
