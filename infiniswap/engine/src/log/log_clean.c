/* Cleaning: the live pages of a segment that is mostly dead are written anew, in the order of their numbers, and the segment is
 * free.  The choice weighs what is gained against what is copied, and old segments before young ones, whose pages may still die
 * by themselves (Rosenblum and Ousterhout, The design and implementation of a log-structured file system, 5.2 and 5.3). */
#include "counters.h"
#include "log.h"
#include "loop.h"

#include <string.h>

enum {
    SOFT_LIVE_MAX = LOG_SEGMENT_BLOCKS * 3 / 4, /* more is copied only when free segments are short */
    HARD_LIVE_MAX = LOG_SEGMENT_BLOCKS - 8, /* a segment that is copied whole gains nothing */
    SEGMENTS_TAKEN = 1, /* free ones that a copy may begin: it must not stand still for want of them (log_checkpoint.c) */
};

static double worth(const isw_log *log, const struct log_segment *s)
{
    double live = (double)s->live / LOG_SEGMENT_BLOCKS;
    double age = log_short(log) ? 1.0 : (double)(log->sequence - s->last + 1);
    return (1.0 - live) * age / (1.0 + live);
}

static bool choose(isw_log *log)
{
    uint32_t most = log_short(log) ? HARD_LIVE_MAX : SOFT_LIVE_MAX;
    double best = 0;
    for (uint32_t i = 0; i < log->geometry.segments; i++) {
        const struct log_segment *s = &log->segment[i];
        if (s->state != LOG_CLOSED || !s->live || s->live > most || s->flying || worth(log, s) <= best)
            continue;
        best = worth(log, s);
        log->clean.victim = i;
    }
    return best > 0;
}

static void begin(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    clean->stage = CLEAN_READ;
    clean->failed = false;
    clean->iov = (struct iovec){clean->segment, (size_t)LOG_SEGMENT_BLOCKS * LOG_BLOCK_BYTES};
    clean->inner = (struct backup_request){.kind = BACKUP_READ,
                                           .iov = &clean->iov,
                                           .vectors = 1,
                                           .offset = log_segment_offset(log, clean->victim, 0),
                                           .bytes = clean->iov.iov_len,
                                           .owner = clean};
    log->segment[clean->victim].reads++;
    log->inner->methods->submit(log->inner, &clean->inner);
}

static void rest(isw_log *log)
{
    log->clean.stage = CLEAN_NONE;
    log->clean.rest_ns = clock_ns() + LOG_RETRY_MS * 1000000ull;
}

void log_clean_abort(isw_log *log)
{
    if (log->clean.stage == CLEAN_READ)
        log->clean.failed = true; /* the buffer is the disk's until then */
    else if (log->clean.stage == CLEAN_COPY && log->clean.given > log->clean.done)
        log->clean.failed = true;
    else if (log->clean.stage != CLEAN_NONE)
        rest(log);
}

/* A page is there, if the map says so; one that does not meet its checksum is lost, and so is nothing else. */
static void found(isw_log *log, uint64_t page, uint32_t block, const uint32_t *crc)
{
    struct log_clean *clean = &log->clean;
    uint32_t place = log_place(clean->victim, block);
    if (log->place[page] != place)
        return;
    uint32_t is = isw_crc32c(clean->segment + (size_t)block * LOG_BLOCK_BYTES, LOG_BLOCK_BYTES);
    if ((crc && is != *crc) || log_check(is) != log->check[page]) {
        count64(&log->bad_pages, 1);
        log_map_set(log, page, LOG_PLACE_BAD, 0, log->sequence);
        log->segment[clean->victim].last = log->sequence + 1; /* not used again before a checkpoint says so */
        return;
    }
    clean->live[clean->count++] = (struct log_live){page, place, is};
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
static void find_by_map(isw_log *log)
{
    log->clean.count = 0;
    for (uint64_t page = 0; page < log->geometry.pages; page++) {
        uint32_t place = log->place[page];
        if (place && place != LOG_PLACE_BAD && log_place_segment(place) == log->clean.victim)
            found(log, page, log_place_block(place), NULL);
    }
}

static void sort_by_page(struct log_live *live, uint32_t count)
{
    for (uint32_t gap = count / 2; gap; gap = gap == 2 ? 1 : gap * 5 / 11)
        for (uint32_t i = gap; i < count; i++) {
            struct log_live one = live[i];
            uint32_t at = i;
            for (; at >= gap && live[at - gap].page > one.page; at -= gap)
                live[at] = live[at - gap];
            live[at] = one;
        }
}

/* The victim has been read. */
void log_clean_read(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_segment *victim = &log->segment[clean->victim];
    victim->reads--;
    if (clean->inner.error || clean->failed) {
        rest(log);
        log_segment_settle(log, clean->victim);
        return;
    }
    clean->count = clean->given = clean->done = 0;
    find_by_headers(log);
    if (clean->count != victim->live)
        find_by_map(log);
    sort_by_page(clean->live, clean->count);
    clean->stage = clean->count ? CLEAN_COPY : CLEAN_NONE;
    log_segment_settle(log, clean->victim);
}

void log_clean_copied(isw_log *log, struct log_chunk *chunk)
{
    struct log_clean *clean = &log->clean;
    clean->done += chunk->copies;
    clean->last = chunk->header->header.sequence;
    if (clean->done < clean->count)
        return;
    clean->stage = CLEAN_SYNC;
    log_sync_want(log);
}

static void move(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    for (uint32_t i = 0; i < clean->count; i++)
        if (log->place[clean->live[i].page] == clean->live[i].place)
            log_map_set(log, clean->live[i].page, clean->to[i], log_check(clean->live[i].crc), clean->last);
    clean->stage = CLEAN_NONE;
    count64(&log->cleaned_segments, 1);
}

void log_clean_run(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (clean->stage == CLEAN_COPY && clean->failed && !log->flying)
        rest(log);
    if (clean->stage == CLEAN_SYNC && log->durable >= clean->last)
        move(log);
    if (clean->stage == CLEAN_NONE && !log->broken && !log->opening && log->free_segments >= SEGMENTS_TAKEN && log_wants_cleaning(log) &&
        clock_ns() >= clean->rest_ns) {
        if (choose(log))
            begin(log);
        else
            rest(log); /* what is there gains nothing now */
    }
}
