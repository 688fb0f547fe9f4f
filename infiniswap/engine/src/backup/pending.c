/* Pending pages: acknowledged, and not yet on the backup.
 *
 * A buffer is QUEUED (in the dirty queue, oldest first, and in its map), BLOCKED (an older write or a punch of its page is in flight, or
 * an operation writes the page itself), RESTING (the backup would not take it just now) or IN_FLIGHT.  Every buffer and
 * every slab with pages to punch is counted in the epoch it was acknowledged in; a FLUSH ends an epoch and is answered
 * when all up to it have counted down to nothing and fdatasync has returned. */
#include "device.h"
#include "op.h"
#include "pages.h"
#include "pending.h"
#include "pool.h"
#include "punch.h"

/* Epochs fit 32 bits in a buffer: what is told apart are the last EPOCHS. */
uint64_t pending_epoch_of(const struct device *d, const struct page_buffer *buffer)
{
    return d->epochs.done + (uint32_t)(buffer->epoch - (uint32_t)d->epochs.done);
}

void pending_queue(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    bitmap_set(&d->dirty.map, buffer->page);
    buffer->state = BUFFER_QUEUED;
    buffer->next = 0;
    buffer->previous = d->dirty.last;
    if (d->dirty.last)
        buffer_at(d, d->dirty.last)->next = number;
    else
        d->dirty.first = number;
    d->dirty.last = number;
}

static void queue_before(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    bitmap_set(&d->dirty.map, buffer->page);
    buffer->state = BUFFER_QUEUED;
    buffer->previous = 0;
    buffer->next = d->dirty.first;
    if (d->dirty.first)
        buffer_at(d, d->dirty.first)->previous = number;
    else
        d->dirty.last = number;
    d->dirty.first = number;
}

/* For what somebody waits for, and what resync brings: it counts as old enough. */
static void queue_first(struct device *d, uint32_t number)
{
    buffer_at(d, number)->queued_ms = (uint32_t)(d->now_ns / 1000000) - d->config.writeback_delay_ms;
    queue_before(d, number);
}

/* A FLUSH waits for it; or somebody began to wait for all that was pending, and it was not in the queue then. */
static bool is_awaited(struct device *d, uint32_t number)
{
    const struct request *flush = d->flush.waiting.first;
    const struct page_buffer *buffer = buffer_at(d, number);
    uint64_t epoch = pending_epoch_of(d, buffer);
    bool for_flush = flush && (epoch < d->epochs.now || epoch <= flush->epoch);
    return for_flush || (buffer->state == BUFFER_BLOCKED && sweep_hurried(d, number));
}

/* A page that is written, trimmed and written again keeps its epoch, but not its place.  While somebody waits for it, it is first, so
 * that it is not put off again and again; and so that its age is seen, where it is older than all. */
void pending_requeue(struct device *d, uint32_t number)
{
    if (is_awaited(d, number))
        queue_first(d, number);
    else if (d->dirty.first && (int32_t)(buffer_at(d, d->dirty.first)->queued_ms - buffer_at(d, number)->queued_ms) > 0)
        queue_before(d, number);
    else
        pending_queue(d, number);
}

void pending_unqueue(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    if (!must_hold(d, buffer->state == BUFFER_QUEUED, ISW_INVARIANT_BUFFER, number))
        return;
    if (buffer->previous)
        buffer_at(d, buffer->previous)->next = buffer->next;
    else
        d->dirty.first = buffer->next;
    if (buffer->next)
        buffer_at(d, buffer->next)->previous = buffer->previous;
    else
        d->dirty.last = buffer->previous;
    bitmap_clear(&d->dirty.map, buffer->page);
}

static void queue_replace(struct device *d, uint32_t number, uint32_t by)
{
    struct page_buffer *old = buffer_at(d, number), *new = buffer_at(d, by);
    new->state = BUFFER_QUEUED;
    new->next = old->next;
    new->previous = old->previous;
    if (new->previous)
        buffer_at(d, new->previous)->next = by;
    else
        d->dirty.first = by;
    if (new->next)
        buffer_at(d, new->next)->previous = by;
    else
        d->dirty.last = by;
}

/* Its data are complete, and just looked at: later it would have to come into the processor's cache again. */
void pending_note_crc(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    buffer->crc = isw_crc32c(buffer_data(d, number), ISW_PAGE_BYTES);
    buffer->has_crc = true;
}

/* ---- pages that the backup would not take ---- */

/* Out of the queue for a while: one bad sector keeps nothing else from the backup. */
static void rest_link(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    buffer->state = BUFFER_RESTING;
    buffer->previous = 0;
    buffer->next = d->resting.first;
    if (d->resting.first)
        buffer_at(d, d->resting.first)->previous = number;
    d->resting.first = number;
    tally(d, ISW_DEVICE_backup_resting_pages, 1);
}

static void rest_unlink(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    if (!must_hold(d, buffer->state == BUFFER_RESTING, ISW_INVARIANT_BUFFER, number))
        return;
    if (buffer->previous)
        buffer_at(d, buffer->previous)->next = buffer->next;
    else
        d->resting.first = buffer->next;
    if (buffer->next)
        buffer_at(d, buffer->next)->previous = buffer->previous;
    untally(d, ISW_DEVICE_backup_resting_pages, 1);
}

void pending_rest(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = buffer_at(d, number);
    buffer->tried_ms = (uint32_t)(d->now_ns / 1000000);
    if (buffer->failures < BACKUP_RETRY_DOUBLINGS)
        buffer->failures++;
    buffer->solo = true;
    rest_link(d, number);
}

/* Tries again what has rested: after a second, two, four, eight; after a second where somebody waits for it. */
void pending_wake(struct device *d)
{
    if (!d->resting.first || d->now_ns < d->resting.wake_ns)
        return;
    d->resting.wake_ns = d->now_ns + TICK_MS * 1000000ull;
    bool awaited = d->flush.waiting.first || d->stop.begun, all = d->resting.wake_all;
    d->resting.wake_all = false;
    for (uint32_t number = d->resting.first, next; number; number = next) {
        const struct page_buffer *buffer = buffer_at(d, number);
        uint32_t rest_ms = BACKUP_RETRY_MS << (awaited ? 0 : buffer->failures - 1);
        next = buffer->next;
        if (!all && (uint32_t)(d->now_ns / 1000000) - buffer->tried_ms < rest_ms)
            continue;
        rest_unlink(d, number);
        queue_first(d, number);
    }
}

static void pending_add(struct device *d, struct page_buffer *buffer, uint64_t epoch)
{
    buffer->epoch = (uint32_t)epoch;
    buffer->queued_ms = (uint32_t)(d->now_ns / 1000000);
    epoch_add(d, epoch);
    tally(d, ISW_DEVICE_pending_pages, 1);
    if (d->counters[ISW_DEVICE_pending_pages] > d->counters[ISW_DEVICE_pending_peak_pages])
        set64(&d->counters[ISW_DEVICE_pending_peak_pages], d->counters[ISW_DEVICE_pending_pages]);
}

void pending_free(struct device *d, uint32_t number)
{
    epoch_remove(d, pending_epoch_of(d, buffer_at(d, number)));
    untally(d, ISW_DEVICE_pending_pages, 1);
    buffer_give(d, number);
}

/* The operation's new version of a page becomes the pending one; an older one that waits gives it its place. */
void pending_commit(struct device *d, struct op *op, uint32_t i)
{
    uint64_t page = op->first + i;
    uint32_t number = op->buffer[i], old = page_pending(d, page);
    struct page_buffer *buffer = buffer_at(d, number);
    buffer->solo = false;
    buffer->failures = 0;
    if (old && buffer_at(d, old)->state != BUFFER_IN_FLIGHT) {
        buffer->epoch = buffer_at(d, old)->epoch;
        buffer->queued_ms = buffer_at(d, old)->queued_ms;
        buffer->solo = buffer_at(d, old)->solo;
        buffer->failures = buffer_at(d, old)->failures;
        buffer->tried_ms = buffer_at(d, old)->tried_ms;
        if (buffer_at(d, old)->state == BUFFER_QUEUED) {
            queue_replace(d, old, number);
        } else if (buffer_at(d, old)->state == BUFFER_RESTING) {
            rest_unlink(d, old);
            rest_link(d, number);
        } else
            buffer->state = BUFFER_BLOCKED;
        buffer_give(d, old);
        tally(d, ISW_DEVICE_coalesced_pages, 1);
    } else {
        /* In place of a punch that is owed: a FLUSH that waits for the punch waits for this write instead. */
        bool owed = d->page[page].meta & ISW_PAGE_PUNCH;
        uint64_t epoch = owed ? page_punch_epoch(d, page) : d->epochs.now;
        /* In place of a page that waits for resync: the same. */
        pending_add(d, buffer, !owed && page_only_remote(d, page) ? d->resync.epoch : epoch);
        if (d->page[page].meta & ISW_PAGE_DISK_BUSY)
            buffer->state = BUFFER_BLOCKED;
        else if (op->kind == OP_RESYNC || d->slab_views[slab_of(d, page)].state == ISW_SLAB_DRAINING)
            queue_first(d, number);
        else
            pending_requeue(d, number);
    }
    page_set_pending(d, page, number);
}

uint64_t pending_epoch(struct device *d, uint64_t page)
{
    uint32_t number = page_pending(d, page);
    if (page_only_remote(d, page))
        return d->resync.epoch;
    return number && buffer_at(d, number)->state != BUFFER_IN_FLIGHT ? pending_epoch_of(d, buffer_at(d, number)) : d->epochs.now;
}

/* The page's pending version is of no use any more: it was overwritten on the backup, or zeroed. */
void pending_drop(struct device *d, uint64_t page)
{
    uint32_t number = page_pending(d, page);
    if (!number)
        return;
    page_set_pending(d, page, 0);
    if (buffer_at(d, number)->state == BUFFER_IN_FLIGHT)
        return; /* the run gives it back */
    if (buffer_at(d, number)->state == BUFFER_QUEUED)
        pending_unqueue(d, number);
    else if (buffer_at(d, number)->state == BUFFER_RESTING)
        rest_unlink(d, number);
    pending_free(d, number);
}

void pending_hold(struct device *d, uint32_t number)
{
    if (buffer_at(d, number)->state == BUFFER_QUEUED)
        pending_unqueue(d, number);
    else if (buffer_at(d, number)->state == BUFFER_RESTING)
        rest_unlink(d, number);
    else
        return;
    buffer_at(d, number)->state = BUFFER_BLOCKED;
}

void pending_resume(struct device *d, uint32_t number)
{
    if (buffer_at(d, number)->state == BUFFER_BLOCKED)
        pending_requeue(d, number);
}

/* An older version of the page will never be on the backup: whoever waits for it waits for what took its place. */
void pending_inherit(struct device *d, uint64_t page, uint64_t epoch)
{
    uint32_t number = page_pending(d, page);
    if (!number) {
        if ((d->page[page].meta & ISW_PAGE_PUNCH) && epoch < page_punch_epoch(d, page)) {
            page_set_punch(d, page, epoch, 0, 0);
            punch_wanted(d, page, epoch);
        }
        return;
    }
    if (epoch >= pending_epoch_of(d, buffer_at(d, number)))
        return;
    epoch_remove(d, pending_epoch_of(d, buffer_at(d, number)));
    buffer_at(d, number)->epoch = (uint32_t)epoch;
    epoch_add(d, epoch);
}

/* Pages that wait for resync keep the epoch of the first of them from being over. */
void resync_hold(struct device *d)
{
    if (d->resync.held)
        return;
    d->resync.held = true;
    d->resync.epoch = d->epochs.now;
    epoch_add(d, d->epochs.now);
}

void resync_settled(struct device *d)
{
    d->resync.held = false;
    epoch_remove(d, d->resync.epoch);
    d->resources_freed = true; /* what was kept for it is everybody's again */
}
