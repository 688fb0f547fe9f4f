/* What lives in a victim: read at once, by the headers that stand in it or, where one is damaged, by the map; and in runs where some
 * of it cannot be read. */
#include "counters.h"
#include "log.h"
#include "loop.h"

#include <string.h>

/* It does not meet its checksum: so it is lost, and nothing else is. */
void log_clean_lost(isw_log *log, uint64_t page)
{
    uint32_t victim = log_place_segment(log->place[page]);
    count64(&log->bad_pages, 1);
    log_map_set(log, page, LOG_PLACE_BAD, 0, log->sequence);
    log->segment[victim].last = log->sequence + 1; /* not used again before a checkpoint says so */
}

/* A page is there, if the map says so. */
static void found(isw_log *log, uint64_t page, uint32_t block, const uint32_t *crc)
{
    struct log_clean *clean = &log->clean;
    struct log_batch *b = clean->fills;
    uint32_t victim = b->victim[b->victims - 1], place = log_place(victim, block);
    bool unread = clean->unread >> (block / LOG_RUN_BLOCKS) & 1;
    if (unread || log->place[page] != place || b->count == clean->room)
        return;
    const uint8_t *data = clean->segment + (size_t)block * LOG_BLOCK_BYTES;
    uint32_t is = isw_crc32c(data, LOG_BLOCK_BYTES);
    if ((crc && is != *crc) || log_check(is) != log->check[page]) {
        log_clean_lost(log, page);
        return;
    }
    struct log_live *live = &b->live[b->count];
    *live = (struct log_live){page, place, is, b->data + (size_t)b->count * LOG_BLOCK_BYTES};
    memcpy(live->data, data, LOG_BLOCK_BYTES);
    b->count++;
}

static void find_by_headers(isw_log *log)
{
    uint32_t block = 0;
    while (block < LOG_SEGMENT_BLOCKS) {
        const union log_block *b = (const union log_block *)(const void *)(log->clean.segment + (size_t)block++ * LOG_BLOCK_BYTES);
        if (!log_header_valid(b, log->id, &log->geometry) || b->header.pages > LOG_SEGMENT_BLOCKS - block)
            continue;
        for (uint32_t i = 0; i < b->header.entries; i++) {
            const struct log_entry *entry = &b->header.entry[i];
            if (log_entry_kind(entry) != LOG_TRIM)
                found(log, log_entry_page(entry), block++, &entry->crc);
        }
    }
}

/* Where a header is damaged, the map still knows. */
static void find_by_map(isw_log *log, uint32_t victim)
{
    for (uint64_t page = 0; page < log->geometry.pages; page++) {
        uint32_t place = log->place[page];
        if (place && place != LOG_PLACE_BAD && log_place_segment(place) == victim)
            found(log, page, log_place_block(place), NULL);
    }
}

/* What a run that cannot be read has stays where it is, and its segment with it; all else moves.  A header may lie in one of those, and
 * the buffer have another victim's in its place. */
static void gather(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_batch *b = clean->fills;
    uint32_t victim = b->victim[b->victims - 1], before = b->count;
    if (clean->unread)
        log->segment[victim].spared_ns = clock_ns() + LOG_SPARED_MS * 1000000ull;
    else
        find_by_headers(log);
    if (b->count - before != log->segment[victim].live) {
        b->count = before;
        find_by_map(log, victim);
    }
}

static void read_run(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    log_clean_submit(log, clean->fills->victim[clean->fills->victims - 1], clean->run * LOG_RUN_BLOCKS, LOG_RUN_BLOCKS);
}

/* One block that cannot be read must not keep the cleaner from the others: it would come back to this segment for ever. */
static void begin_runs(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (clean->borrow.reads)
        clean->fills->count = clean->borrow.first;
    clean->borrow.reads = false;
    clean->in_runs = true;
    clean->run = 0;
    read_run(log);
}

static bool next_run(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    clean->unread |= (uint64_t)(clean->inner.error != 0) << clean->run;
    if (++clean->run == LOG_VICTIM_RUNS)
        return false;
    read_run(log);
    return true;
}

/* A victim has been read, or what of it had to be. */
void log_clean_read(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (!clean->fills->failed) {
        if (clean->in_runs && next_run(log))
            return;
        if (!clean->in_runs && clean->inner.error) {
            begin_runs(log);
            return;
        }
        if (clean->borrow.reads) {
            log_borrow_read(log);
        } else {
            if (!clean->in_runs)
                log_borrow_whole_read(log);
            gather(log);
        }
    }
    log_clean_filled(log);
}

void log_clean_submit(isw_log *log, uint32_t victim, uint32_t block, uint32_t blocks)
{
    struct log_clean *clean = &log->clean;
    clean->iov = (struct iovec){clean->segment + (size_t)block * LOG_BLOCK_BYTES, (size_t)blocks * LOG_BLOCK_BYTES};
    clean->inner = (struct backup_request){.kind = BACKUP_READ,
                                           .iov = &clean->iov,
                                           .vectors = 1,
                                           .offset = log_segment_offset(log, victim, block),
                                           .bytes = clean->iov.iov_len,
                                           .owner = clean};
    log->inner->methods->submit(log->inner, &clean->inner);
}
