/* Behind the request: pending pages on their way to the backup, ranges to zero there, and who waits for both.
 *
 * A buffer is QUEUED (in the dirty queue, oldest first), BLOCKED (an older write or a punch of its page is in flight, or
 * an operation writes the page itself) or IN_FLIGHT.  A page has at most one backup operation in flight: ISW_PAGE_DISK_BUSY.
 * Every buffer and every slab with pages to punch is counted in the epoch it was acknowledged in; a FLUSH ends an epoch
 * and is answered when all up to it have counted down to nothing and fdatasync has returned. */
#include "device.h"

#include <errno.h>

static struct page_buffer *at(struct device *d, uint32_t number)
{
    return &d->buffer[number - 1];
}

static void epoch_add(struct device *d, uint64_t epoch)
{
    d->epoch_count[epoch % EPOCHS]++;
}

static void epoch_remove(struct device *d, uint64_t epoch)
{
    d->epoch_count[epoch % EPOCHS]--;
}

/* Epochs fit 32 bits in a buffer: what is told apart are the last EPOCHS. */
static uint64_t epoch_of(const struct device *d, const struct page_buffer *buffer)
{
    return d->epoch_done + (uint32_t)(buffer->epoch - (uint32_t)d->epoch_done);
}

static void queue_append(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = at(d, number);
    buffer->state = BUFFER_QUEUED;
    buffer->next = 0;
    buffer->previous = d->dirty_last;
    if (d->dirty_last)
        at(d, d->dirty_last)->next = number;
    else
        d->dirty_first = number;
    d->dirty_last = number;
}

static void queue_remove(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = at(d, number);
    if (buffer->previous)
        at(d, buffer->previous)->next = buffer->next;
    else
        d->dirty_first = buffer->next;
    if (buffer->next)
        at(d, buffer->next)->previous = buffer->previous;
    else
        d->dirty_last = buffer->previous;
}

static void queue_replace(struct device *d, uint32_t number, uint32_t by)
{
    struct page_buffer *old = at(d, number), *new = at(d, by);
    new->state = BUFFER_QUEUED;
    new->next = old->next;
    new->previous = old->previous;
    if (new->previous)
        at(d, new->previous)->next = by;
    else
        d->dirty_first = by;
    if (new->next)
        at(d, new->next)->previous = by;
    else
        d->dirty_last = by;
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

static void pending_free(struct device *d, uint32_t number)
{
    epoch_remove(d, epoch_of(d, at(d, number)));
    untally(d, ISW_DEVICE_pending_pages, 1);
    buffer_give(d, number);
}

/* The operation's new version of a page becomes the pending one; an older one that waits gives it its place. */
void pending_commit(struct device *d, struct op *op, uint32_t i)
{
    uint64_t page = op->first + i;
    uint32_t number = op->buffer[i], old = page_pending(d, page);
    struct page_buffer *buffer = at(d, number);
    if (old && at(d, old)->state != BUFFER_IN_FLIGHT) {
        buffer->epoch = at(d, old)->epoch;
        buffer->queued_ms = at(d, old)->queued_ms;
        if (at(d, old)->state == BUFFER_QUEUED)
            queue_replace(d, old, number);
        else
            buffer->state = BUFFER_BLOCKED;
        buffer_give(d, old);
        tally(d, ISW_DEVICE_coalesced_pages, 1);
    } else {
        /* In place of a punch that is owed: a FLUSH that waits for the punch waits for this write instead. */
        bool owed = d->page[page].meta & ISW_PAGE_PUNCH;
        uint64_t epoch = owed ? d->slab[slab_of(d, page)].punch_epoch : d->epoch;
        /* In place of a page that waits for resync: the same. */
        pending_add(d, buffer, !owed && page_only_remote(d, page) ? d->resync_epoch : epoch);
        if (d->page[page].meta & ISW_PAGE_DISK_BUSY)
            buffer->state = BUFFER_BLOCKED;
        else
            queue_append(d, number);
    }
    page_set_pending(d, page, number);
}

uint64_t pending_epoch(struct device *d, uint64_t page)
{
    uint32_t number = page_pending(d, page);
    if (page_only_remote(d, page))
        return d->resync_epoch;
    return number && at(d, number)->state != BUFFER_IN_FLIGHT ? epoch_of(d, at(d, number)) : d->epoch;
}

/* The page's pending version is of no use any more: it was overwritten on the backup, or zeroed. */
void pending_drop(struct device *d, uint64_t page)
{
    uint32_t number = page_pending(d, page);
    if (!number)
        return;
    page_set_pending(d, page, 0);
    if (at(d, number)->state == BUFFER_IN_FLIGHT)
        return; /* the run gives it back */
    if (at(d, number)->state == BUFFER_QUEUED)
        queue_remove(d, number);
    pending_free(d, number);
}

void pending_hold(struct device *d, uint32_t number)
{
    if (at(d, number)->state != BUFFER_QUEUED)
        return;
    queue_remove(d, number);
    at(d, number)->state = BUFFER_BLOCKED;
}

void pending_resume(struct device *d, uint32_t number)
{
    if (at(d, number)->state == BUFFER_BLOCKED)
        queue_append(d, number);
}

/* Pages that wait for resync keep the epoch of the first of them from being over. */
void resync_hold(struct device *d)
{
    if (d->resync_held)
        return;
    d->resync_held = true;
    d->resync_epoch = d->epoch;
    epoch_add(d, d->epoch);
}

void resync_settled(struct device *d)
{
    d->resync_held = false;
    epoch_remove(d, d->resync_epoch);
    d->resources_freed = true; /* what was kept for it is everybody's again */
}

/* ---- runs ---- */

static struct run *run_take(struct device *d)
{
    struct run *run = d->free_runs;
    if (run) {
        d->free_runs = run->next;
        d->runs_in_flight++;
        set64(&d->counters[ISW_DEVICE_backup_in_flight], d->runs_in_flight);
    }
    return run;
}

static void run_give(struct device *d, struct run *run)
{
    run->next = d->free_runs;
    d->free_runs = run;
    d->runs_in_flight--;
    set64(&d->counters[ISW_DEVICE_backup_in_flight], d->runs_in_flight);
}

static uint32_t queued_at(struct device *d, uint64_t page)
{
    uint32_t number = page < d->pages ? page_pending(d, page) : 0;
    return number && at(d, number)->state == BUFFER_QUEUED ? number : 0;
}

/* One write of the page of the oldest buffer and of all its neighbours that wait too. */
static void write_run(struct device *d, struct run *run)
{
    uint64_t first = at(d, d->dirty_first)->page, end = first + 1;
    while (end - first < RUN_PAGES_MAX && queued_at(d, end))
        end++;
    while (end - first < RUN_PAGES_MAX && first && queued_at(d, first - 1))
        first--;
    run->first = first;
    run->pages = (uint32_t)(end - first);
    uint32_t vectors = 0;
    for (uint32_t i = 0; i < run->pages; i++) {
        uint32_t number = page_pending(d, first + i);
        queue_remove(d, number);
        at(d, number)->state = BUFFER_IN_FLIGHT;
        page_set_flags(d, first + i, ISW_PAGE_DISK_BUSY, 0);
        run->buffer[i] = number;
        vectors = vector_append(run->iov, vectors, buffer_data(d, number));
    }
    run->backup = (struct backup_request){.kind = BACKUP_WRITE,
                                          .iov = run->iov,
                                          .vectors = vectors,
                                          .offset = first * ISW_PAGE_BYTES,
                                          .bytes = (uint64_t)run->pages * ISW_PAGE_BYTES,
                                          .owner = run};
    tally(d, ISW_DEVICE_backup_writes, 1);
    tally(d, ISW_DEVICE_backup_written_pages, run->pages);
    d->backup->methods->submit(d->backup, &run->backup);
}

static void disk_idle(struct device *d, uint64_t page)
{
    page_set_flags(d, page, 0, ISW_PAGE_DISK_BUSY);
    struct op *owner = page_owner(d, page);
    uint32_t number = page_pending(d, page);
    bool claimed = owner && owner->exclusive;
    if (number && at(d, number)->state == BUFFER_BLOCKED && !claimed)
        queue_append(d, number);
    if (claimed)
        op_write_disk_idle(d, owner);
    slab_release_if_idle(d, slab_of(d, page));
}

static void write_run_done(struct device *d, struct run *run, int error)
{
    for (uint32_t i = 0; i < run->pages; i++) {
        uint64_t page = run->first + i;
        uint32_t number = run->buffer[i];
        bool current = page_pending(d, page) == number;
        if (current && error) {
            at(d, number)->state = BUFFER_BLOCKED; /* disk_idle puts it back in the queue */
        } else {
            if (current) {
                page_set_flags(d, page, ISW_PAGE_DISK, ISW_PAGE_LOST);
                page_set_pending(d, page, 0);
                if (!(d->page[page].meta & ISW_PAGE_REMOTE))
                    movers_add(d, page);
            }
            pending_free(d, number);
        }
        disk_idle(d, page);
    }
}

/* ---- punching ---- */

void punch_wanted(struct device *d, uint32_t number, uint64_t epoch)
{
    struct slab *slab = &d->slab[number];
    slab->punch_again = true;
    if (slab->punching) {
        if (epoch < slab->punch_epoch) {
            epoch_remove(d, slab->punch_epoch);
            slab->punch_epoch = epoch;
            epoch_add(d, epoch);
        }
        return;
    }
    slab->punching = true;
    slab->punch_at = 0;
    slab->punch_again = false;
    slab->punch_epoch = epoch;
    epoch_add(d, epoch);
    slab->next_punch = NULL;
    *d->punch_end = slab;
    d->punch_end = &slab->next_punch;
    tally(d, ISW_DEVICE_punch_slabs, 1);
}

static bool to_punch(struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    return (meta & (ISW_PAGE_PUNCH | ISW_PAGE_DISK_BUSY | ISW_PAGE_BUSY)) == ISW_PAGE_PUNCH;
}

static void punch_run(struct device *d, struct run *run, uint64_t first, uint32_t pages)
{
    for (uint32_t i = 0; i < pages; i++)
        page_set_flags(d, first + i, ISW_PAGE_DISK_BUSY, 0);
    run->first = first;
    run->pages = pages;
    run->backup = (struct backup_request){.kind = BACKUP_ZERO,
                                          .offset = first * ISW_PAGE_BYTES,
                                          .bytes = (uint64_t)pages * ISW_PAGE_BYTES,
                                          .owner = run};
    d->slab[slab_of(d, first)].punch_runs++;
    tally(d, ISW_DEVICE_backup_punched_pages, pages);
    d->backup->methods->submit(d->backup, &run->backup);
}

/* False: some pages of the slab could not be punched yet; they are looked at again at the next tick. */
static bool punch_pass_ended(struct device *d, struct slab *slab)
{
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    for (uint64_t page = base; page < base + d->slab_pages && page < d->pages; page++)
        if (d->page[page].meta & ISW_PAGE_PUNCH)
            return false;
    return true;
}

static void punch_some(struct device *d)
{
    struct slab *slab = d->punch_first;
    if (!slab)
        return;
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
    uint64_t page = base + slab->punch_at;
    while (page < end) {
        if (!to_punch(d, page)) {
            page++;
            continue;
        }
        struct run *run = run_take(d);
        if (!run)
            break;
        uint64_t first = page;
        while (page < end && to_punch(d, page))
            page++;
        punch_run(d, run, first, (uint32_t)(page - first));
    }
    slab->punch_at = (uint32_t)(page - base);
    if (page < end || slab->punch_runs)
        return;
    d->punch_first = slab->next_punch;
    if (!d->punch_first)
        d->punch_end = &d->punch_first;
    if (slab->punch_again || !punch_pass_ended(d, slab)) {
        slab->punch_again = false;
        slab->punch_at = 0;
        slab->next_punch = NULL;
        *d->punch_end = slab;
        d->punch_end = &slab->next_punch;
        return;
    }
    slab->punching = false;
    epoch_remove(d, slab->punch_epoch);
    untally(d, ISW_DEVICE_punch_slabs, 1);
}

static void punch_run_done(struct device *d, struct run *run, int error)
{
    d->slab[slab_of(d, run->first)].punch_runs--;
    for (uint32_t i = 0; i < run->pages; i++) {
        uint64_t page = run->first + i;
        if (!error)
            page_set_flags(d, page, 0, ISW_PAGE_PUNCH);
        disk_idle(d, page);
    }
}

/* ---- the loop's part ---- */

/* Nothing is gained by haste: a page that waits may be rewritten, trimmed, or joined by its neighbours.  So the disk's queue is
 * filled in proportion to the pending buffers in use, and wholly when somebody waits for it. */
static uint32_t runs_wanted(const struct device *d)
{
    if (d->flush_waiting.first || d->stopping)
        return d->config.backup_depth;
    uint64_t used = d->buffers - d->buffers_free;
    uint32_t age_ms = (uint32_t)(d->now_ns / 1000000) - d->buffer[d->dirty_first - 1].queued_ms;
    if (used < d->buffers / 4 && age_ms < d->config.writeback_delay_ms)
        return 0;
    return 2 + (uint32_t)(used * d->config.backup_depth / d->buffers);
}

void writeback_run(struct device *d)
{
    if (d->now_ns < d->backup_pause_ns)
        return;
    while (d->dirty_first && d->free_runs && d->runs_in_flight < runs_wanted(d))
        write_run(d, run_take(d));
    punch_some(d);
}

static void backup_failed(struct device *d, int error)
{
    tally(d, ISW_DEVICE_backup_errors, 1);
    event_post(&d->events, ISW_EVENT_BACKUP_ERROR, 0, 0, (uint64_t)error);
    d->backup_pause_ns = d->now_ns + BACKUP_RETRY_MS * 1000000ull;
    while (d->flush_waiting.first) { /* they would wait for a disk that may never mend */
        struct request *request = d->flush_waiting.first;
        d->flush_waiting.first = request->next;
        request_flushed(d, request, error);
    }
    d->flush_waiting.end = &d->flush_waiting.first;
}

void backup_reap(struct device *d)
{
    struct backup_request *list = d->backup->methods->reap(d->backup);
    while (list) {
        struct backup_request *request = list;
        list = request->next;
        if (request->kind == BACKUP_SYNC) {
            flush_synced(d, request->error);
            continue;
        }
        struct run *run = request->owner;
        bool is_run = run >= d->runs && run < d->runs + d->config.backup_depth;
        if (!is_run) {
            op_transferred(d, request->owner, request->error);
            continue;
        }
        if (request->kind == BACKUP_WRITE)
            write_run_done(d, run, request->error);
        else
            punch_run_done(d, run, request->error);
        int error = request->error;
        run_give(d, run);
        if (error)
            backup_failed(d, error);
    }
}
