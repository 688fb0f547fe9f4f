/* Follows the chain.  Twice: how far it goes, and what its headers say of what was complete, is known only at its end.
 *
 * A page whose data do not meet the checksum is one that was under way when the power failed or the process was killed: the
 * version before it counts.  But not where a later header says that it was complete: then it rotted, its place stays, and who
 * reads it gets EIO.
 *
 * A copy of the cleaner's that no fdatasync is known to cover does not count while the original is there: the fdatasync may have
 * failed, and who comes after it does not hear of that. */
#include "log_replay.h"

#include "log_doubt.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { HEADER_WINDOW_BLOCKS = 16 };

struct window { /* blocks of the file, of one segment */
    union log_block *block;
    uint64_t at;
    uint32_t blocks, most;
};

struct walk {
    isw_log *log;
    struct log_doubt *doubt;
    struct window headers, data, originals;
    struct log_tail at;
    uint64_t last, strict, durable; /* durable: the last chunk that an fdatasync is known to cover */
    uint64_t refused; /* copies */
    bool signed_last; /* the last chunk says that all are durable: an orderly end */
    uint32_t segment, block; /* of the chunk that was found */
    const union log_block *header;
};

/* The block of the file; NULL: it cannot be read. */
static const union log_block *block_at(const isw_log *log, struct window *window, uint32_t segment, uint32_t block)
{
    uint64_t number = log->geometry.segments_at + (uint64_t)segment * LOG_SEGMENT_BLOCKS + block;
    if (number >= window->at && number < window->at + window->blocks)
        return &window->block[number - window->at];
    uint32_t left = LOG_SEGMENT_BLOCKS - block, count = left < window->most ? left : window->most;
    off_t offset = (off_t)(number * LOG_BLOCK_BYTES);
    ssize_t got = pread(log->fd, window->block, (size_t)count * LOG_BLOCK_BYTES, offset);
    if (got < LOG_BLOCK_BYTES) /* a bad block behind it must not hide this one */
        got = pread(log->fd, window->block, LOG_BLOCK_BYTES, offset);
    window->at = number;
    window->blocks = got < 0 ? 0 : (uint32_t)got / LOG_BLOCK_BYTES;
    return window->blocks ? window->block : NULL;
}

static bool is_next(struct walk *walk, uint32_t segment, uint32_t block)
{
    if (block >= LOG_SEGMENT_BLOCKS)
        return false;
    const union log_block *b = block_at(walk->log, &walk->headers, segment, block);
    if (!b || !log_header_valid(b, walk->log->id, &walk->log->geometry) || b->header.previous != walk->last ||
        b->header.sequence <= walk->last || b->header.pages >= LOG_SEGMENT_BLOCKS - block)
        return false;
    walk->header = b;
    walk->segment = segment;
    walk->block = block;
    return true;
}

static bool step(struct walk *walk)
{
    if (!is_next(walk, walk->at.segment, walk->at.block) && !is_next(walk, walk->at.next, 0))
        return false;
    const struct log_header *header = &walk->header->header;
    walk->last = header->sequence;
    walk->at = (struct log_tail){walk->segment, walk->block + 1 + header->pages, (uint32_t)header->next};
    return true;
}

/* Whether the page's data are there.  An error of the disk says no, too. */
static bool is_whole(const struct walk *walk, struct window *window, uint32_t place, uint32_t crc)
{
    const union log_block *data = block_at(walk->log, window, log_place_segment(place), log_place_block(place));
    return data && isw_crc32c(data, sizeof *data) == crc;
}

static void set(isw_log *log, uint64_t page, uint32_t place, uint32_t crc)
{
    log->place[page] = place;
    log->check[page] = place ? log_check(crc) : 0;
}

static void apply(struct walk *walk, const struct log_header *header)
{
    isw_log *log = walk->log;
    uint32_t block = walk->block;
    for (uint32_t i = 0; i < header->entries; i++) {
        const struct log_entry *entry = &header->entry[i];
        uint64_t page = log_entry_page(entry);
        uint32_t kind = log_entry_kind(entry);
        if (walk->doubt)
            log_doubt_met(walk->doubt, page, kind == LOG_TRIM ? entry->crc : 1, kind);
        if (kind == LOG_TRIM) {
            for (uint64_t n = 0; n < entry->crc; n++)
                set(log, page + n, 0, 0);
            continue;
        }
        block++;
        bool counts = kind == LOG_PAGE || log->place[page] == entry->from;
        if (counts && kind == LOG_COPY && header->sequence > walk->durable && is_whole(walk, &walk->originals, entry->from, entry->crc)) {
            walk->refused++;
            continue;
        }
        uint32_t place = log_place(walk->segment, block);
        bool whole = !counts || header->sequence <= walk->strict || is_whole(walk, &walk->data, place, entry->crc);
        if (counts && whole)
            set(log, page, place, entry->crc);
        log->torn_pages += !whole;
    }
    log->segment[walk->segment].last = header->sequence;
    log->replayed_chunks++;
}

int log_replay(isw_log *log, bool same_boot, struct log_doubt *doubt)
{
    union log_block *headers = aligned_alloc(LOG_BLOCK_BYTES, 2 * HEADER_WINDOW_BLOCKS * sizeof *headers);
    if (!headers)
        return -ENOMEM;
    struct walk walk = {.log = log,
                        .doubt = doubt,
                        .headers = {.block = headers, .most = HEADER_WINDOW_BLOCKS},
                        .originals = {.block = headers + HEADER_WINDOW_BLOCKS, .most = HEADER_WINDOW_BLOCKS},
                        .data = {.block = log->checkpoint.blocks, .most = LOG_MAP_BLOCKS_AT_ONCE}, /* nobody uses them yet */
                        .at = log->tail,
                        .last = log->completed};
    while (step(&walk)) {
        walk.durable = walk.header->header.durable > walk.durable ? walk.header->header.durable : walk.durable;
        uint64_t known = same_boot ? walk.header->header.completed : walk.header->header.durable;
        walk.strict = known > walk.strict ? known : walk.strict;
        walk.signed_last = !walk.header->header.entries && walk.header->header.durable == walk.header->header.previous;
    }
    uint64_t end = walk.last;
    walk.at = log->tail;
    walk.last = log->completed;
    while (walk.last != end && step(&walk)) {
        union log_block copy = *walk.header; /* the window goes on */
        apply(&walk, &copy.header);
    }
    log->completed = walk.last;
    log->tail = walk.at;
    log->refused_copies = walk.refused;
    log->end_unsure = log->replayed_chunks && !walk.signed_last;
    free(headers);
    return 0;
}
