/* Where each page is, and what that makes of the segments. */
#include "counters.h"
#include "log.h"

/* Where the file takes its room as it grows, the segments that a log of one and a half times its pages has: beyond them it grows only
 * if it must.  Else all: the more room, the deader a segment is when it is cleaned. */
static uint32_t usable(const isw_log *log)
{
    if (!log->inner || !log->inner->sparse)
        return log->geometry.segments;
    uint64_t wanted = (log->live_pages + log->live_pages / 2) / (LOG_SEGMENT_BLOCKS - 2) + LOG_SPARE_SEGMENTS;
    return wanted < log->geometry.segments ? (uint32_t)wanted : log->geometry.segments;
}

void log_segment_settle(isw_log *log, uint32_t number)
{
    struct log_segment *s = &log->segment[number];
    if (s->state != LOG_CLOSED || s->live || s->flying)
        return;
    if (!s->counted) {
        s->counted = true;
        log->dead_segments++;
    }
    if (s->reads || s->last > log->checkpoint_sequence || s->dead > log->durable)
        return;
    s->counted = false;
    log->dead_segments--;
    s->state = LOG_FREE;
    set32(&log->free_segments, log->free_segments + 1);
}

void log_segments_settle(isw_log *log)
{
    for (uint32_t i = 0; log->dead_segments && i < log->geometry.segments; i++)
        log_segment_settle(log, i);
}

static bool take_from(isw_log *log, uint32_t from, uint32_t to, uint32_t *segment)
{
    for (uint32_t i = from; i < to; i++) {
        if (log->segment[i].state != LOG_FREE)
            continue;
        log->segment[i] = (struct log_segment){.state = LOG_NEXT};
        set32(&log->free_segments, log->free_segments - 1);
        log->cursor = i + 1;
        *segment = i;
        return true;
    }
    return false;
}

bool log_segment_take(isw_log *log, uint32_t *segment)
{
    uint32_t end = usable(log);
    uint32_t from = log->cursor < end ? log->cursor : 0;
    if (take_from(log, from, end, segment) || take_from(log, 0, from, segment))
        return true;
    log_segments_settle(log); /* before the file grows */
    return take_from(log, 0, log->geometry.segments, segment);
}

/* Segments that may be begun now, or once what is under way has come to its end, beyond those that shall be left: 5 % of what the log
 * should take.  What is left longer is deader when it is cleaned. */
int64_t log_spare(const isw_log *log)
{
    uint32_t most = usable(log), beyond = log->geometry.segments - most;
    uint32_t wanted = 2 * LOG_KEPT_FOR_CLEANING + most * 4 / 100;
    return (int64_t)log->free_segments + log->dead_segments + log->clean.coming - wanted - beyond;
}

static void leave(isw_log *log, uint32_t place, uint64_t sequence)
{
    if (!place)
        return;
    set64(&log->live_pages, log->live_pages - 1);
    if (place == LOG_PLACE_BAD)
        return;
    uint32_t number = log_place_segment(place);
    struct log_segment *s = &log->segment[number];
    s->live--;
    s->dead = sequence > s->dead ? sequence : s->dead;
    if (!s->live)
        log_segment_settle(log, number);
}

/* One that has nothing but copies looked dead until they came into the map. */
static void enter(isw_log *log, struct log_segment *s)
{
    s->live++;
    log->dead_segments -= s->counted;
    s->counted = false;
}

/* sequence: of the chunk that says so. */
void log_map_set(isw_log *log, uint64_t page, uint32_t place, uint16_t check, uint64_t sequence)
{
    uint32_t was = log->place[page];
    log->place[page] = place;
    log->check[page] = check;
    if (place) {
        set64(&log->live_pages, log->live_pages + 1);
        if (place != LOG_PLACE_BAD)
            enter(log, &log->segment[log_place_segment(place)]);
    }
    leave(log, was, sequence);
}

void log_map_count(isw_log *log)
{
    uint64_t live = 0;
    for (uint64_t page = 0; page < log->geometry.pages; page++) {
        uint32_t place = log->place[page];
        live += place != 0;
        if (place && place != LOG_PLACE_BAD)
            log->segment[log_place_segment(place)].live++;
    }
    log->live_pages = live;
}
