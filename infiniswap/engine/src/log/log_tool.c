/* A log without a device: reads and writes that block, through threads of its own. */
#include "log.h"
#include "log_replay.h"

#include <errno.h>
#include <poll.h>

enum { WAIT_MS = 50 /* nothing is lost by looking again */ };

static int begin(isw_log *log)
{
    if (log->inner)
        return 0;
    struct backup *inner = backup_threads_create(log->fd, false, LOG_INNER_CAPACITY);
    if (!inner)
        return -errno;
    log_backup_create(log, inner);
    log->tools = true;
    return 0;
}

/* Everything that is done, until the log has nothing more to do with it. */
static struct backup_request *next_done(isw_log *log)
{
    log->base.methods->kick(&log->base);
    struct pollfd ready = {.fd = log->base.event_fd, .events = POLLIN};
    poll(&ready, 1, WAIT_MS);
    return log->base.methods->reap(&log->base);
}

void log_tool_end(isw_log *log)
{
    if (!log->inner)
        return;
    while (log->tools && log->sync.in_flight) /* or the end could not be signed */
        next_done(log);
    log->base.methods->destroy(&log->base);
    log->tools = false;
}

static int perform(isw_log *log, enum backup_kind kind, void *data, uint64_t offset, uint32_t bytes)
{
    if (kind != BACKUP_SYNC && (offset % ISW_PAGE_BYTES || !bytes || bytes % ISW_PAGE_BYTES || bytes > 1 << 20 ||
                                offset + bytes > log->geometry.pages * ISW_PAGE_BYTES))
        return -EINVAL;
    if (kind != BACKUP_READ && log->read_only)
        return -EROFS;
    int result = begin(log);
    if (result)
        return result;
    struct iovec iov = {data, bytes};
    struct backup_request request = {.kind = kind, .iov = &iov, .vectors = 1, .offset = offset, .bytes = bytes};
    log->base.methods->submit(&log->base, &request);
    while (next_done(log) != &request)
        ;
    return -request.error;
}

int isw_log_read(isw_log *log, void *data, uint64_t offset, uint32_t bytes)
{
    return perform(log, BACKUP_READ, data, offset, bytes);
}

int isw_log_write(isw_log *log, const void *data, uint64_t offset, uint32_t bytes)
{
    return perform(log, BACKUP_WRITE, (void *)(uintptr_t)data, offset, bytes);
}

int isw_log_sync(isw_log *log)
{
    return perform(log, BACKUP_SYNC, NULL, 0, 0);
}

int log_checkpoint_now(isw_log *log)
{
    int result = begin(log);
    if (result)
        return result;
    uint64_t before = log->generation;
    log->checkpoint_asked = log->opening = true;
    while ((log->generation == before && !log->checkpoint.failures) || log->sync.in_flight)
        next_done(log);
    log->opening = false;
    log_tool_end(log);
    return log->generation == before ? -EIO : 0;
}
