/* FLUSH and FUA: who waits for which epoch, and the fdatasync that they share. */
#include "device.h"

#include <errno.h>

void flush_synced(struct device *d, int error)
{
    struct request *list = d->flush_syncing.first;
    d->flush_syncing.first = NULL;
    d->flush_syncing.end = &d->flush_syncing.first;
    d->sync_in_flight = false;
    if (!error && d->lost_untold && list)
        error = EIO; /* said once: what was acknowledged is not there */
    else if (error) {
        tally(d, ISW_DEVICE_backup_errors, 1);
        event_post(&d->events, ISW_EVENT_BACKUP_ERROR, 0, 0, (uint64_t)error);
    }
    if (list)
        d->lost_untold = false;
    while (list) {
        struct request *request = list;
        list = request->next;
        request_flushed(d, request, error);
    }
}

static void end_epoch(struct device *d)
{
    if (d->epoch - d->epoch_done < EPOCHS - 1)
        d->epoch++;
}

void flush_add(struct device *d, struct request *request)
{
    request->epoch = d->epoch;
    request->next = NULL;
    *d->flush_waiting.end = request;
    d->flush_waiting.end = &request->next;
    end_epoch(d);
}

void flush_run(struct device *d)
{
    if (d->flush_waiting.first && d->flush_waiting.first->epoch == d->epoch)
        end_epoch(d);
    while (d->epoch_done < d->epoch && !d->epoch_count[d->epoch_done % EPOCHS])
        d->epoch_done++;
    if (d->sync_in_flight)
        return;
    struct request *request;
    while ((request = d->flush_waiting.first) && request->epoch < d->epoch_done) {
        d->flush_waiting.first = request->next;
        if (!request->next)
            d->flush_waiting.end = &d->flush_waiting.first;
        request->next = NULL;
        *d->flush_syncing.end = request;
        d->flush_syncing.end = &request->next;
    }
    if (!d->flush_syncing.first)
        return;
    d->sync_in_flight = true;
    d->sync = (struct backup_request){.kind = BACKUP_SYNC};
    tally(d, ISW_DEVICE_backup_syncs, 1);
    d->backup->methods->submit(d->backup, &d->sync);
}

bool everything_on_backup(const struct device *d)
{
    return d->counters[ISW_DEVICE_pending_pages] == 0 && !d->counters[ISW_DEVICE_only_remote_pages] && !d->runs_in_flight && !d->direct_in_flight && !d->punch_first &&
           !d->sync_in_flight;
}
