/* One fdatasync at a time, shared by all who want one: the user, the cleaner, a checkpoint, and the log itself. */
#include "log.h"

uint64_t log_sync_want(isw_log *log)
{
    log->sync.wanted = true;
    return log->sync.begun + 1;
}

/* The kernel tells of an error once and takes everything for clean then: the next fdatasync would succeed over it.  So whoever asks
 * next hears of it, whosever sync it was that failed. */
static void tell(isw_log *log, struct log_list *list, int error)
{
    struct backup_request *request;
    if (list->first)
        log->sync.untold = 0;
    while ((request = log_list_take(list)))
        log_done(log, request, error);
}

/* A chunk that failed may stand behind the chain all the same, for the next opening to find: until a checkpoint has put the chain's
 * beginning elsewhere no FLUSH can say that what was read since will stay.  So it is where the chain goes on from an end that nobody
 * signed, which may be gone with a power cut.  Where that fails nobody waits any longer: what was written is as safe as ever. */
static bool holds(isw_log *log)
{
    struct log_sync *sync = &log->sync;
    if ((!log->broken && !log->end_unsure) || !sync->waiting.first) {
        sync->held = false;
        return false;
    }
    if (!sync->held)
        sync->held_at = log->checkpoint.failures;
    sync->held = true;
    return log->checkpoint.failures == sync->held_at;
}

void log_sync_run(isw_log *log)
{
    struct log_sync *sync = &log->sync;
    bool for_room = log->dead_segments && log_short(log) && log->completed > log->durable && !log->broken;
    if (log->begun_since_sync >= LOG_SEGMENTS_UNSYNCED || for_room)
        sync->wanted = true;
    if (sync->untold && sync->waiting.first)
        tell(log, &sync->waiting, sync->untold);
    bool held = holds(log);
    if (sync->in_flight || (!sync->wanted && (held || !sync->waiting.first)))
        return;
    sync->wanted = false;
    sync->in_flight = true;
    sync->begun++;
    sync->covers = log->completed;
    log_list_init(&sync->riding);
    if (!held && sync->waiting.first) {
        sync->riding = sync->waiting;
        log_list_init(&sync->waiting);
    }
    log->begun_since_sync = 0;
    sync->inner = (struct backup_request){.kind = BACKUP_SYNC, .owner = sync};
    log->inner->methods->submit(log->inner, &sync->inner);
}

void log_sync_done(isw_log *log)
{
    struct log_sync *sync = &log->sync;
    int error = sync->inner.error;
    sync->in_flight = false;
    if (error) {
        sync->untold = error;
        log_break(log, error);
        log_checkpoint_shake(log);
    } else if (!log->broken && sync->covers > log->durable) {
        log->durable = sync->covers;
        if (log_short(log))
            log_segments_settle(log);
    }
    tell(log, &sync->riding, error);
    if (error)
        tell(log, &sync->waiting, error);
}
