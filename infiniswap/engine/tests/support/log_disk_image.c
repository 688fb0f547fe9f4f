/* What is on a log's disk, and what would be after a power cut. */
#include "log_disk.h"

#include <errno.h>

enum { SECTOR = 512, BLOCK = ISW_PAGE_BYTES, ALL_SYNCS = ((1 << LOG_DISK_SYNCS) - 1) * LOG_BLOCK_SYNCING };

static void touch(struct log_disk *disk, uint64_t block)
{
    uint16_t *flags = &disk->flags[block];
    if (*flags & ALL_SYNCS) /* the kernel has written it back before it changes */
        memcpy(disk->durable + block * BLOCK, disk->image + block * BLOCK, BLOCK);
    *flags = (uint16_t)((*flags & ~(ALL_SYNCS | LOG_BLOCK_FORGOTTEN | LOG_BLOCK_BAD)) | LOG_BLOCK_DIRTY);
    disk->written_blocks++;
}

/* data: NULL for zeroes. */
void log_disk_change(struct log_disk *disk, uint64_t at, const void *data, uint64_t bytes)
{
    CHECK(at + bytes <= disk->size_bytes);
    for (uint64_t block = at / BLOCK; bytes && block <= (at + bytes - 1) / BLOCK; block++)
        touch(disk, block);
    if (data)
        memcpy(disk->image + at, data, bytes);
    else
        memset(disk->image + at, 0, bytes);
}

/* ---- syncs ---- */

uint16_t log_disk_sync_begins(struct log_disk *disk)
{
    uint32_t taken = 0, flag = LOG_BLOCK_SYNCING;
    for (uint32_t i = 0; i < disk->count; i++)
        taken |= disk->waiting[i].flag;
    while (taken & flag)
        flag <<= 1;
    CHECK(flag & ALL_SYNCS);
    for (uint64_t block = 0; block < disk->blocks; block++)
        if (disk->flags[block] & LOG_BLOCK_DIRTY)
            disk->flags[block] = (uint16_t)((disk->flags[block] ^ LOG_BLOCK_DIRTY) | flag);
    return (uint16_t)flag;
}

/* As Linux does: an error is told once, and then all counts as clean.  It may be about anything changed so far. */
static void sync_fails(struct log_disk *disk)
{
    disk->sync_faults++;
    for (uint64_t block = 0; block < disk->blocks; block++) {
        uint16_t *flags = &disk->flags[block];
        if (!(*flags & (ALL_SYNCS | LOG_BLOCK_DIRTY)) || chance_in(&disk->chance, 3))
            continue;
        *flags = (uint16_t)((*flags & ~(ALL_SYNCS | LOG_BLOCK_DIRTY)) | LOG_BLOCK_FORGOTTEN);
        if (log_disk_one_in(disk, disk->manners.drop_one_in))
            memcpy(disk->image + block * BLOCK, disk->durable + block * BLOCK, BLOCK);
    }
    if (disk->sync_failed)
        disk->sync_failed(disk->owner);
}

int log_disk_sync_ends(struct log_disk *disk, uint16_t flag)
{
    disk->syncs++;
    if (log_disk_one_in(disk, disk->manners.sync_error_one_in)) {
        sync_fails(disk);
        return EIO;
    }
    for (uint64_t block = 0; block < disk->blocks; block++)
        if (disk->flags[block] & flag) {
            memcpy(disk->durable + block * BLOCK, disk->image + block * BLOCK, BLOCK);
            disk->flags[block] &= (uint16_t)~ALL_SYNCS;
        }
    return 0;
}

int log_disk_sync_now(struct log_disk *disk)
{
    return log_disk_sync_ends(disk, log_disk_sync_begins(disk));
}

void log_disk_power_cut(struct log_disk *disk)
{
    CHECK(!disk->running);
    uint64_t taste = chance_below(&disk->chance, 3); /* now and then all is lost, or nothing */
    for (uint64_t block = 0; block < disk->blocks; block++) {
        uint8_t *image = disk->image + block * BLOCK, *durable = disk->durable + block * BLOCK;
        if (!(disk->flags[block] & (LOG_BLOCK_DIRTY | ALL_SYNCS | LOG_BLOCK_FORGOTTEN)))
            continue;
        uint64_t fate = taste == 0 ? 1 : chance_below(&disk->chance, taste == 1 ? 3 : 32);
        for (uint32_t at = 0; at < BLOCK; at += SECTOR)
            if (fate == 1 || (fate == 2 && chance_in(&disk->chance, 2)))
                memcpy(image + at, durable + at, SECTOR);
        memcpy(durable, image, BLOCK);
        disk->flags[block] &= LOG_BLOCK_BAD;
    }
}

void log_disk_settle(struct log_disk *disk)
{
    memcpy(disk->durable, disk->image, disk->blocks * BLOCK);
    for (uint64_t block = 0; block < disk->blocks; block++)
        disk->flags[block] &= LOG_BLOCK_BAD;
}

void log_disk_rot(struct log_disk *disk, uint64_t block, uint32_t byte)
{
    disk->image[block * BLOCK + byte] ^= 0x10;
    memcpy(disk->durable + block * BLOCK, disk->image + block * BLOCK, BLOCK);
}

void log_disk_spoil(struct log_disk *disk, uint64_t block)
{
    disk->flags[block] |= LOG_BLOCK_BAD;
}

void log_disk_syncs_end(struct log_disk *disk)
{
    for (uint64_t block = 0; block < disk->blocks; block++)
        if (disk->flags[block] & ALL_SYNCS)
            disk->flags[block] = (uint16_t)((disk->flags[block] & ~ALL_SYNCS) | LOG_BLOCK_DIRTY);
}
