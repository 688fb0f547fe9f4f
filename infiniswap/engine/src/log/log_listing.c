/* Which pages live in the segments that were chosen to be cleaned.  That stands in the segments' headers; who does not want to read
 * those looks through the map, a slice at a time, once for all that one choice has brought. */
#include "log.h"

enum { SLICE_PAGES = 16384 /* in a round of the loop: page-ins wait for it */ };

void log_listing_begin(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    struct log_listing *l = &clean->listing;
    for (uint32_t i = 0; i < clean->choices; i++) {
        l->choice[clean->chosen[i]] = (uint8_t)(i + 1);
        l->count[i] = 0;
    }
    l->at = 0;
    l->runs = clean->choices != 0;
}

void log_listing_end(isw_log *log)
{
    struct log_clean *clean = &log->clean;
    for (uint32_t i = 0; i < clean->choices; i++)
        clean->listing.choice[clean->chosen[i]] = 0;
    clean->listing.runs = clean->listing.is_there = false;
}

void log_listing_run(isw_log *log)
{
    struct log_listing *l = &log->clean.listing;
    if (!l->runs)
        return;
    uint64_t end = log->geometry.pages - l->at < SLICE_PAGES ? log->geometry.pages : l->at + SLICE_PAGES;
    for (; l->at < end; l->at++) {
        uint32_t place = log->place[l->at];
        uint32_t choice = place && place != LOG_PLACE_BAD ? l->choice[log_place_segment(place)] : 0;
        if (choice && l->count[choice - 1] < LOG_SOFT_LIVE_MAX)
            l->page[choice - 1][l->count[choice - 1]++] = (uint32_t)l->at;
    }
    l->runs = l->at < log->geometry.pages;
    l->is_there = !l->runs;
}
