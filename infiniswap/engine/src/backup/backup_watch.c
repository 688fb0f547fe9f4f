/* A backup file that somebody else cuts short: what was on the lost part must not come back as zeroes once a write beyond
 * the end has made the file grow.  So its size is looked at before each round of writes, and each second. */
#include "backup_watch.h"
#include "device.h"
#include "events.h"
#include "log.h"
#include "pages.h"
#include "slab.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where the lost part begins at the latest: writes that were in flight may have made the file grow since. */
static uint64_t lost_from(const struct device *d, uint64_t size_bytes)
{
    uint64_t from = size_bytes / ISW_PAGE_BYTES;
    return d->watch.lowest < from ? d->watch.lowest : from;
}

/* The backup's copy of the page; true: it was the only one. */
static bool page_gone(struct device *d, uint64_t page)
{
    bool held = d->page[page].meta & ISW_PAGE_REMOTE && slab_keeps_copies(d, slab_of(d, page));
    if (!held)
        pages_lost(d, 1);
    page_set_flags(d, page, held ? 0 : ISW_PAGE_LOST, ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL);
    return !held;
}

static void tell_cut(struct device *d, uint64_t size_bytes, uint64_t lost)
{
    uint32_t told = lost < UINT32_MAX ? (uint32_t)lost : UINT32_MAX;
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_CUT, .slab = told, .value = size_bytes});
}

static void backup_cut(struct device *d, uint64_t size_bytes)
{
    uint64_t lost = 0, hole = lost_from(d, size_bytes), data = hole;
    for (uint64_t page = hole; page < d->pages; page++) {
        while (page >= data && data < d->pages) { /* the next stretch that is not there: hole to data */
            off_t found = lseek(d->backup->fd, (off_t)(page * ISW_PAGE_BYTES), SEEK_HOLE);
            hole = found < 0 ? page : (uint64_t)found / ISW_PAGE_BYTES;
            found = lseek(d->backup->fd, (off_t)(hole * ISW_PAGE_BYTES), SEEK_DATA);
            data = found < 0 ? d->pages : (uint64_t)found / ISW_PAGE_BYTES;
            data = data > page ? data : page + 1;
        }
        if (page < hole || !(d->page[page].meta & ISW_PAGE_DISK))
            continue;
        lost += page_gone(d, page);
    }
    /* What never was written reads as zeroes, and need be nowhere; but the next look shall see whether it happens again. */
    if (ftruncate(d->backup->fd, (off_t)d->config.size_bytes) < 0)
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .value = (uint64_t)errno});
    tell_cut(d, size_bytes, lost);
}

/* A log's file always has its whole length.  Holes that chunks in flight have grown over do not meet their checksums. */
static void log_check_length(struct device *d)
{
    isw_log *log = d->config.backup_log;
    uint64_t size_bytes = log_cut_at(log), lost = 0;
    if (!size_bytes)
        return;
    for (uint64_t page = 0; page < d->pages; page++)
        if (d->page[page].meta & ISW_PAGE_DISK && log_is_beyond(log, page, size_bytes))
            lost += page_gone(d, page);
    log_cut(log, size_bytes);
    tell_cut(d, size_bytes, lost);
}

void backup_check(struct device *d)
{
    struct stat now;
    d->watch.next_ns = d->now_ns + BACKUP_WATCH_MS * 1000000ull;
    if (d->config.backup_log) {
        log_check_length(d);
        return;
    }
    if (d->backup->fd < 0 || fstat(d->backup->fd, &now) < 0 || !S_ISREG(now.st_mode))
        return;
    if ((uint64_t)now.st_size < d->config.size_bytes)
        backup_cut(d, (uint64_t)now.st_size);
    if (!d->writeback.in_flight && !d->direct_in_flight)
        d->watch.lowest = d->pages;
}

void backup_watch(struct device *d)
{
    if (d->now_ns >= d->watch.next_ns)
        backup_check(d);
}

/* Before a write at that page is submitted; one look a round. */
void backup_before_write(struct device *d, uint64_t page)
{
    if (d->watch.checked_ns != d->now_ns) {
        d->watch.checked_ns = d->now_ns;
        backup_check(d);
    }
    if (page < d->watch.lowest)
        d->watch.lowest = page;
}
