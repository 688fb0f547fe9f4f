/* Proves of a log that ended in order that one header of its chain which rots is noticed, whichever it is: what was written after it is not
 * read as it was before without a word. */
#include "log_rig.h"

#include "log.h"

#include <errno.h>

enum { MIB = 1 << 20, PAGE = ISW_PAGE_BYTES };

static struct log_rig rig;

static int opens(void)
{
    char said[128];
    isw_log *log = isw_log_open(rig.disk.fd, ISW_LOG_READ_ONLY | ISW_LOG_SAME_BOOT, said, sizeof said);
    if (!log)
        return errno;
    isw_log_close(log);
    return 0;
}

/* Writes of up to pages, and a FLUSH behind one in so many; 0: none. */
static void fill(uint64_t size_mib, uint32_t pages, uint32_t flushes)
{
    log_rig_open(&rig, size_mib * MIB, chance_start(1));
    uint64_t all = size_mib * MIB / PAGE, left = 3000;
    for (uint32_t i = 0; left; i++) {
        uint32_t count = 1 + (uint32_t)chance_below(&rig.chance, pages < left ? pages : left);
        CHECK_EQUAL(log_rig_do(&rig, BACKUP_WRITE, chance_below(&rig.chance, all - count), count), 0);
        left -= count;
        if (flushes && i % flushes == 0)
            CHECK_EQUAL(log_rig_do(&rig, BACKUP_SYNC, 0, 0), 0);
    }
    log_rig_settle(&rig);
}

/* Each header of the chain behind the last checkpoint but the signature itself, which has nothing behind it. */
static void each_header_rots(uint64_t size_mib, uint32_t pages, uint32_t flushes)
{
    fill(size_mib, pages, flushes);
    uint64_t after = rig.log->checkpoint_sequence, last = rig.log->completed, met = 0;
    struct log_geometry geometry = rig.log->geometry;
    uint8_t id[LOG_ID_BYTES];
    memcpy(id, rig.log->id, sizeof id);
    log_rig_stop(&rig);
    CHECK_EQUAL(opens(), 0);
    for (uint64_t at = geometry.segments_at; at < geometry.segments_at + (uint64_t)geometry.segments * LOG_SEGMENT_BLOCKS; at++) {
        union log_block *block = (union log_block *)(void *)(rig.disk.image + at * PAGE);
        if (!log_header_valid(block, id, &geometry) || block->header.sequence <= after || block->header.sequence > last)
            continue;
        rig.disk.image[at * PAGE + 100] ^= 1;
        if (opens() != EUCLEAN)
            FAIL("the header at block %llu, of chunk %llu of %llu to %llu, has rotted, and the log opens", (unsigned long long)at,
                 (unsigned long long)(block->header.sequence), (unsigned long long)after, (unsigned long long)last);
        rig.disk.image[at * PAGE + 100] ^= 1;
        met++;
    }
    CHECK(met > 10);
    CHECK_EQUAL(opens(), 0);
    CHECK(log_rig_start(&rig, 0));
    log_rig_read_all(&rig);
    log_rig_close(&rig);
}

TEST(each_header_rots_that_no_flush_follows)
{
    each_header_rots(512, 250, 0);
    each_header_rots(512, 40, 0);
}

TEST(each_header_rots_with_flushes)
{
    each_header_rots(512, 250, 1);
    each_header_rots(512, 40, 7);
}
