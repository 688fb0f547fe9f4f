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
