/* Proves of a log whose chain broke and begins anew elsewhere that this outlives the superblock that says so: the other one leads there as
 * well, and what failed never comes back. */
#include "log_rig.h"

#include "log.h"

enum { MIB = 1 << 20 };

static struct log_rig rig;

/* Several segments have been begun when the first chunk fails; then the disk does what it is asked again. */
static void break_chain(void)
{
    log_rig_open(&rig, 128ull * MIB, chance_start(1));
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 100), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    rig.disk.manners.hold = 1u << BACKUP_WRITE;
    for (uint64_t page = 0; page < 1500; page += 250) {
        CHECK(log_rig_submit(&rig, BACKUP_WRITE, page, 250));
        log_rig_round(&rig);
    }
    rig.disk.manners.hold = 0;
    rig.disk.manners.write_error_one_in = 1;
    log_rig_settle(&rig);
    rig.disk.manners.write_error_one_in = 0;
    rig.disk.now_ns += 1000000000;
}

static void write_and_sync(uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page += 50)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 50), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
}

static void pass_a_second(void)
{
    for (uint64_t until_ns = rig.disk.now_ns + 1000000000; rig.disk.now_ns < until_ns; rig.disk.now_ns += 20000000)
        log_rig_round(&rig);
}

static void newest_superblock_goes(void)
{
    uint64_t newest = rig.log->generation % LOG_SUPERBLOCKS;
    log_rig_kill(&rig);
    log_disk_rot(&rig.disk, newest, 40);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
}

/* A chain that broke begins anew, and the superblock that says where may rot: the other one leads there as well. */
TEST(mended_chain_is_in_both_superblocks)
{
    break_chain();
    write_and_sync(0, 200);
    pass_a_second();
    newest_superblock_goes();
    log_rig_close(&rig);
}

/* So it does after a process that died between the two checkpoints that say so. */
TEST(mended_chain_is_in_both_superblocks_after_a_kill)
{
    break_chain();
    uint64_t generation = rig.log->generation;
    CHECK(log_rig_submit(&rig, BACKUP_WRITE, 0, 50));
    while (rig.out)
        log_rig_round(&rig);
    CHECK_EQUAL(rig.log->generation, generation + 1);
    log_rig_kill(&rig);
    CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT) && rig.log->replayed_chunks);
    log_rig_read_all(&rig);
    write_and_sync(0, 200);
    newest_superblock_goes();
    log_rig_close(&rig);
}

/* The process dies after an fdatasync has failed, and the kernel takes for clean what it has not written: the next one hears nothing of that,
 * and what it syncs is there after a power cut. */
TEST(what_follows_a_failed_sync_is_safe)
{
    for (uint64_t i = 0; i < scaled(12); i++) {
        log_rig_open(&rig, 128ull * MIB, chance_start(i));
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 100), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        for (uint64_t page = 1000; page < 1005; page++)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
        rig.disk.manners.sync_error_one_in = 1;
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 5);
        rig.disk.manners.sync_error_one_in = 0;
        log_rig_kill(&rig);
        CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
        log_rig_read_all(&rig);
        pass_a_second();
        write_and_sync(0, 200);
        log_rig_kill(&rig);
        log_rig_power_cut(&rig);
        CHECK(log_rig_start(&rig, 0));
        for (uint64_t page = 0; page < 200; page++)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, page, 1), 0);
        log_rig_close(&rig);
    }
}

/* A process dies before it hears that an fdatasync has failed, and the next one finds in the page cache what is not on the disk.  What it
 * writes behind that and flushes is there after a power cut. */
static void flush_behind_an_unsure_end(uint64_t seed, uint64_t size_mib, uint32_t flags)
{
    log_rig_open(&rig, size_mib << 20, (struct chance){seed * 77 + 1});
    for (uint32_t lap = 0; lap < 2; lap++) {
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 100), 0);
        rig.disk.manners.sync_error_one_in = lap;
        CHECK(log_rig_submit(&rig, BACKUP_SYNC, 0, 0));
        if (!lap)
            log_rig_settle(&rig);
    }
    rig.backup->methods->kick(rig.backup);
    while (!rig.disk.sync_faults && log_disk_step(&rig.disk))
        ;
    CHECK(rig.disk.sync_faults);
    rig.disk.manners.sync_error_one_in = rig.disk.manners.drop_one_in = 0;
    log_rig_kill(&rig);
    CHECK(log_rig_start(&rig, flags));
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 300, 10), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 300, 10), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_kill(&rig);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 300, 10), 0);
    log_rig_close(&rig);
}

TEST(flush_behind_an_unsure_end_is_kept)
{
    for (uint64_t seed = 1; seed < 8; seed++) {
        flush_behind_an_unsure_end(seed, 16, ISW_LOG_SAME_BOOT);
        flush_behind_an_unsure_end(seed, 16, 0);
    }
    flush_behind_an_unsure_end(7, 256, ISW_LOG_SAME_BOOT);
}

/* Where the checkpoint that makes its end sure fails a FLUSH does not wait for another one: what its user has written is synced. */
TEST(flush_behind_an_unsure_end_waits_for_one_checkpoint)
{
    log_rig_open(&rig, 16ull * MIB, chance_start(1));
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 100), 0);
    log_rig_kill(&rig);
    CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 300, 10), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 300, 10), 0);
    rig.disk.manners.write_error_one_in = 1;
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    rig.disk.manners.write_error_one_in = 0;
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_close(&rig);
}

/* The cleaner's fdatasync fails while the device stops, and the one of the signature would succeed over that: the end is not signed, and
 * what was flushed long ago is there after a power cut. */
static bool stop_while_the_log_syncs(uint64_t seed, bool deaf)
{
    log_rig_open(&rig, 16ull << 20, (struct chance){seed * 77 + 1});
    log_rig_fill(&rig);
    bool met = false;
    for (uint64_t i = 0; i < 20000 && !met; i++) {
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, chance_below(&rig.chance, 4096), 1), 0);
        if (!rig.log->clean.out)
            continue;
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        for (uint32_t round = 0; round < 50 && !met; round++) {
            met = rig.log->clean.out && rig.log->clean.out->stage == BATCH_SYNCS && rig.log->sync.in_flight;
            if (!met)
                log_rig_round(&rig);
        }
    }
    if (met) {
        rig.disk.manners.sync_error_one_in = 1;
        rig.backup->methods->kick(rig.backup);
        while (!rig.disk.sync_faults && log_disk_step(&rig.disk))
            ;
        CHECK(rig.disk.sync_faults);
        rig.disk.manners.sync_error_one_in = 0;
        deaf ? log_rig_stop_deaf(&rig) : log_rig_stop(&rig);
        log_oracle_killed(&rig.oracle);
        CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
        log_rig_read_all(&rig);
        for (uint64_t page = 0; page < 300; page++)
            log_rig_do(&rig, BACKUP_WRITE, page, 1);
        log_rig_do(&rig, BACKUP_SYNC, 0, 0);
        log_rig_kill(&rig);
        log_rig_power_cut(&rig);
        CHECK(log_rig_start(&rig, 0));
        log_rig_read_all(&rig);
        CHECK_EQUAL(log_rig_info(&rig).bad_pages, 0);
    }
    log_rig_close(&rig);
    return met;
}

TEST(stop_while_the_log_syncs_for_itself)
{
    uint32_t met = 0;
    for (uint64_t seed = 1; seed < 7; seed++)
        met += stop_while_the_log_syncs(seed, seed % 2);
    CHECK(met > 3);
}
