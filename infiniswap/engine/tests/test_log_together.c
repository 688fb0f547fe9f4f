/* Proves of reads that a log may do together: it does so where they lie near each other, in one read of the disk and over what lies
 * between them; each is answered for itself, also where the disk fails.  test_log_model.c mixes them with all else. */
#include "log_rig.h"

#include "log.h"

#include <errno.h>

enum { MIB = 1 << 20, PAGE = ISW_PAGE_BYTES, MANY = 32 };

static struct log_rig rig;

/* So many pages, far from each other in the device, follow each other in the log. */
static void open_rig(uint64_t page[MANY])
{
    log_rig_open(&rig, 8 * MIB, chance_start(1));
    rig.disk.manners.in_order = true;
    for (uint32_t i = 0; i < MANY; i++) {
        page[i] = 7 + (uint64_t)i * 37 % MANY * 50;
        CHECK(log_rig_submit(&rig, BACKUP_WRITE, page[i], 1));
    }
    log_rig_settle(&rig);
    for (uint32_t i = 1; i < MANY; i++)
        CHECK_EQUAL(log_rig_block_of(&rig, page[i]), log_rig_block_of(&rig, page[i - 1]) + 1);
}

/* How many reads of the disk that takes to have every step-th, handed in in this order. */
static uint64_t reads_of(const uint64_t *page, uint32_t first, uint32_t step)
{
    uint64_t before = rig.disk.reads;
    for (uint32_t i = first; i < MANY; i += step)
        CHECK(log_rig_submit(&rig, BACKUP_READ, page[i], 1));
    log_rig_settle(&rig);
    return rig.disk.reads - before;
}

static void write_again(const uint64_t *page, uint32_t first, uint32_t end, uint32_t step)
{
    for (uint32_t i = first; i < end; i += step)
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page[i], 1), 0);
}

TEST(neighbours_in_the_log_are_one_read)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 0;
    CHECK_EQUAL(reads_of(page, 0, 1), MANY);
    rig.together_one_in = 1;
    CHECK_EQUAL(reads_of(page, 0, 1), 1);
    CHECK_EQUAL(rig.errors, 0);
    log_rig_close(&rig);
}

TEST(what_lies_between_is_read_over)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    write_again(page, 1, MANY, 2); /* every other one is elsewhere now */
    CHECK_EQUAL(reads_of(page, 0, 2), 1);
    CHECK_EQUAL(reads_of(page, 14, BACKUP_GAP_PAGES), 1); /* two, and 15 blocks between them */
    CHECK_EQUAL(reads_of(page, 0, BACKUP_GAP_PAGES + 2), 2); /* one more than may be */
    CHECK_EQUAL(rig.errors, 0);
    log_rig_close(&rig);
}

/* Backwards they are not near each other, and nobody says that they were to be sorted. */
TEST(only_forwards)
{
    uint64_t page[MANY], backwards[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    for (uint32_t i = 0; i < MANY; i++)
        backwards[i] = page[MANY - 1 - i];
    CHECK_EQUAL(reads_of(backwards, 0, 1), MANY);
    log_rig_close(&rig);
}

TEST(a_bad_sector_is_the_concern_of_its_page_alone)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    log_disk_spoil(&rig.disk, log_rig_block_of(&rig, page[9]));
    rig.oracle.page[page[9]].rotten = true;
    CHECK_EQUAL(reads_of(page, 0, 1), 1 + MANY); /* once together, once alone */
    CHECK_EQUAL(rig.errors, 1);
    log_rig_close(&rig);
}

TEST(a_bad_sector_between_is_nobodys_concern)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    log_disk_spoil(&rig.disk, log_rig_block_of(&rig, page[9]));
    write_again(page, 9, 10, 1);
    CHECK_EQUAL(reads_of(page, 8, 2), 1 + 12); /* 8, 10, 12 ...: once together, once alone */
    CHECK_EQUAL(rig.errors, 0);
    log_rig_close(&rig);
}

TEST(a_wrong_page_is_its_own_error)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    log_disk_rot(&rig.disk, log_rig_block_of(&rig, page[MANY - 1]), 100);
    rig.oracle.page[page[MANY - 1]].rotten = true;
    CHECK_EQUAL(reads_of(page, 0, 1), 1);
    CHECK(rig.errors == 1 && log_rig_info(&rig).bad_pages == 1);
    log_rig_close(&rig);
}

/* A page that is moved, or written anew, while others are read over its old place: that is not used anew before. */
TEST(places_wait_for_reads_over_them)
{
    uint64_t page[MANY];
    open_rig(page);
    rig.together_one_in = 1;
    uint32_t segment = log_place_segment(rig.log->place[page[0]]);
    rig.disk.manners.hold = 1 << BACKUP_READ;
    for (uint32_t i = 0; i < MANY; i += 8)
        CHECK(log_rig_submit(&rig, BACKUP_READ, page[i], 1));
    for (int i = 0; i < 8; i++)
        log_rig_round(&rig);
    CHECK_EQUAL(rig.log->segment[segment].reads, 1);
    rig.disk.manners.hold = 0;
    log_rig_settle(&rig);
    CHECK(!rig.log->segment[segment].reads && !rig.errors);
    log_rig_close(&rig);
}

/* One that got some of its pages before no more could be read at once has its rest read like any: alone, and whole. */
TEST(what_is_left_of_one_is_its_own)
{
    enum { SCATTERED = LOG_PIECES - 1, HALF = 300, BEHIND = 500 };
    log_rig_open(&rig, 8 * MIB, chance_start(1));
    rig.disk.manners.in_order = true;
    rig.together_one_in = 1;
    for (uint64_t page = SCATTERED; page--;) /* backwards: no two of them are neighbours */
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, page, 1), 0);
    CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, HALF, 1), 0);
    CHECK(log_rig_submit(&rig, BACKUP_WRITE, HALF + 1, 3) && log_rig_submit(&rig, BACKUP_WRITE, BEHIND, 1));
    log_rig_settle(&rig);
    CHECK_EQUAL(log_rig_block_of(&rig, BEHIND), log_rig_block_of(&rig, HALF + 3) + 1);
    rig.disk.manners.hold = 1 << BACKUP_READ;
    CHECK(log_rig_submit(&rig, BACKUP_READ, 0, SCATTERED));
    CHECK(log_rig_submit(&rig, BACKUP_READ, HALF, 4) && log_rig_submit(&rig, BACKUP_READ, BEHIND, 1));
    for (int i = 0; i < 8; i++)
        log_rig_round(&rig);
    CHECK(!rig.log->free_pieces && rig.log->reads.first);
    rig.disk.manners.hold = 0;
    log_rig_settle(&rig);
    CHECK(!rig.errors && !log_rig_info(&rig).bad_pages);
    log_rig_close(&rig);
}
