/* Pending pages wait: what is written again meanwhile, or trimmed, costs the disk one write or none, and neighbours come together.
 * They go when the oldest is writeback_delay_ms old, when half of the buffers are in use (until three eighths are), or when
 * somebody waits for them: a FLUSH, a stop, a slab that is given up, a peer that may be lost.
 *
 * They go by address, in passes over the whole device, from one end to the other and around: a disk gets ascending offsets, and a
 * page all of its neighbours.  A pass takes what was queued before it began and not what comes meanwhile, so it has an end, and
 * nobody who writes just ahead of it keeps it there: a page waits for the rest of one pass and for one more at most.  One that
 * begins for age takes what has three quarters of it, so that the device is not looked through for each page. */
#include "device.h"
#include "pages.h"
#include "pending.h"
#include "sweep.h"

static uint32_t now_ms(const struct device *d)
{
    return (uint32_t)(d->now_ns / 1000000);
}

static bool queued_by(const struct device *d, uint32_t number, uint32_t ms)
{
    return (int32_t)(ms - d->buffer[number - 1].queued_ms) >= 0;
}

void sweep_hurry(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    s->hurrying = true;
    s->hurry_ms = s->before_ms = now_ms(d);
    s->from = s->at; /* a pass that is under way goes round once more from here */
    s->wrapped = false;
}

bool sweep_hurried(const struct device *d, uint32_t number)
{
    return queued_by(d, number, d->writeback.sweep.hurry_ms);
}

bool sweep_hurries(const struct device *d)
{
    return d->writeback.sweep.hurrying || d->stop.begun;
}

static bool is_due(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    if (s->hurrying && !queued_by(d, d->dirty.first, s->hurry_ms))
        s->hurrying = false;
    return sweep_hurries(d) || queued_by(d, d->dirty.first, now_ms(d) - d->config.writeback_delay_ms);
}

static bool is_full(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    uint32_t used = d->buffers - d->pool.buffers_free - d->writeback.pages;
    if (used >= d->buffers / 2)
        s->full = true;
    else if (used <= d->buffers / 8 * 3)
        s->full = false;
    return s->full;
}

static void begin(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    bool for_age = !s->full && !sweep_hurries(d);
    s->on = true;
    s->wrapped = false;
    s->from = s->at;
    s->before_ms = now_ms(d) - (for_age ? d->config.writeback_delay_ms / 4 * 3 : 0);
}

/* One step of the pass; 0: it was in vain, or the pass is over. */
static uint32_t step(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    uint64_t page = bitmap_next(&d->dirty.map, s->at);
    if (s->wrapped && page >= s->from) {
        s->at = s->from;
        s->on = false;
        return 0;
    }
    if (page == BITMAP_NONE) {
        s->at = 0;
        s->wrapped = true;
        return 0;
    }
    s->at = page + 1;
    uint32_t number = page_pending(d, page);
    return queued_by(d, number, s->before_ms) ? number : 0;
}

uint32_t sweep_next(struct device *d)
{
    struct sweep *s = &d->writeback.sweep;
    while (d->dirty.first && s->looks) {
        bool due = is_due(d), full = is_full(d);
        if (!due && !full)
            return 0;
        if (!s->on)
            begin(d);
        s->looks--;
        uint32_t number = step(d);
        if (number)
            return number;
    }
    return 0;
}
