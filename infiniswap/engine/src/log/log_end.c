/* A log's orderly end, and what tells that a chain once went on where it ends now.
 *
 * The end is signed: a chunk without pages, behind all others, whose header says that they are durable.  What does not meet its
 * checksum then has rotted, also in the last of them, and is not taken for a write that was under way.
 *
 * A chain that ends too early is damage: its pages would be read as they were before.  Each header says up to where all was
 * durable when it was written, so nobody comes to less than that, unless a block has rotted, or the superblock that counted has
 * and segments were used anew since the one before it. */
#include "log_end.h"

#include "log_doubt.h"
#include "loop.h"

#include <string.h>
#include <unistd.h>

enum { BEYOND_LEAPS = 1 << 20, ENDS = 1000 };

/* Where the chain goes on: behind its last chunk, or where that one is the last of its segment in the next.  False: nowhere. */
static bool place_of_signature(isw_log *log, uint32_t *segment, uint32_t *block, uint32_t *next)
{
    *segment = log->tail.segment;
    *block = log->tail.block;
    *next = log->tail.next;
    if (*block < LOG_SEGMENT_BLOCKS)
        return true;
    *segment = log->tail.next;
    *block = 0;
    *next = log->next;
    return log->next != log->tail.next || log_segment_take(log, next);
}

/* Nothing is in flight any more.  Where it does not work the log is as after a kill. */
void log_sign(isw_log *log)
{
    union log_block *block = log->checkpoint.superblock; /* nobody needs it any more */
    uint32_t segment, at, next;
    if (log->sync.in_flight || log->sync.untold) /* the next fdatasync would succeed over what that one has lost */
        return;
    if (!log->alive || log->broken || log->completed == log->begun_at || log->completed <= log->checkpoint_sequence)
        return;
    if (fdatasync(log->fd) < 0 || !place_of_signature(log, &segment, &at, &next))
        return;
    *block = (union log_block){.header = {.sequence = log->sequence + 1,
                                          .previous = log->completed,
                                          .completed = log->completed,
                                          .durable = log->completed,
                                          .next = next}};
    memcpy(block->header.id, log->id, LOG_ID_BYTES);
    log_header_seal(block);
    if (pwrite(log->fd, block, sizeof *block, (off_t)log_segment_offset(log, segment, at)) == sizeof *block)
        (void)!fdatasync(log->fd);
}

/* ---- the other end ---- */

struct trace { /* of a chain that is followed past what has rotted of it */
    uint64_t sequence; /* of the latest of its headers that were met */
    uint32_t next;     /* segment that this one names */
};

/* Whether a header in those blocks of the segment says so. */
static bool goes_on(isw_log *log, uint32_t segment, uint32_t from, uint32_t to, struct trace *trace)
{
    union log_block *blocks = log->checkpoint.blocks; /* nobody uses them yet */
    for (uint32_t block = from; block < to;) {
        uint32_t count = to - block < LOG_MAP_BLOCKS_AT_ONCE ? to - block : LOG_MAP_BLOCKS_AT_ONCE;
        ssize_t got = pread(log->fd, blocks, (size_t)count * LOG_BLOCK_BYTES, (off_t)log_segment_offset(log, segment, block));
        for (uint32_t i = 0; got > 0 && i < (size_t)got / LOG_BLOCK_BYTES; i++) {
            const struct log_header *header = &blocks[i].header;
            if (!log_header_valid(&blocks[i], log->id, &log->geometry))
                continue;
            if (header->durable > log->completed)
                return true;
            if (header->sequence > trace->sequence)
                *trace = (struct trace){header->sequence, (uint32_t)header->next};
        }
        block += got < LOG_BLOCK_BYTES ? 1 : (uint32_t)((size_t)got / LOG_BLOCK_BYTES); /* past one that cannot be read */
    }
    return false;
}

/* What was durable a header says that was written after the next fdatasync, or the signature: that may be segments away.  So the chain is
 * followed past a header that has rotted, by those that stand behind it in its segment and in the one that is named as the next. */
bool log_ends_early(isw_log *log, const struct log_doubt *doubt)
{
    const struct log_tail *tail = &log->tail;
    struct trace trace = {log->completed, tail->next};
    if (tail->segment < log->geometry.segments &&
        (goes_on(log, tail->segment, tail->block, LOG_SEGMENT_BLOCKS, &trace) || goes_on(log, tail->segment, 0, 1, &trace)))
        return true;
    if (doubt && log_doubt_stays(log, doubt))
        return true;
    for (uint32_t hops = 0; hops < log->geometry.segments && trace.next < log->geometry.segments; hops++) {
        uint64_t before = trace.sequence;
        if (goes_on(log, trace.next, 0, LOG_SEGMENT_BLOCKS, &trace))
            return true;
        if (trace.sequence == before)
            break;
    }
    return false;
}

/* No header that stands anywhere has a sequence number as high: since the superblock that counts there were fewer chunks and openings.
 * Not always the same, for a rotten superblock may have been that of an end like this one. */
static uint64_t beyond_all(const isw_log *log)
{
    return log->completed + (1 + clock_ns() / 1024 % ENDS) * BEYOND_LEAPS * LOG_SEQUENCE_LEAP;
}

bool log_end_here(isw_log *log)
{
    uint32_t next = 0;
    while (next < log->geometry.segments && (log->segment[next].live || log->segment[next].last > log->checkpoint_sequence))
        next++;
    if (next == log->geometry.segments)
        return false;
    log->completed = beyond_all(log);
    log->tail = (struct log_tail){next, 0, next};
    return true;
}
