/* One fdatasync at a time, shared by all who want one: the user, the cleaner, a checkpoint, and the log itself. */
#include "log.h"

uint64_t log_sync_want(isw_log *log)
{
    log->sync.wanted = true;
    return log->sync.begun + 1;
}

void log_sync_run(isw_log *log)
{
    struct log_sync *sync = &log->sync;
    bool for_room = log->dead_segments && log_short(log) && log->completed > log->durable && !log->broken;
    if (log->begun_since_sync >= LOG_SEGMENTS_UNSYNCED || for_room)
        sync->wanted = true;
    if (sync->in_flight || (!sync->wanted && !sync->waiting.first))
        return;
    sync->wanted = false;
    sync->in_flight = true;
    sync->begun++;
    sync->covers = log->completed;
    sync->riding = sync->waiting;
    if (!sync->riding.first)
        sync->riding.end = &sync->riding.first;
    log_list_init(&sync->waiting);
    log->begun_since_sync = 0;
    sync->inner = (struct backup_request){.kind = BACKUP_SYNC, .owner = sync};
    log->inner->methods->submit(log->inner, &sync->inner);
}

void log_sync_done(isw_log *log)
{
    struct log_sync *sync = &log->sync;
    struct backup_request *request;
    int error = sync->inner.error;
    sync->in_flight = false;
    if (error) {
        sync->failed = sync->begun;
        log_break(log);
    } else if (!log->broken && sync->covers > log->durable) {
        log->durable = sync->covers;
        if (log_short(log))
            log_segments_settle(log);
    }
    while ((request = log_list_take(&sync->riding)))
        log_done(log, request, error);
}
