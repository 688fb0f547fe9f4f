/* A log whose file somebody else has cut short: what was beyond is gone, and so may be the chain. */
#include "log.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t log_cut_at(const isw_log *log)
{
    struct stat now;
    if (fstat(log->fd, &now) < 0 || !S_ISREG(now.st_mode) || (uint64_t)now.st_size >= log->geometry.file_bytes)
        return 0;
    return now.st_size ? (uint64_t)now.st_size : 1;
}

bool log_is_beyond(const isw_log *log, uint64_t page, uint64_t size_bytes)
{
    uint32_t place = log->place[page];
    return place && place != LOG_PLACE_BAD && log_place_offset(log, place) + LOG_BLOCK_BYTES > size_bytes;
}

/* Superblocks and maps may be gone, too: a checkpoint is due whether or not anybody writes. */
void log_cut(isw_log *log, uint64_t size_bytes)
{
    for (uint64_t page = 0; page < log->geometry.pages; page++)
        if (log_is_beyond(log, page, size_bytes))
            log_map_set(log, page, LOG_PLACE_BAD, 0, log->completed);
    /* Where it does not work now, the next look finds the file short again. */
    if (ftruncate(log->fd, (off_t)log->geometry.file_bytes) == 0)
        log->checkpoint_asked = true;
    log_break(log, EIO);
}
