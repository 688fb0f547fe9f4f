/* Proves of a log what damage on its disk costs: itself and nothing else.  Rot is said and never shows another page or an older
 * version, whether it is in data, in a header, in the map or in a superblock. */
#include "log_rig.h"

#include "log.h"

#include <errno.h>

enum { MIB = 1 << 20, PAGE = ISW_PAGE_BYTES };

static struct log_rig rig;

static void open_rig(uint64_t size_bytes)
{
    log_rig_open(&rig, size_bytes, chance_start(1));
}

static const struct log_rig_load mixed = {.reads = 30, .zeroes = 8, .syncs = 4, .states = 2, .depth = 24, .pages_max = 256};

TEST(rotten_page_is_said_and_nothing_else)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    log_disk_rot(&rig.disk, log_rig_block_of(&rig, 300), 77);
    log_disk_spoil(&rig.disk, log_rig_block_of(&rig, 400));
    rig.oracle.page[300].rotten = rig.oracle.page[400].rotten = true;
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 300, 1), EIO);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 400, 1), EIO);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 299, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 301, 64), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 290, 20), EIO);
    log_rig_read_all(&rig);
    log_rig_reopen(&rig, 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 300, 1), EIO);
    CHECK(log_rig_info(&rig).bad_pages);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 300, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 400, 1), 0);
    log_rig_read_all(&rig);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 290, 20), 0);
    log_rig_close(&rig);
}

/* What has rotted stays unreadable when the cleaner comes by, and costs no page beside it. */
TEST(cleaner_meets_rot)
{
    enum { COLD = 2000, STEP = 400 };
    open_rig(16 * MIB);
    for (uint64_t page = 0; page < COLD; page++) { /* side by side with what will be written over */
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, COLD + page, 1), 0);
    }
    uint64_t was = log_rig_block_of(&rig, 5);
    for (uint64_t page = 5; page < COLD; page += STEP) {
        log_disk_rot(&rig.disk, log_rig_block_of(&rig, page), (uint32_t)page);
        rig.oracle.page[page].rotten = true;
    }
    for (uint32_t i = 0; i < 20; i++)
        for (uint64_t page = COLD; page < 2 * COLD; page += 50)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 50), 0);
    CHECK(log_rig_info(&rig).cleaned_segments && (rig.log->place[5] == LOG_PLACE_BAD || log_rig_block_of(&rig, 5) == was));
    log_rig_read_all(&rig);
    log_rig_reopen(&rig, ISW_LOG_SAME_BOOT);
    log_rig_read_all(&rig);
    for (uint64_t page = 5; page < COLD; page += STEP) {
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, page, 1), EIO);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_ZERO, page, 1), 0);
    }
    log_rig_read_all(&rig);
    CHECK_EQUAL(log_rig_info(&rig).live_pages, 2 * COLD - COLD / STEP);
    log_rig_close(&rig);
}

/* Reads that fail keep the cleaner from nothing but that. */
TEST(cleaner_meets_failing_reads)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    rig.disk.manners.read_error_one_in = 3;
    struct log_rig_load load = {.reads = 5, .syncs = 2, .depth = 24, .pages_max = 64, .hot_first = 0, .hot_pages = 200};
    log_rig_run(&rig, &load, scaled(8000));
    log_rig_settle(&rig);
    CHECK(log_rig_info(&rig).cleaned_segments && rig.disk.read_faults);
    rig.disk.manners.read_error_one_in = 0;
    log_rig_read_all(&rig);
    CHECK(!log_rig_info(&rig).bad_pages);
    log_rig_close(&rig);
}

/* Of the two superblocks the older one may be damaged; without either it is no log. */
TEST(older_superblock_is_not_needed)
{
    char error[64] = "";
    open_rig(2 * MIB);
    while (log_rig_info(&rig).checkpoints < 3)
        log_rig_run(&rig, &mixed, 100);
    log_rig_settle(&rig);
    uint64_t newer = rig.log->generation % LOG_SUPERBLOCKS;
    log_rig_stop(&rig);
    log_disk_rot(&rig.disk, 1 - newer, 100);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    log_rig_stop(&rig);
    for (uint64_t block = 0; block < LOG_SUPERBLOCKS; block++)
        log_disk_rot(&rig.disk, block, 200);
    CHECK(!isw_log_open(rig.disk.fd, 0, error, sizeof error) && errno == EMEDIUMTYPE);
    log_rig_close(&rig);
}

/* ---- a chain that ends too early ---- */

static int opens(uint32_t flags)
{
    isw_log *log = isw_log_open(rig.disk.fd, flags, (char[128]){0}, 128);
    if (!log)
        return errno;
    isw_log_close(log);
    return 0;
}

/* What the map says of each page: what it is now; from that page on it may also be without a place. */
static void look(uint32_t flags, uint64_t from)
{
    static const uint8_t zeroes[PAGE];
    isw_log *log = isw_log_open(rig.disk.fd, flags, (char[128]){0}, 128);
    CHECK(log);
    for (uint64_t page = 0; page < rig.oracle.pages; page++) {
        uint32_t place = log->place[page];
        const uint8_t *data = place == LOG_PLACE_BAD ? NULL : place ? rig.disk.image + log_place_offset(log, place) : zeroes;
        if (page < from || place)
            log_oracle_read(&rig.oracle, page, data, false, "the map");
    }
    isw_log_close(log);
}

/* Where nothing says more, a header that has rotted ends the chain as one does that was under way: but never is another page's
 * content read, nor a page torn.  Where a header says that more was durable, as the last one does after an orderly stop, the log is
 * not used, unless somebody wants to see what there is. */
TEST(damaged_header_shows_no_page_in_another)
{
    enum { ALL = 200, FIRST = 100 };
    for (int orderly = 0; orderly < 2; orderly++) {
        open_rig(4 * MIB);
        for (uint64_t page = 0; page < ALL; page++)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
        uint64_t header = log_rig_block_of(&rig, FIRST) - 1;
        if (orderly)
            log_rig_stop(&rig);
        else
            log_rig_kill(&rig);
        log_disk_rot(&rig.disk, header, 60);
        CHECK_EQUAL(opens(ISW_LOG_READ_ONLY), orderly ? EUCLEAN : 0);
        CHECK_EQUAL(opens(ISW_LOG_READ_ONLY | ISW_LOG_SAME_BOOT), orderly ? EUCLEAN : 0);
        look(ISW_LOG_DAMAGED | ISW_LOG_READ_ONLY, FIRST);
        if (orderly)
            log_disk_rot(&rig.disk, header, 60); /* back */
        CHECK(log_rig_start(&rig, 0));
        for (uint64_t page = 0; page < (orderly ? ALL : FIRST); page++)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, page, 1), 0);
        log_rig_close(&rig);
    }
}

/* Told to do with what there is, a log goes on from there, and what it lost never comes back. */
TEST(damaged_log_goes_on_when_told)
{
    open_rig(8 * MIB); /* more than a block of the map has */
    log_rig_fill(&rig);
    while (log_rig_info(&rig).checkpoints < 2)
        log_rig_run(&rig, &mixed, 100);
    log_rig_settle(&rig);
    while (rig.log->block > 300 || rig.log->begun_since_checkpoint > 1 || rig.log->checkpoint.stage != CHECKPOINT_NONE)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 7, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 7, 1), 0);
    uint64_t header = log_rig_block_of(&rig, 7) - 1, map = log_map_at(&rig.log->geometry, rig.log->generation % 2);
    for (uint64_t page = 10; page < 30; page++)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
    log_rig_stop(&rig);
    log_disk_rot(&rig.disk, header, 60);
    CHECK_EQUAL(opens(0), EUCLEAN);
    log_disk_rot(&rig.disk, map, 60);
    log_disk_spoil(&rig.disk, map + 2);
    CHECK_EQUAL(opens(0), EBADMSG);
    CHECK(log_rig_start(&rig, ISW_LOG_DAMAGED) && log_rig_info(&rig).checkpoints == LOG_SUPERBLOCKS);
    log_rig_reopen(&rig, 0); /* once is enough */
    for (uint64_t page = 0; page < rig.oracle.pages; page++) {
        uint64_t part = page / LOG_MAP_ENTRIES;
        if (part == 0 || part == 2 || rig.log->place[page] == LOG_PLACE_BAD)
            rig.oracle.page[page].rotten = true;
        else
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, page, 1), 0);
    }
    for (int i = 0; i < 3; i++) {
        for (uint64_t page = 0; page < rig.oracle.pages; page += i ? 97 : 1) /* what it lost is written anew */
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        if (i == 1) {
            log_rig_kill(&rig);
            log_rig_power_cut(&rig);
        } else {
            log_rig_stop(&rig);
        }
        CHECK(log_rig_start(&rig, 0));
        log_rig_read_all(&rig);
    }
    log_rig_close(&rig);
}

/* The last chunk before an orderly stop: what has rotted in it is said to be unreadable, and the version before it does not count. */
static void last_chunk_rots(uint64_t chunks, uint64_t pages, uint64_t last, uint32_t full)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    while (rig.log->block != full) /* in a segment that is new, as far as it goes */
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 1), 0);
    for (uint64_t i = 0; i < chunks; i++)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 8, pages), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 8, last), 0);
    uint64_t block = log_rig_block_of(&rig, 8);
    log_rig_stop(&rig);
    log_disk_rot(&rig.disk, block, 1000);
    rig.oracle.page[8].rotten = true;
    for (int i = 0; i < 2; i++) {
        CHECK(log_rig_start(&rig, i ? ISW_LOG_SAME_BOOT : 0));
        CHECK_EQUAL(log_rig_info(&rig).torn_pages, 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 8, 1), EIO);
        log_rig_read_all(&rig);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 100, 1), 0);
        log_rig_stop(&rig);
    }
    log_rig_close(&rig);
}

TEST(last_chunk_before_a_stop_rots)
{
    last_chunk_rots(0, 1, 1, 2);
    last_chunk_rots(1, 3, 2, 2);
    last_chunk_rots(124, 3, 13, 2); /* the segment is full to its last block: what signs it stands in the next */
}

/* Over 512 MiB what is live circulates in fewer segments than there are between two checkpoints. */
static const struct log_rig_load circulating = {.zeroes = 4, .syncs = 10, .depth = 24, .pages_max = 256, .hot_pages = 1500};

/* Whatever its moment: when the newest superblock rots, the one before it brings every page back as it is now, or the log is not used. */
TEST(newest_superblock_rots)
{
    uint32_t refused = 0, opened = 0, damaged = 0;
    open_rig(512ull * MIB);
    while (log_rig_info(&rig).checkpoints < 6 || !refused || !opened) {
        CHECK(log_rig_info(&rig).checkpoints < 50);
        log_rig_run(&rig, &circulating, 100);
        log_rig_settle(&rig);
        if (rig.log->checkpoint.stage != CHECKPOINT_NONE || rig.log->generation < 3)
            continue;
        uint64_t newest = rig.log->generation % LOG_SUPERBLOCKS;
        log_disk_rot(&rig.disk, newest, 40);
        int error = opens(ISW_LOG_READ_ONLY);
        CHECK(!error || error == EUCLEAN || error == EBADMSG);
        refused += error == EUCLEAN;
        damaged += error == EBADMSG;
        opened += !error;
        if (!error && opened % 16 == 1)
            look(ISW_LOG_READ_ONLY, rig.oracle.pages);
        log_disk_rot(&rig.disk, newest, 40);
    }
    CHECK(!damaged);
    log_rig_close(&rig);
}

/* Where the chain of the older superblock breaks off at a segment that was used anew, no header near it says so: they have gone, too. */
static int opens_without_headers(uint64_t *reads)
{
    static uint8_t was[LOG_SEGMENT_BLOCKS + 1];
    isw_log *log = isw_log_open(rig.disk.fd, ISW_LOG_READ_ONLY | ISW_LOG_DAMAGED, (char[128]){0}, 128);
    CHECK(log);
    uint64_t segment = log_segment_offset(log, log->tail.segment, 0) / PAGE, next = log_segment_offset(log, log->tail.next, 0) / PAGE;
    for (uint64_t i = 0; i <= LOG_SEGMENT_BLOCKS; i++) {
        uint64_t block = i == LOG_SEGMENT_BLOCKS ? next : segment + i;
        was[i] = (uint8_t)rig.disk.flags[block];
        if (i >= log->tail.block)
            log_disk_spoil(&rig.disk, block);
    }
    isw_log_close(log);
    *reads = rig.disk.descriptor_reads;
    int error = opens(ISW_LOG_READ_ONLY);
    *reads = rig.disk.descriptor_reads - *reads;
    for (uint64_t i = 0; i <= LOG_SEGMENT_BLOCKS; i++)
        if (!(was[i] & LOG_BLOCK_BAD))
            rig.disk.flags[i == LOG_SEGMENT_BLOCKS ? next : segment + i] &= (uint16_t)~LOG_BLOCK_BAD;
    return error;
}

/* What the map of a rotten superblock says is enough to know that the chain of the other one ends too early: headers are not needed for
 * it, and those of the whole disk are not read. */
TEST(map_of_a_rotten_superblock_tells)
{
    bool refused = false;
    uint64_t reads = 0;
    open_rig(512ull * MIB);
    while (!refused) {
        CHECK(log_rig_info(&rig).checkpoints < 200);
        log_rig_run(&rig, &circulating, 100);
        log_rig_settle(&rig);
        if (rig.log->checkpoint.stage != CHECKPOINT_NONE || rig.log->generation < 3)
            continue;
        uint64_t newest = rig.log->generation % LOG_SUPERBLOCKS;
        log_disk_rot(&rig.disk, newest, 40);
        if (opens(ISW_LOG_READ_ONLY) == EUCLEAN) {
            CHECK_EQUAL(opens_without_headers(&reads), EUCLEAN);
            refused = true;
        }
        log_disk_rot(&rig.disk, newest, 40);
    }
    if (reads > log_rig_info(&rig).segments / 2)
        FAIL("%llu reads of %llu segments", (unsigned long long)reads, (unsigned long long)log_rig_info(&rig).segments);
    log_rig_close(&rig);
}

static uint64_t reads_to_open(void)
{
    uint64_t before = rig.disk.descriptor_reads;
    CHECK_EQUAL(opens(ISW_LOG_READ_ONLY), 0);
    return rig.disk.descriptor_reads - before;
}

/* Beside the superblock that is left a rotten one costs its map to be read, in large pieces, and where it was the older one a block. */
TEST(doubt_costs_a_map)
{
    static uint8_t whole[PAGE];
    struct log_rig_load load = {.syncs = 10, .depth = 24, .pages_max = 256};
    open_rig(512ull * MIB);
    while (log_rig_info(&rig).checkpoints < 3)
        log_rig_run(&rig, &load, 100);
    log_rig_settle(&rig);
    uint64_t newest = rig.log->generation % LOG_SUPERBLOCKS;
    uint64_t map = (rig.log->geometry.map_blocks + LOG_MAP_BLOCKS_AT_ONCE - 1) / LOG_MAP_BLOCKS_AT_ONCE;
    log_rig_stop(&rig);
    for (uint64_t i = 0; i < LOG_SUPERBLOCKS; i++) {
        uint8_t *block = rig.disk.image + i * PAGE;
        memcpy(whole, block, PAGE);
        memset(block, 0, PAGE); /* none was ever there */
        uint64_t sure = reads_to_open();
        memcpy(block, whole, PAGE);
        block[40] ^= 1;
        CHECK_EQUAL(reads_to_open() - sure, 1 + (i == newest ? map : 0));
        memcpy(block, whole, PAGE);
    }
    log_rig_close(&rig);
}

/* Of what a process wrote last a power cut left the second chunk, not the first.  The next process writes one of the same size there:
 * what is behind it is not the chain's. */
TEST(chunk_of_a_lost_life_does_not_follow_the_next_one)
{
    open_rig(4 * MIB);
    log_rig_fill(&rig);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_reopen(&rig, 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 8, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 9, 1), 0);
    uint64_t lost = log_rig_block_of(&rig, 8) - 1;
    log_rig_kill(&rig);
    log_disk_rot(&rig.disk, lost, 60);
    log_disk_settle(&rig.disk);
    log_rig_power_cut(&rig);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig); /* as they were */
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 10, 1), 0);
    CHECK_EQUAL(log_rig_block_of(&rig, 10) - 1, lost);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    log_rig_kill(&rig);
    CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

/* What was torn at an opening stays the version before it, also when the superblock rots that has seen to that: at once, or behind
 * more chunks. */
TEST(torn_page_is_torn_for_both_superblocks)
{
    for (int more = 0; more < 2; more++) {
        open_rig(32 * MIB); /* no checkpoint is due so soon */
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 0, 20), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 8, 2), 0);
        uint64_t torn = log_rig_block_of(&rig, 8);
        log_rig_kill(&rig);
        log_disk_rot(&rig.disk, torn, 1000);
        log_disk_settle(&rig.disk);
        log_rig_power_cut(&rig);
        CHECK(log_rig_start(&rig, 0));
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 8, 1), 0);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 100, 1), 0);
        if (more)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 100, 1), 0);
        uint64_t newest = rig.log->generation % LOG_SUPERBLOCKS;
        log_rig_kill(&rig);
        log_disk_rot(&rig.disk, newest, 40);
        CHECK(log_rig_start(&rig, ISW_LOG_SAME_BOOT));
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_READ, 8, 1), 0);
        log_rig_close(&rig);
    }
}

/* A block that cannot be read, of a page that lives or has died, keeps nothing else from being cleaned: the log is written over many
 * times, and its page has EIO or, written anew, itself. */
static void cannot_be_read(uint64_t size_mib, bool dead)
{
    open_rig(size_mib * MIB);
    uint64_t pages = size_mib * MIB / PAGE;
    log_rig_fill(&rig);
    log_disk_spoil(&rig.disk, log_rig_block_of(&rig, 5));
    rig.oracle.page[5].rotten = !dead;
    if (dead)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 5, 1), 0);
    for (uint64_t i = 0; i < 4 * pages; i++)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 20 + chance_below(&rig.chance, pages - 20), 1), 0);
    CHECK(log_rig_info(&rig).cleaned_segments > 2 * pages / LOG_SEGMENT_PAGES);
    CHECK_EQUAL(log_rig_info(&rig).bad_pages, 0); /* it may be read one day */
    log_rig_read_all(&rig);
    if (!dead)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, 5, 1), 0);
    rig.oracle.page[5].rotten = false;
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

TEST(block_that_cannot_be_read)
{
    cannot_be_read(16, false);
    cannot_be_read(64, false);
}

TEST(dead_block_that_cannot_be_read)
{
    cannot_be_read(16, true);
}
