/* Cleaning: the live pages of a segment that is mostly dead are written anew, in the order of their numbers, and the segment is
 * free.  The choice weighs what is gained against what is copied, and old segments before young ones, whose pages may still die
 * by themselves (Rosenblum and Ousterhout, The design and implementation of a log-structured file system, 5.2 and 5.3).
 *
 * A victim is read at once and what lives in it gathered, until it fills some segments: those are then written in full chunks, and
 * have one fdatasync together.  Meanwhile the next ones are read. */
#include "counters.h"
#include "log.h"
#include "loop.h"

#include <string.h>

enum {
    AHEAD_SEGMENTS = 2, /* are gained beyond what is wanted, so that few batches are small */
    HARD_LIVE_MAX = LOG_SEGMENT_PAGES - 4, /* a segment that is copied whole gains nothing */
    CHOICE_SHARE = 128, /* one segment in so many may be cleaned before all are looked at again: in a large log that takes long */
};

static double worth(const isw_log *log, const struct log_segment *s)
{
    double live = (double)s->live / LOG_SEGMENT_BLOCKS;
    double age = log->free_segments < LOG_KEPT_FOR_CLEANING ? 1.0 : (double)(log->sequence - s->last + 1);
    return (1.0 - live) * age / (1.0 + live);
}

static bool may_be_victim(const isw_log *log, const struct log_segment *s)
{
    uint32_t most = log_short(log) ? HARD_LIVE_MAX : (uint32_t)LOG_SOFT_LIVE_MAX;
    bool spared = s->spared_ns && clock_ns() < s->spared_ns;
    return s->state == LOG_CLOSED && s->live && s->live <= most && !s->flying && !s->taken && !spared;
}

static uint32_t share(const isw_log *log)
{
    return log->geometry.segments / CHOICE_SHARE;
}

/* What was chosen for the last batches is good enough still. */
static bool may_choose_again(const isw_log *log)
{
    const struct log_clean *clean = &log->clean;
    bool young = log->sequence - clean->chosen_at < 4ull * share(log); /* chunks: a segment has two or three */
    return young && clean->choice < clean->choices && clean->choice < share(log);
}

/* The best, the best of all first. */
static void choose(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    uint32_t least = share(log) < LOG_VICTIMS ? LOG_VICTIMS : share(log), most = least < LOG_CHOICES ? least : LOG_CHOICES;
    double worths[LOG_CHOICES];
    log_listing_end(log);
    clean->choices = clean->choice = 0;
    clean->chosen_at = log->sequence;
    for (uint32_t i = 0; i < log->geometry.segments; i++) {
        const struct log_segment *s = &log->segment[i];
        if (!may_be_victim(log, s))
            continue;
        double is = worth(log, s);
        if (clean->choices == most && is <= worths[most - 1])
            continue;
        uint32_t at = clean->choices < most ? clean->choices++ : most - 1;
        for (; at && worths[at - 1] < is; at--) {
            worths[at] = worths[at - 1];
            clean->chosen[at] = clean->chosen[at - 1];
        }
        worths[at] = is;
        clean->chosen[at] = i;
    }
    if (log_borrow_pays(log))
        log_listing_begin(log);
}

static void rest(isw_log *log)
{
    log->clean.rest_ns = clock_ns() + LOG_RETRY_MS * 1000000ull;
}

static uint32_t segments_for(uint32_t pages)
{
    return (pages + LOG_SEGMENT_PAGES - 1) / LOG_SEGMENT_PAGES;
}

static void count_coming(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    clean->coming = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const struct log_batch *b = &clean->batch[i];
        uint32_t takes = segments_for(b->count);
        if ((b == clean->fills || b == clean->out) && b->victims > takes)
            clean->coming += b->victims - takes;
    }
}

/* Its victims are as others again: free, if all that lived in them has moved. */
static void end(isw_log *log, struct log_batch **batch)
{
    struct log_batch *b = *batch;
    *batch = NULL;
    for (uint32_t i = 0; i < b->victims; i++) {
        log->segment[b->victim[i]].taken = false;
        log->segment[b->victim[i]].reads--;
        log_segment_settle(log, b->victim[i]);
    }
    count_coming(log);
}

static void give_up(isw_log *log, struct log_batch **batch)
{
    end(log, batch);
    rest(log);
}

void log_clean_abort(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (clean->fills && clean->reading)
        clean->fills->failed = true; /* the buffer is the disk's until then */
    else if (clean->fills)
        give_up(log, &clean->fills);
    if (clean->out && clean->out->stage == BATCH_COPIES && clean->out->copied > clean->out->done)
        clean->out->failed = true; /* chunks in flight have its data */
    else if (clean->out)
        give_up(log, &clean->out);
}

/* ---- batches ---- */

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

static void is_full(struct log_batch *b)
{
    sort_by_page(b->live, b->count);
    b->stage = BATCH_FULL;
}

void log_clean_filled(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    clean->reading = false;
    if (clean->fills->failed)
        give_up(log, &clean->fills);
    else
        count_coming(log);
}

static void take_victim(isw_log *log, uint32_t choice)
{
    struct log_clean *clean = &log->clean;
    uint32_t victim = clean->chosen[choice];
    clean->fills->victim[clean->fills->victims++] = victim;
    clean->reading = true;
    clean->in_runs = false;
    clean->unread = 0;
    log->segment[victim].taken = true;
    log->segment[victim].reads++; /* until all is moved: no new page may come to an old one's place */
    if (!log_borrow_begin(log, choice))
        log_clean_submit(log, victim, 0, LOG_SEGMENT_BLOCKS);
}

/* Whoever writes waits for segments: what is there must do. */
static bool is_urgent(const isw_log *log)
{
    const struct log_clean *clean = &log->clean;
    return clean->fills->count >= LOG_SEGMENT_PAGES && !clean->out && log->free_segments <= LOG_KEPT_FOR_CLEANING;
}

/* False: there is none, it does not fit, or no more are wanted. */
static bool read_next(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    const struct log_batch *b = clean->fills;
    while (clean->choice < clean->choices && b->victims < LOG_VICTIMS && log_spare(log) < AHEAD_SEGMENTS && !is_urgent(log)) {
        uint32_t victim = clean->chosen[clean->choice];
        if (b->count + log->segment[victim].live > clean->room)
            return false;
        clean->choice++;
        if (may_be_victim(log, &log->segment[victim])) {
            take_victim(log, clean->choice - 1);
            return true;
        }
    }
    return false;
}

/* Looking through the map is not waited for by whoever waits for segments. */
static bool waits_for_listing(const isw_log *log)
{
    return log->clean.listing.runs && log->free_segments > LOG_KEPT_FOR_CLEANING;
}

static void fill_more(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_batch *b = clean->fills;
    if (waits_for_listing(log) || read_next(log))
        return;
    if (!b->count && clean->again && clean->choice == clean->choices) { /* none of those is one any more */
        clean->again = false;
        choose(log);
        if (read_next(log))
            return;
    }
    if (b->count)
        is_full(b);
    else
        give_up(log, &clean->fills); /* what is there gains nothing now */
}

/* It must not stand still for want of segments: its copies end at others' waiting for a checkpoint (log_checkpoint.c). */
static void begin_to_fill(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_batch *b = &clean->batch[clean->out == &clean->batch[0]];
    uint32_t room = log->free_segments < LOG_BATCH_PAGES / LOG_SEGMENT_PAGES ? log->free_segments * LOG_SEGMENT_PAGES : LOG_BATCH_PAGES;
    if (!room)
        return;
    clean->fills = b;
    clean->room = room;
    b->stage = BATCH_FILLS;
    b->count = b->given = b->copied = b->done = b->victims = 0;
    b->failed = false;
    clean->again = may_choose_again(log);
    if (!clean->again)
        choose(log);
}

static void begin_to_copy(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (log->free_segments < segments_for(clean->fills->count)) {
        if (!log->dead_segments)
            end(log, &clean->fills); /* a smaller one */
        return;
    }
    if (log_checkpoint_due(log))
        return;
    clean->out = clean->fills;
    clean->fills = NULL;
    clean->out->stage = BATCH_COPIES;
}

/* What has died meanwhile is left out. */
uint32_t log_clean_left(isw_log *log)
{
    struct log_batch *b = log->clean.out;
    if (!b || b->stage != BATCH_COPIES || b->failed)
        return 0;
    while (b->given < b->count && !log_lives(log, &b->live[b->given]))
        b->to[b->given++] = 0;
    return b->count - b->given;
}

void log_clean_copied(isw_log *log, struct log_chunk *chunk)
{
    struct log_batch *b = log->clean.out;
    b->done += chunk->copies;
    b->last = chunk->header->header.sequence;
}

static void move(isw_log *log)
{
    struct log_batch *b = log->clean.out;
    for (uint32_t i = 0; i < b->count; i++)
        if (b->to[i] && log_lives(log, &b->live[i]))
            log_map_set(log, b->live[i].page, b->to[i], log_check(b->live[i].crc), b->last);
    count64(&log->cleaned_segments, b->victims);
    end(log, &log->clean.out);
}

static void go_on(isw_log *log)
{
    struct log_batch *b = log->clean.out;
    if (b->stage == BATCH_SYNCS) {
        if (log->durable >= b->last)
            move(log);
    } else if (b->failed) {
        if (!log->flying)
            give_up(log, &log->clean.out);
    } else if (!log_clean_left(log) && b->done == b->copied) {
        if (!b->copied) {
            end(log, &log->clean.out);
            return;
        }
        b->stage = BATCH_SYNCS;
        log_sync_want(log);
    }
}

void log_clean_run(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    if (clean->borrow.asked && !clean->borrow.out)
        log_borrow_end(log);
    if (clean->out)
        go_on(log);
    if (log->broken || log->opening)
        return;
    if (!clean->fills && log_spare(log) < 0 && clock_ns() >= clean->rest_ns)
        begin_to_fill(log);
    if (clean->fills && clean->fills->stage == BATCH_FILLS && !clean->reading)
        fill_more(log);
    if (clean->fills && clean->fills->stage == BATCH_FULL && !clean->out)
        begin_to_copy(log);
}
