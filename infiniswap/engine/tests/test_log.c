/* Proves of a log, one by one: it holds what a plain array of pages would, byte for byte, however requests are completed and however
 * often it is full; errors are told to who waits, and to nobody else. */
#include "log_rig.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { MIB = 1 << 20, PAGE = ISW_PAGE_BYTES };

static struct log_rig rig;

static void open_rig(uint64_t size_bytes)
{
    log_rig_open(&rig, size_bytes, chance_start(1));
}

static const struct log_rig_load mixed = {.reads = 30, .zeroes = 8, .syncs = 4, .states = 2, .depth = 24, .pages_max = 256};

TEST(empty_one_reads_as_zeroes)
{
    char error[64] = "";
    uint64_t first, end, bytes;
    int fd = open("/dev/null", 0);
    CHECK(isw_log_file_bytes(0, &bytes) == -EINVAL && isw_log_file_bytes(PAGE + 1, &bytes) == -EINVAL);
    CHECK(!isw_log_open(fd, 0, error, sizeof error) && *error);
    close(fd);
    open_rig(4 * MIB + 5 * PAGE);
    CHECK(log_rig_info(&rig).live_pages == 0 && log_rig_info(&rig).size_bytes == 4 * MIB + 5 * PAGE && log_rig_info(&rig).file_bytes <= rig.disk.size_bytes);
    CHECK(!isw_log_extent(rig.log, 0, &first, &end));
    log_rig_read_all(&rig);
    log_rig_reopen(&rig, 0);
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

TEST(no_log_is_no_log)
{
    char error[64] = "";
    open_rig(MIB);
    log_rig_stop(&rig);
    memset(rig.disk.image, 0, 2 * PAGE);
    errno = 0;
    CHECK(!isw_log_open(rig.disk.fd, 0, error, sizeof error) && errno == EMEDIUMTYPE && *error);
    memset(rig.disk.image, 0xff, 2 * PAGE);
    CHECK(!isw_log_open(rig.disk.fd, ISW_LOG_READ_ONLY, error, sizeof error) && errno == EMEDIUMTYPE);
    log_rig_close(&rig);
}

TEST(extents_are_what_is_written)
{
    uint64_t first, end;
    open_rig(4 * MIB);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 10, 5), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 1000, 24), 0);
    CHECK(isw_log_extent(rig.log, 0, &first, &end) && first == 10 && end == 15);
    CHECK(isw_log_extent(rig.log, 12, &first, &end) && first == 12 && end == 15);
    CHECK(isw_log_extent(rig.log, 15, &first, &end) && first == 1000 && end == 1024);
    CHECK(!isw_log_extent(rig.log, 1024, &first, &end) && log_rig_info(&rig).live_pages == 29);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_ZERO, 12, 1), 0);
    CHECK(isw_log_extent(rig.log, 0, &first, &end) && first == 10 && end == 12 && log_rig_info(&rig).live_pages == 28);
    log_rig_reopen(&rig, ISW_LOG_SAME_BOOT);
    CHECK(isw_log_extent(rig.log, 0, &first, &end) && first == 10 && end == 12 && log_rig_info(&rig).live_pages == 28);
    log_rig_check_extents(&rig);
    log_rig_close(&rig);
}

static void against_an_array(uint64_t size_bytes, uint64_t requests, const struct log_rig_load *load, bool in_order, uint32_t late_one_in)
{
    open_rig(size_bytes);
    rig.disk.manners.in_order = in_order;
    rig.disk.manners.late_one_in = late_one_in;
    for (int i = 0; i < 4; i++) {
        log_rig_run(&rig, load, scaled(requests) / 4);
        log_rig_settle(&rig);
        log_rig_read_all(&rig);
        log_rig_check_extents(&rig);
        if (i % 2)
            log_rig_reopen(&rig, i == 1 ? 0 : ISW_LOG_SAME_BOOT);
    }
    CHECK(!rig.errors && !rig.oracle.errors && !log_rig_info(&rig).bad_pages);
    log_rig_close(&rig);
}

TEST(is_what_an_array_is)
{
    struct log_rig_load small = mixed;
    small.pages_max = 2;
    against_an_array(MIB, 6000, &mixed, true, 0);
    against_an_array(8 * MIB, 6000, &mixed, false, 0);
    against_an_array(3 * MIB + 7 * PAGE, 12000, &small, false, 4);
}

/* Every page is live, and rewritten many times over: pages that are not must be taken along. */
static void many_times_over(uint32_t pages_max, uint64_t rounds)
{
    open_rig(16 * MIB);
    log_rig_fill(&rig);
    struct log_rig_load load = {.reads = 15, .syncs = 1, .depth = 24, .pages_max = pages_max, .hot_first = 1000, .hot_pages = 800};
    for (uint64_t i = 0; i < scaled(rounds) || rig.disk.written_blocks <= 3 * rig.disk.blocks; i++) {
        CHECK(i < 100 * rounds);
        load.hot_first = 500 * i % 3000;
        rig.disk.manners.late_one_in = i % 2 ? 8 : 0;
        log_rig_run(&rig, &load, 60000 / (pages_max + 8));
    }
    log_rig_settle(&rig);
    CHECK(log_rig_info(&rig).live_pages == rig.oracle.pages && log_rig_info(&rig).cleaned_segments && log_rig_info(&rig).checkpoints);
    log_rig_read_all(&rig);
    CHECK(!rig.errors && !rig.oracle.errors && !log_rig_info(&rig).bad_pages);
    log_rig_reopen(&rig, 0);
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

TEST(full_many_times_over_in_small_pieces)
{
    many_times_over(1, 8);
}

TEST(full_many_times_over_in_large_pieces)
{
    many_times_over(256, 24);
}

/* However the disk sorts them: requests that came last may be done first, and no request waits for ever (log_rig.c). */
TEST(any_order_of_completions)
{
    struct log_rig_load load = {.reads = 40, .zeroes = 3, .syncs = 6, .states = 2, .depth = LOG_RIG_SLOTS, .pages_max = 64};
    open_rig(2 * MIB);
    for (uint32_t one_in = 1; one_in < 64; one_in *= 2) {
        rig.disk.manners.late_one_in = one_in;
        log_rig_run(&rig, &load, scaled(1500));
        log_rig_settle(&rig);
    }
    log_rig_read_all(&rig);
    CHECK(!rig.errors);
    log_rig_close(&rig);
}

TEST(trims_outlive_their_process)
{
    open_rig(8 * MIB);
    log_rig_fill(&rig);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_ZERO, 100, 1500), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    log_rig_check_extents(&rig);
    CHECK(log_rig_info(&rig).live_pages == rig.oracle.pages - 1500);
    log_rig_close(&rig);
}

/* A write fails: those who wait for it hear of it, and all goes on. */
TEST(failed_writes_are_told_and_mended)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    for (int error = 0; error < 2; error++) {
        rig.disk.manners.error = error ? ENOSPC : EIO;
        rig.disk.manners.write_error_one_in = 1;
        CHECK(log_rig_do(&rig, BACKUP_WRITE, 5, 3) && log_rig_do(&rig, BACKUP_ZERO, 20, 3));
        rig.disk.manners.write_error_one_in = 0;
        rig.disk.now_ns += 2000000000;
        log_rig_read_all(&rig); /* as they were */
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 5, 3), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    }
    uint64_t errors = rig.errors;
    struct log_rig_load load = mixed;
    log_rig_run(&rig, &load, 1000);
    log_rig_settle(&rig);
    CHECK_EQUAL(rig.errors, errors);
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

/* A write that failed may be on the disk in full: what was read instead, and flushed, stays, also when nothing is written any more. */
TEST(what_failed_does_not_come_back)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    for (int turn = 0; turn < 40; turn++) {
        uint64_t place = log_rig_block_of(&rig, 5);
        rig.disk.manners.write_error_one_in = 1;
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 5, 1), EIO);
        rig.disk.manners.write_error_one_in = 0;
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        if (turn % 2) {
            log_rig_reopen(&rig, 0);
        } else {
            log_rig_kill(&rig);
            log_rig_power_cut(&rig);
            CHECK(log_rig_start(&rig, 0));
        }
        CHECK_EQUAL(log_rig_block_of(&rig, 5), place);
        log_rig_read_all(&rig);
    }
    log_rig_close(&rig);
}

/* What else was under way when a write failed has failed for the same reason. */
TEST(full_disk_is_told_as_such)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    rig.disk.manners.error = ENOSPC;
    rig.disk.manners.write_error_one_in = 1;
    for (uint64_t page = 0; page < 800; page += 100)
        CHECK(log_rig_submit(&rig, BACKUP_WRITE, page, 100));
    log_rig_settle(&rig);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQUAL(rig.slot[i].request.error, ENOSPC);
    CHECK_EQUAL(rig.errors, 8);
    log_rig_close(&rig);
}

/* Trims of what has no place need none. */
TEST(trims_of_nothing_write_nothing)
{
    open_rig(4 * MIB);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 100, 10), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    uint64_t before = rig.disk.written_blocks;
    CHECK(log_rig_do(&rig, BACKUP_ZERO, 0, 100) == 0 && log_rig_do(&rig, BACKUP_ZERO, 110, 500) == 0);
    CHECK_EQUAL(rig.disk.written_blocks, before);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_ZERO, 109, 500), 0);
    CHECK(rig.disk.written_blocks > before);
    log_rig_read_all(&rig);
    log_rig_check_extents(&rig);
    log_rig_close(&rig);
}

/* A disk that takes nothing for a while: everything is answered, with an error, and once it takes something again, without. */
TEST(dead_disk_keeps_nobody_waiting)
{
    struct log_rig_load load = {.reads = 20, .zeroes = 10, .syncs = 10, .depth = 24, .pages_max = 64};
    open_rig(2 * MIB);
    log_rig_fill(&rig);
    rig.disk.manners.write_error_one_in = rig.disk.manners.sync_error_one_in = rig.disk.manners.read_error_one_in = 1;
    log_rig_run(&rig, &load, 500);
    log_rig_settle(&rig);
    CHECK(rig.errors > 300 && rig.sync_errors);
    rig.disk.manners = (struct log_disk_manners){0};
    rig.disk.now_ns += 2000000000;
    for (uint64_t page = 0; page < rig.oracle.pages; page++)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
    log_rig_do(&rig, BACKUP_SYNC, 0, 0); /* may tell of what was */
    for (uint64_t page = 0; page < rig.oracle.pages; page++)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    CHECK_EQUAL(log_rig_info(&rig).live_pages, rig.oracle.pages);
    log_rig_close(&rig);
}

static void pass_ms(uint64_t ms)
{
    for (uint64_t until_ns = rig.disk.now_ns + ms * 1000000; rig.disk.now_ns < until_ns; rig.disk.now_ns += 20000000)
        log_rig_round(&rig);
}

/* Nobody writes, and a checkpoint fails again and again: it is tried again before another one is due, ever more seldom, and done soon
 * after the disk takes something. */
TEST(failed_checkpoint_is_tried_again)
{
    open_rig(8 * MIB);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 10), 0);
    uint64_t before = log_rig_info(&rig).checkpoints;
    rig.disk.manners.write_error_one_in = 1;
    rig.log->checkpoint_asked = true;
    pass_ms(1000);
    CHECK_EQUAL(rig.disk.write_faults, 3);
    pass_ms(59000);
    CHECK(rig.disk.write_faults > 15 && rig.disk.write_faults < 25);
    CHECK_EQUAL(log_rig_info(&rig).checkpoints, before);
    rig.disk.manners.write_error_one_in = 0;
    pass_ms(3300);
    CHECK_EQUAL(log_rig_info(&rig).checkpoints, before + 1);
    log_rig_close(&rig);
}

/* Where only maps and superblocks cannot be written the log cleans, and goes on as long as that gains something; then it says so. */
TEST(failing_checkpoints_keep_nobody_waiting)
{
    struct log_rig_load load = {.reads = 5, .syncs = 2, .depth = 24, .pages_max = 64};
    open_rig(64 * MIB);
    log_rig_fill(&rig);
    log_rig_run(&rig, &load, 3000);
    log_rig_settle(&rig);
    uint64_t before = log_rig_info(&rig).cleaned_segments;
    rig.disk.manners.front_fails = rig.log->geometry.segments_at * PAGE;
    while (!rig.errors)
        log_rig_run(&rig, &load, 10);
    CHECK(log_rig_info(&rig).cleaned_segments > before + 20);
    log_rig_run(&rig, &load, 500);
    log_rig_settle(&rig);
    rig.disk.manners.front_fails = 0;
    rig.disk.now_ns += 4000000000;
    for (uint64_t page = 0; page < rig.oracle.pages; page += 256)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 256), 0);
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

/* Syncs that fail now and then while it is full and must clean. */
TEST(failing_syncs_lose_nothing_that_was_synced)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    rig.disk.manners.sync_error_one_in = 3;
    rig.disk.manners.drop_one_in = 2;
    struct log_rig_load load = {.reads = 10, .syncs = 2, .depth = 24, .pages_max = 64, .hot_first = 0, .hot_pages = 300};
    for (int i = 0; i < 6; i++)
        log_rig_run(&rig, &load, 2000);
    log_rig_settle(&rig);
    CHECK(rig.sync_errors);
    rig.disk.manners = (struct log_disk_manners){0};
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

/* The process dies after an fdatasync has failed over the cleaner's copies, and the next one hears nothing of that: it must not take
 * them for the pages, whose originals are safe. */
TEST(copies_that_were_never_synced_do_not_count)
{
    for (uint64_t i = 0; i < scaled(12); i++) {
        log_rig_open(&rig, 16 * MIB, chance_start(i));
        log_rig_fill(&rig);
        struct log_rig_load load = {.syncs = 1, .depth = 24, .pages_max = 4, .hot_first = 1000, .hot_pages = 3000};
        while (!log_rig_info(&rig).cleaned_segments)
            log_rig_run(&rig, &load, 100);
        log_rig_settle(&rig);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        while (!rig.log->clean.out)
            log_rig_run(&rig, &load, 1);
        rig.disk.manners.sync_error_one_in = 1;
        while (rig.log->clean.out)
            log_rig_run(&rig, &load, 1);
        log_rig_kill(&rig);
        rig.disk.manners.sync_error_one_in = 0;
        CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
        log_rig_read_all(&rig);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        log_rig_kill(&rig);
        log_rig_power_cut(&rig);
        CHECK(log_rig_start(&rig, 0));
        log_rig_read_all(&rig);
        log_rig_close(&rig);
    }
}

/* ---- tools ---- */

TEST(tools_read_and_write)
{
    static uint8_t data[MIB] __attribute__((aligned(4096))), back[MIB] __attribute__((aligned(4096)));
    char error[64] = "";
    open_rig(8 * MIB);
    log_rig_stop(&rig);
    for (uint32_t i = 0; i < MIB / PAGE; i++)
        log_oracle_fill(256 + i, 1, data + i * PAGE);
    isw_log *log = isw_log_open(rig.disk.fd, 0, error, sizeof error);
    CHECK(log && isw_log_write(log, data, MIB, MIB) == 0 && isw_log_sync(log) == 0);
    CHECK(isw_log_read(log, back, MIB, MIB) == 0 && !memcmp(data, back, MIB));
    CHECK(isw_log_write(log, data, 8 * MIB, PAGE) == -EINVAL && isw_log_read(log, back, 1, PAGE) == -EINVAL);
    isw_log_close(log);
    log = isw_log_open(rig.disk.fd, ISW_LOG_READ_ONLY, error, sizeof error);
    CHECK(log && isw_log_read(log, back, MIB, MIB) == 0 && !memcmp(data, back, MIB));
    CHECK(isw_log_write(log, data, 0, PAGE) == -EROFS);
    isw_log_close(log);
    log_rig_close(&rig);
}
