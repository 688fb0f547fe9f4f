/* FLUSH and FUA: who waits for which epoch, and the fdatasync that they share: of the backup and, where pages were lost or
 * are so no more, of the state file. */
#include "backup.h"
#include "client.h"
#include "device.h"
#include "events.h"
#include "flush.h"
#include "pages.h"
#include "state_sync.h"
#include "unsynced.h"

#include <errno.h>

static bool is_fua(const struct request *request)
{
    return request->client && request->command != NBD_CMD_FLUSH;
}

static uint64_t first_page(const struct request *request)
{
    return request->offset / ISW_PAGE_BYTES;
}

static uint64_t end_page(const struct request *request)
{
    return (request->offset + request->length + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES;
}

static bool in_doubt(const struct device *d, uint64_t page)
{
    uint32_t pending = page_pending(d, page);
    return d->page[page].meta & ISW_PAGE_DOUBTFUL || page_only_remote(d, page) || (pending && d->buffer[pending - 1].resync);
}

/* Larger requests zero their pages: those are never in doubt. */
static bool own_pages_in_doubt(const struct device *d, const struct request *request)
{
    bool any = d->counters[ISW_DEVICE_doubtful_pages] || d->flush.losses > request->losses_told;
    if (!any || request->length > ISW_REQUEST_BYTES_MAX)
        return false;
    for (uint64_t page = first_page(request); page < end_page(request); page++)
        if (in_doubt(d, page))
            return true;
    return false;
}

/* What there is to say though fdatasync went well.  A page that was lost fails its reads until it is written, so FLUSH says it
 * once; a doubtful one can be read, so FLUSH says it until it is sure again, and FUA of its own pages.  A stop says both in
 * its own way. */
static int verdict(const struct device *d, const struct request *request)
{
    if (request == &d->stop.flush)
        return 0;
    if (is_fua(request))
        return own_pages_in_doubt(d, request) ? EIO : 0;
    return d->flush.losses > request->losses_told || d->counters[ISW_DEVICE_doubtful_pages] ? EIO : 0;
}

/* A FLUSH that fails has told of all that is lost, whatever it fails for. */
static void answer(struct device *d, struct request *request, int error)
{
    if (error && !is_fua(request) && request != &d->stop.flush)
        d->flush.losses_told = d->flush.losses;
    request_flushed(d, request, error);
}

static struct request *take(struct request_queue *queue)
{
    struct request *list = queue->first;
    queue->first = NULL;
    queue->end = &queue->first;
    return list;
}

static void queue_add(struct request_queue *queue, struct request *request)
{
    request->next = NULL;
    *queue->end = request;
    queue->end = &request->next;
}

static bool waits_for_state(const struct device *d, const struct request *request)
{
    if (!is_fua(request))
        return state_unsynced(d);
    for (uint64_t slab = first_page(request) >> d->slab_shift; slab <= (end_page(request) - 1) >> d->slab_shift; slab++)
        if (state_slab_unsynced(d, (uint32_t)slab))
            return true;
    return false;
}

void flush_state_synced(struct device *d, int error)
{
    struct request *list = take(&d->flush.syncing);
    d->flush.sync_in_flight = false;
    state_synced(d, error);
    while (list) {
        struct request *request = list;
        list = request->next;
        answer(d, request, error ? error : verdict(d, request));
    }
}

void flush_synced(struct device *d, int error)
{
    struct request *list = take(&d->flush.syncing);
    d->flush.sync_in_flight = false;
    if (error) {
        tally(d, ISW_DEVICE_backup_errors, 1);
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .value = (uint64_t)error});
        d->flush.pause_ns = d->now_ns + BACKUP_RETRY_MS * 1000000ull;
        unsynced_failed(d);
        flush_fail(d, 0, 0, d->pages, error); /* what they wait for may have been written already */
    } else {
        unsynced_done(d);
    }
    while (list) {
        struct request *request = list;
        list = request->next;
        if (!error && waits_for_state(d, request))
            queue_add(&d->flush.syncing, request);
        else
            answer(d, request, error ? error : verdict(d, request));
    }
    if (d->flush.syncing.first) {
        d->flush.sync_in_flight = true;
        state_sync(d, &d->flush.sync);
    }
}

static bool any_client(const struct device *d, const struct request *list)
{
    return list && (list != &d->stop.flush || list->next);
}

/* A page's backup copy does not count any more.  It comes there again, but not for a FLUSH that came before. */
void flush_note_loss(struct device *d)
{
    if (any_client(d, d->flush.waiting.first) || any_client(d, d->flush.syncing.first))
        d->flush.losses++;
}

static void end_epoch(struct device *d)
{
    if (d->epochs.now - d->epochs.done < EPOCHS - 1)
        d->epochs.now++;
}

void flush_add(struct device *d, struct request *request)
{
    request->epoch = d->epochs.now;
    request->losses_told = d->flush.losses_told;
    request->next = NULL;
    *d->flush.waiting.end = request;
    d->flush.waiting.end = &request->next;
    end_epoch(d);
    sweep_hurry(d);
}

/* The backup would not take pages of that epoch: who waits for them hears of it, instead of waiting for a disk that may
 * never mend.  A FUA request waits for its own pages only. */
void flush_fail(struct device *d, uint64_t epoch, uint64_t first, uint64_t pages, int error)
{
    struct request *list = take(&d->flush.waiting);
    while (list) {
        struct request *request = list;
        list = request->next;
        bool other = is_fua(request) && (end_page(request) <= first || first_page(request) >= first + pages);
        if (request->epoch < epoch || other)
            queue_add(&d->flush.waiting, request);
        else
            answer(d, request, error);
    }
}

static bool own_pages_written(const struct device *d, const struct request *request)
{
    if (!is_fua(request) || request->length > ISW_REQUEST_BYTES_MAX)
        return false;
    for (uint64_t page = first_page(request); page < end_page(request); page++)
        if (page_pending(d, page) || d->page[page].meta & (ISW_PAGE_PUNCH | ISW_PAGE_WRITING) || page_only_remote(d, page))
            return false;
    return true;
}

/* While a page that the backup would not take keeps its epoch from being over, FUA requests for others go on. */
static void pass_by(struct device *d)
{
    struct request *list = take(&d->flush.waiting);
    while (list) {
        struct request *request = list;
        list = request->next;
        queue_add(own_pages_written(d, request) ? &d->flush.syncing : &d->flush.waiting, request);
    }
}

static bool resting(const struct device *d)
{
    return d->counters[ISW_DEVICE_backup_resting_pages] ||
           (d->punches.failed_ns && d->now_ns - d->punches.failed_ns < 2 * BACKUP_RETRY_MS * 1000000ull);
}

void flush_run(struct device *d)
{
    if (d->flush.waiting.first && d->flush.waiting.first->epoch == d->epochs.now)
        end_epoch(d);
    while (d->epochs.done < d->epochs.now && !d->epochs.count[d->epochs.done % EPOCHS])
        d->epochs.done++;
    if (d->flush.sync_in_flight || d->now_ns < d->flush.pause_ns)
        return;
    struct request *request;
    while ((request = d->flush.waiting.first) && request->epoch < d->epochs.done) {
        d->flush.waiting.first = request->next;
        if (!request->next)
            d->flush.waiting.end = &d->flush.waiting.first;
        queue_add(&d->flush.syncing, request);
    }
    if (d->flush.waiting.first && resting(d))
        pass_by(d);
    if (!d->flush.syncing.first && !unsynced_wants_sync(d))
        return;
    d->flush.sync_in_flight = true;
    d->flush.sync = (struct backup_request){.kind = BACKUP_SYNC};
    tally(d, ISW_DEVICE_backup_syncs, 1);
    unsynced_submitted(d);
    d->backup->methods->submit(d->backup, &d->flush.sync);
}

bool everything_on_backup(const struct device *d)
{
    return !d->counters[ISW_DEVICE_pending_pages] && !d->counters[ISW_DEVICE_only_remote_pages] && !d->writeback.in_flight &&
           !d->direct_in_flight && !d->punches.first && !d->flush.sync_in_flight;
}
