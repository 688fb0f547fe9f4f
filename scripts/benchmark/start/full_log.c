/* Makes a log full: each of its pages has a place, and the chain behind its last checkpoint is as long as it ever gets.
 *
 *     full_log FILE CHUNK_PAGES
 *
 * FILE holds an empty log, of which nobody has it open.  What is written is what a device would have written in time, but for
 * pages that only the map tells of: their blocks stay holes, for no start reads them.  Prints what stands behind the checkpoint. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

enum { LIVE_BLOCKS = 500, MAP_BLOCKS_AT_ONCE = 256, MAP_SEQUENCE = 1 << 20 };
#define SPREAD 2654435761u /* a prime: modulo a number of pages that it does not divide it takes each to one of its own */

static union log_block superblock, chunk[1 + LOG_CHUNK_ENTRIES];
static struct log_geometry geometry;
static int fd;

static _Noreturn void give_up(const char *what)
{
    fprintf(stderr, "full_log: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void put(const void *from, size_t blocks, uint64_t at)
{
    const char *data = from;
    for (size_t left = blocks * LOG_BLOCK_BYTES, done = 0; left; left -= done) {
        ssize_t went = pwrite(fd, data, left, (off_t)(at * LOG_BLOCK_BYTES + (blocks * LOG_BLOCK_BYTES - left)));
        if (went <= 0)
            give_up("writing");
        done = (size_t)went;
        data += done;
    }
}

static void take_superblock(void)
{
    for (uint64_t i = 0; i < LOG_SUPERBLOCKS; i++) {
        union log_block block;
        if (pread(fd, &block, sizeof block, (off_t)(i * LOG_BLOCK_BYTES)) != sizeof block)
            give_up("reading");
        if (log_superblock_valid(&block) && block.superblock.generation > superblock.superblock.generation)
            superblock = block;
    }
    errno = EMEDIUMTYPE;
    if (!superblock.superblock.generation || log_geometry(superblock.superblock.size_bytes, &geometry))
        give_up("no log");
}

/* Where a page is: pages that are neighbours are not so in a log that has been written at random. */
static uint32_t place_of(uint64_t page)
{
    uint64_t slot = page * SPREAD % geometry.pages;
    return log_place((uint32_t)(slot / LIVE_BLOCKS), (uint32_t)(slot % LIVE_BLOCKS + 1));
}

static void write_map(uint32_t area, uint64_t generation)
{
    static union log_block blocks[MAP_BLOCKS_AT_ONCE];
    for (uint32_t at = 0; at < geometry.map_blocks;) {
        uint32_t count = 0, first = at;
        for (; count < MAP_BLOCKS_AT_ONCE && at < geometry.map_blocks; count++, at++) {
            union log_block *block = &blocks[count];
            memset(block, 0, sizeof *block);
            block->map.number = at;
            block->map.generation = generation;
            for (uint32_t i = 0; i < LOG_MAP_ENTRIES && (uint64_t)at * LOG_MAP_ENTRIES + i < geometry.pages; i++) {
                block->map.place[i] = place_of((uint64_t)at * LOG_MAP_ENTRIES + i);
                block->map.check[i] = (uint16_t)i;
            }
            log_map_seal(block);
        }
        put(blocks, count, log_map_at(&geometry, area) + first);
    }
}

/* One more, at that block; next: the segment after its own. */
static void write_chunk(uint64_t sequence, uint32_t segment, uint32_t block, uint32_t pages)
{
    struct log_header *header = &chunk[0].header;
    memset(header, 0, sizeof *header);
    memcpy(header->id, superblock.superblock.id, LOG_ID_BYTES);
    header->sequence = sequence;
    header->previous = header->completed = header->durable = sequence - 1;
    header->next = segment + 1;
    header->entries = header->pages = pages;
    uint32_t crc = isw_crc32c(&chunk[1], sizeof chunk[1]);
    for (uint32_t i = 0; i < pages; i++) {
        uint64_t page = (sequence * LOG_CHUNK_ENTRIES + i) * SPREAD % geometry.pages;
        header->entry[i] = (struct log_entry){.page_kind = log_page_kind(page, LOG_PAGE), .crc = crc};
    }
    log_header_seal(&chunk[0]);
    put(chunk, 1 + pages, geometry.segments_at + (uint64_t)segment * LOG_SEGMENT_BLOCKS + block);
}

int main(int argc, char **argv)
{
    long pages = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (pages < 1 || pages > LOG_CHUNK_ENTRIES) {
        fprintf(stderr, "usage: full_log FILE CHUNK_PAGES\n");
        return 2;
    }
    fd = open(argv[1], O_RDWR | O_CLOEXEC);
    if (fd < 0)
        give_up(argv[1]);
    take_superblock();
    memset(&chunk[1], 0x5a, sizeof chunk - sizeof chunk[0]);
    uint32_t first = (uint32_t)((geometry.pages + LIVE_BLOCKS - 1) / LIVE_BLOCKS);
    uint32_t segments = log_checkpoint_interval(&geometry);
    errno = EFBIG;
    if (first + segments + 1 > geometry.segments)
        give_up("no room behind the map's segments");
    struct log_superblock *next = &superblock.superblock;
    next->generation++;
    next->area = next->generation % 2;
    next->sequence = MAP_SEQUENCE;
    next->segment = first - 1;
    next->block = LOG_SEGMENT_BLOCKS;
    next->next = first;
    write_map(next->area, next->generation);
    uint64_t sequence = MAP_SEQUENCE;
    for (uint32_t segment = first; segment < first + segments; segment++)
        for (uint32_t block = 0; block + 1 + (uint32_t)pages <= LOG_SEGMENT_BLOCKS; block += 1 + (uint32_t)pages)
            write_chunk(++sequence, segment, block, (uint32_t)pages);
    log_superblock_seal(&superblock);
    put(&superblock, 1, next->generation % LOG_SUPERBLOCKS);
    if (fsync(fd) < 0)
        give_up("fsync");
    printf("%llu chunks in %u segments\n", (unsigned long long)(sequence - MAP_SEQUENCE), segments);
    return 0;
}
