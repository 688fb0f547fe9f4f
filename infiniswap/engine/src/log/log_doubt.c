/* The newest superblock may have rotted, and the one before it counts then: its chain brings back all that came later, unless a segment
 * of that chain was used anew.  What had rotted cannot tell where the chain had come to.  But its map can, which was whole and durable
 * before it was written: a page that has another place there than in the map before was written in between, or trimmed, and the chain
 * has to name it, and to go through its place.  A segment is used anew only when the superblock covers it, so the chain ends too early
 * somewhere before that.
 *
 * That costs one more map to be read, in sequence.  To ask each segment for a header, as one would who knew of no map, takes a disk that
 * seeks an hour a terabyte.  A map that was not written to its end belongs to no superblock: what is neither whole nor empty was the older
 * one then.  Its last block, written last, is looked at first. */
#include "log_doubt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t words(const isw_log *log)
{
    return (log->geometry.pages + 63) / 64;
}

static uint32_t read_blocks(const isw_log *log, uint32_t at, uint32_t count)
{
    uint64_t first = log_map_at(&log->geometry, (uint32_t)((log->generation + 1) % 2)) + at;
    ssize_t got = pread(log->fd, log->checkpoint.blocks, (size_t)count * LOG_BLOCK_BYTES, (off_t)(first * LOG_BLOCK_BYTES));
    return got < 0 ? 0 : (uint32_t)((size_t)got / LOG_BLOCK_BYTES);
}

/* It is of the map before, or nothing was ever written there. */
static bool is_older(const isw_log *log, const union log_block *block, uint32_t number)
{
    static const union log_block none;
    return memcmp(block, &none, sizeof none) == 0 ||
           (block->map.generation < log->generation && log_map_valid(block, number, block->map.generation));
}

static void compare(const isw_log *log, struct log_doubt *doubt, const union log_block *block, uint32_t number)
{
    uint64_t places = (uint64_t)log->geometry.segments * LOG_SEGMENT_BLOCKS, first = (uint64_t)number * LOG_MAP_ENTRIES;
    if (!log_map_valid(block, number, log->generation + 1))
        return; /* it has rotted, too */
    for (uint64_t i = 0; i < LOG_MAP_ENTRIES && first + i < log->geometry.pages; i++) {
        uint32_t place = block->map.place[i];
        if (place == log->place[first + i] || place > places)
            continue; /* also what nobody could read: no chunk says so */
        uint64_t bit = 1ull << (first + i) % 64;
        if (!place) {
            doubt->gone[(first + i) / 64] |= bit;
            continue;
        }
        doubt->moved[(first + i) / 64] |= bit;
        uint16_t *young = &doubt->young[log_place_segment(place)], blocks = (uint16_t)(log_place_block(place) + 1);
        *young = blocks > *young ? blocks : *young;
    }
}

/* False: the map is not whole. */
static bool look(const isw_log *log, struct log_doubt *doubt)
{
    uint32_t all = log->geometry.map_blocks;
    if (read_blocks(log, all - 1, 1) && is_older(log, log->checkpoint.blocks, all - 1))
        return false;
    for (uint32_t at = 0; at < all;) {
        uint32_t got = read_blocks(log, at, all - at < LOG_MAP_BLOCKS_AT_ONCE ? all - at : LOG_MAP_BLOCKS_AT_ONCE);
        got = got ? got : read_blocks(log, at, 1); /* a bad block behind it must not hide this one */
        for (uint32_t i = 0; i < got; i++) {
            if (is_older(log, &log->checkpoint.blocks[i], at + i))
                return false;
            compare(log, doubt, &log->checkpoint.blocks[i], at + i);
        }
        at += got ? got : 1;
    }
    return true;
}

int log_doubt_open(const isw_log *log, struct log_doubt **found)
{
    struct log_doubt *doubt = calloc(1, sizeof *doubt);
    *found = NULL;
    if (!doubt)
        return -ENOMEM;
    doubt->moved = calloc(words(log), sizeof *doubt->moved);
    doubt->gone = calloc(words(log), sizeof *doubt->gone);
    doubt->young = calloc(log->geometry.segments, sizeof *doubt->young);
    bool memory = doubt->moved && doubt->gone && doubt->young;
    if (memory && look(log, doubt))
        *found = doubt;
    else
        log_doubt_close(doubt);
    return memory ? 0 : -ENOMEM;
}

void log_doubt_close(struct log_doubt *doubt)
{
    if (!doubt)
        return;
    free(doubt->moved);
    free(doubt->gone);
    free(doubt->young);
    free(doubt);
}

/* Also a copy that does not count: the map may have had it. */
void log_doubt_met(struct log_doubt *doubt, uint64_t page, uint64_t pages, enum log_entry_kind kind)
{
    uint64_t *set = kind == LOG_TRIM ? doubt->gone : doubt->moved;
    for (uint64_t end = page + pages; page < end; page++)
        set[page / 64] &= ~(1ull << page % 64);
}

bool log_doubt_stays(const isw_log *log, const struct log_doubt *doubt)
{
    for (uint64_t i = 0; i < words(log); i++)
        if (doubt->moved[i] || doubt->gone[i])
            return true;
    for (uint32_t i = 0; i < log->geometry.segments; i++) {
        uint32_t seen = i == log->tail.segment ? log->tail.block : log->segment[i].last ? LOG_SEGMENT_BLOCKS : 0;
        if (doubt->young[i] > seen)
            return true;
    }
    return false;
}
