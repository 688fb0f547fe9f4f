/* What lives in a victim is asked of the backup's user, who has most of it at peers or in memory, and only the rest is read: a disk
 * whose reads and writes stand in each other's way (one head; one bandwidth for both, as volumes of clouds have) then writes instead.
 *
 * A page that comes so is checked as one that is read, against what the map keeps of its CRC32C, unless its user says that it may
 * be newer: then it counts as that version's write, which may come at any time before the user hears of it. */
#include "counters.h"
#include "log.h"
#include "loop.h"

#include <string.h>

enum {
    SLOW_READ_MS = 8, /* a victim, in the mean: 250 MB a second; what reads faster has time enough, and each borrowed page costs us some */
    READ_ONE_IN = 32, /* of the victims is read all the same, or nobody would see that the disk is quick again */
    FORGET = 64, /* what borrowing takes fades by so much with each victim that is read for its sake */
};

/* Of the last eight or so. */
static void mean(uint64_t *mean_ns, uint64_t now_ns)
{
    *mean_ns = *mean_ns ? (7 * *mean_ns + now_ns) / 8 : now_ns;
}

bool log_borrow_pays(const isw_log *log)
{
    const struct log_borrow *borrow = &log->clean.borrow;
    if (!borrow->lender.lend || borrow->lender.when == ISW_BORROW_NEVER)
        return false;
    return borrow->lender.when == ISW_BORROW_ALWAYS || borrow->read_ns >= SLOW_READ_MS * 1000000ull;
}

static bool pays_for(isw_log *log, uint32_t pages)
{
    struct log_borrow *borrow = &log->clean.borrow;
    if (!log_borrow_pays(log))
        return false;
    if (borrow->lender.when == ISW_BORROW_ALWAYS)
        return true;
    if (++borrow->turn % READ_ONE_IN == 0)
        return false;
    if (borrow->page_ns * pages < borrow->read_ns / 2)
        return true;
    borrow->page_ns -= borrow->page_ns / FORGET;
    return false;
}

/* What lives in it, as it is listed; false: that was before the segment was used anew. */
static bool gather(isw_log *log, uint32_t choice)
{
    struct log_clean *clean = &log->clean;
    struct log_batch *b = clean->fills;
    struct log_borrow *borrow = &clean->borrow;
    uint32_t victim = clean->chosen[choice];
    borrow->first = b->count;
    borrow->count = 0;
    for (uint32_t i = 0; i < clean->listing.count[choice]; i++) {
        uint32_t page = clean->listing.page[choice][i], place = log->place[page], at = b->count + borrow->count;
        if (!place || place == LOG_PLACE_BAD || log_place_segment(place) != victim)
            continue;
        if (at == clean->room)
            return false;
        b->live[at] = (struct log_live){page, place, 0, b->data + (size_t)at * LOG_BLOCK_BYTES};
        borrow->loan[borrow->count++] = (struct backup_loan){.page = page, .data = b->live[at].data};
    }
    return borrow->count && borrow->count == log->segment[victim].live;
}

bool log_borrow_begin(isw_log *log, uint32_t choice)
{
    struct log_clean *clean = &log->clean;
    struct log_borrow *borrow = &clean->borrow;
    uint32_t victim = clean->chosen[choice];
    borrow->reads = false;
    borrow->begun_ns = clock_ns();
    if (!clean->listing.is_there || !pays_for(log, log->segment[victim].live) || !gather(log, choice))
        return false;
    clean->fills->count += borrow->count;
    borrow->out = borrow->count;
    borrow->asked = true;
    borrow->lender.lend(borrow->lender.owner, borrow->loan, borrow->count);
    return true;
}

void log_borrow_lent(isw_log *log, struct backup_loan *loan)
{
    struct log_borrow *borrow = &log->clean.borrow;
    struct log_live *live = &log->clean.fills->live[borrow->first + (uint32_t)(loan - borrow->loan)];
    borrow->out--;
    if (!loan->got)
        return;
    live->crc = isw_crc32c(loan->data, LOG_BLOCK_BYTES);
    if (!loan->newer && log_check(live->crc) != log->check[live->page])
        loan->got = false;
}

/* It was not to be had, and is wanted still. */
static bool is_missing(const isw_log *log, uint32_t i)
{
    const struct log_clean *clean = &log->clean;
    return !clean->borrow.loan[i].got && log_lives(log, &clean->fills->live[clean->borrow.first + i]);
}

/* From the first that is missing to the last. */
static bool read_rest(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_borrow *borrow = &clean->borrow;
    uint32_t first = LOG_SEGMENT_BLOCKS, last = 0, missing = 0;
    for (uint32_t i = 0; i < borrow->count; i++) {
        if (!is_missing(log, i))
            continue;
        uint32_t block = log_place_block(clean->fills->live[borrow->first + i].place);
        first = block < first ? block : first;
        last = block > last ? block : last;
        missing++;
    }
    count64(&log->borrowed_pages, borrow->count - missing);
    if (!missing)
        return false;
    borrow->reads = true;
    log_clean_submit(log, clean->fills->victim[clean->fills->victims - 1], first, last - first + 1);
    return true;
}

static void took(isw_log *log)
{
    struct log_borrow *borrow = &log->clean.borrow;
    mean(&borrow->page_ns, (clock_ns() - borrow->begun_ns) / borrow->count);
}

void log_borrow_end(isw_log *log)
{
    log->clean.borrow.asked = false;
    if (!log->clean.fills->failed && read_rest(log))
        return;
    took(log);
    log_clean_filled(log);
}

void log_borrow_read(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_borrow *borrow = &clean->borrow;
    took(log);
    for (uint32_t i = 0; i < borrow->count; i++) {
        struct log_live *live = &clean->fills->live[borrow->first + i];
        if (!is_missing(log, i))
            continue;
        const uint8_t *data = clean->segment + (size_t)log_place_block(live->place) * LOG_BLOCK_BYTES;
        live->crc = isw_crc32c(data, LOG_BLOCK_BYTES);
        if (log_check(live->crc) == log->check[live->page])
            memcpy(live->data, data, LOG_BLOCK_BYTES);
        else
            log_clean_lost(log, live->page);
    }
}

void log_borrow_whole_read(isw_log *log)
{
    mean(&log->clean.borrow.read_ns, clock_ns() - log->clean.borrow.begun_ns);
}
