/* Behind the request: pending pages on their way to the backup, in runs of neighbours.  A page has at most one backup
 * operation in flight: ISW_PAGE_DISK_BUSY. */
#include "backup.h"
#include "backup_watch.h"
#include "device.h"
#include "events.h"
#include "flush.h"
#include "op.h"
#include "op_move.h"
#include "op_write.h"
#include "pages.h"
#include "pending.h"
#include "punch.h"
#include "slab.h"
#include "unsynced.h"
#include "writeback.h"

#include <errno.h>

struct run *run_take(struct device *d)
{
    struct run *run = d->writeback.free_runs;
    if (run) {
        d->writeback.free_runs = run->next;
        d->writeback.in_flight++;
        set64(&d->counters[ISW_DEVICE_backup_in_flight], d->writeback.in_flight);
    }
    return run;
}

static void run_give(struct device *d, struct run *run)
{
    run->next = d->writeback.free_runs;
    d->writeback.free_runs = run;
    d->writeback.in_flight--;
    set64(&d->counters[ISW_DEVICE_backup_in_flight], d->writeback.in_flight);
}

static bool joins(struct device *d, uint64_t page)
{
    return page < d->pages && bitmap_has(&d->dirty.map, page) && !buffer_at(d, page_pending(d, page))->solo;
}

/* One write of the buffer's page and of all its neighbours that wait too.  What was in a run that failed goes
 * alone, so that only the page that is to blame waits. */
static void write_run(struct device *d, struct run *run, uint32_t chosen)
{
    uint64_t first = buffer_at(d, chosen)->page, end = first + 1;
    bool solo = buffer_at(d, chosen)->solo;
    while (!solo && end - first < RUN_PAGES_MAX && joins(d, end))
        end++;
    while (!solo && end - first < RUN_PAGES_MAX && first && joins(d, first - 1))
        first--;
    run->first = first;
    run->pages = (uint32_t)(end - first);
    run->sync_failures = d->flush.sync_failures;
    d->writeback.pages += run->pages;
    backup_before_write(d, first);
    uint32_t vectors = 0;
    for (uint32_t i = 0; i < run->pages; i++) {
        uint32_t number = page_pending(d, first + i);
        pending_unqueue(d, number);
        buffer_at(d, number)->state = BUFFER_IN_FLIGHT;
        page_set_flags(d, first + i, ISW_PAGE_DISK_BUSY, 0);
        run->buffer[i] = number;
        if (d->config.backup_log)
            run->crc[i] = buffer_at(d, number)->has_crc ? buffer_at(d, number)->crc : isw_crc32c(buffer_data(d, number), ISW_PAGE_BYTES);
        vectors = vector_append(run->iov, vectors, buffer_data(d, number));
    }
    run->backup = (struct backup_request){.kind = BACKUP_WRITE,
                                          .iov = run->iov,
                                          .vectors = vectors,
                                          .offset = first * ISW_PAGE_BYTES,
                                          .bytes = (uint64_t)run->pages * ISW_PAGE_BYTES,
                                          .crc = d->config.backup_log ? run->crc : NULL,
                                          .owner = run};
    tally(d, ISW_DEVICE_backup_writes, 1);
    tally(d, ISW_DEVICE_backup_written_pages, run->pages);
    d->backup->methods->submit(d->backup, &run->backup);
}

/* By an operation that writes it to the backup itself: until that has ended nothing else may. */
static bool is_claimed(struct device *d, uint64_t page)
{
    const struct op *owner = page_owner(d, page);
    return owner && owner->exclusive;
}

void disk_idle(struct device *d, uint64_t page)
{
    page_set_flags(d, page, 0, ISW_PAGE_DISK_BUSY);
    uint32_t number = page_pending(d, page);
    if (is_claimed(d, page))
        op_write_disk_idle(d, page_owner(d, page));
    else if (number && buffer_at(d, number)->state == BUFFER_BLOCKED)
        pending_requeue(d, number);
    slab_release_if_idle(d, slab_of(d, page));
}

static void write_run_done(struct device *d, struct run *run, int error)
{
    uint64_t epoch = UINT64_MAX; /* of the page that failed */
    d->writeback.pages -= run->pages;
    if (!error && run->sync_failures != d->flush.sync_failures)
        error = EIO; /* an fdatasync failed meanwhile: perhaps over this */
    if (!error)
        unsynced_add(d, run->first, run->pages);
    for (uint32_t i = 0; i < run->pages; i++) {
        uint64_t page = run->first + i;
        uint32_t number = run->buffer[i];
        struct page_buffer *buffer = buffer_at(d, number);
        bool current = page_pending(d, page) == number;
        if (current && error && run->pages == 1) {
            epoch = pending_epoch_of(d, buffer);
            if (is_claimed(d, page))
                buffer->state = BUFFER_BLOCKED; /* were it to rest, it would wake beside the newer write, and land over it */
            else
                pending_rest(d, number);
        } else if (current && error) {
            buffer->solo = true;
            buffer->state = BUFFER_BLOCKED; /* disk_idle puts it back in the queue */
        } else {
            if (current) {
                page_set_flags(d, page, ISW_PAGE_DISK, ISW_PAGE_LOST | ISW_PAGE_DOUBTFUL);
                page_set_pending(d, page, 0);
                if (!(d->page[page].meta & ISW_PAGE_REMOTE))
                    movers_add(d, page);
            } else if (error) {
                pending_inherit(d, page, pending_epoch_of(d, buffer));
            }
            pending_free(d, number);
        }
        disk_idle(d, page);
    }
    if (epoch != UINT64_MAX)
        flush_fail(d, epoch, run->first, 1, error);
}

/* How many writes may be in flight now. */
static uint32_t wanted(const struct device *d)
{
    struct backup_load load = {.depth = d->config.backup_depth,
                               .writes = d->writeback.in_flight,
                               .pages = d->writeback.pages,
                               .used = d->buffers - d->pool.buffers_free,
                               .buffers = d->buffers,
                               .beside = page_ins_leave(d),
                               .hurry = sweep_hurries(d) || d->flush.waiting.first};
    return d->backup->methods->wants(&load);
}

void writeback_run(struct device *d)
{
    d->punches.more = d->writeback.more = false;
    pending_wake(d);
    backup_watch(d);
    if (d->now_ns < d->writeback.pause_ns)
        return;
    uint32_t most = d->dirty.first ? wanted(d) : 0;
    d->writeback.sweep.looks = SWEEP_LOOKS;
    while (d->writeback.free_runs && d->writeback.in_flight < most && unsynced_room(d)) {
        uint32_t number = sweep_next(d);
        if (!number)
            break;
        write_run(d, run_take(d), number);
    }
    d->writeback.more = !d->writeback.sweep.looks;
    punch_some(d);
}

/* One page that fails rests by itself.  Where nothing at all succeeds the disk is asked less often. */
static void backup_failed(struct device *d, int error)
{
    tally(d, ISW_DEVICE_backup_errors, 1);
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .value = (uint64_t)error});
    if (d->writeback.failures < BACKUP_FAILURES_MAX)
        d->writeback.failures++;
    else
        d->writeback.pause_ns = d->now_ns + BACKUP_RETRY_MS * 1000000ull;
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
        if (request->kind == BACKUP_SYNC_STATE) {
            flush_state_synced(d, request->error);
            continue;
        }
        struct run *run = request->owner;
        bool is_run = run >= d->writeback.runs && run < d->writeback.runs + d->config.backup_depth;
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
        if (error) {
            backup_failed(d, error);
            continue;
        }
        d->resting.wake_all = d->resting.wake_all || d->writeback.failures == BACKUP_FAILURES_MAX;
        d->writeback.failures = 0;
    }
}
