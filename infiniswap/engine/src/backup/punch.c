/* Ranges to zero on the backup, for pages that were trimmed: slab after slab, behind the requests.
 *
 * A slab is gone through in passes.  What is trimmed while one is under way is for the next one, and each has an epoch of its own:
 * so a FLUSH waits for the pass that its pages are in, and not for others' trims without end.  What a page is owed has the page's
 * own epoch (in the place of its checksum), for a write that takes the zeroes' place, and for a pass that finds it busy. */
#include "backup.h"
#include "device.h"
#include "flush.h"
#include "pages.h"
#include "punch.h"
#include "unsynced.h"
#include "writeback.h"

#include <errno.h>

void punch_wanted(struct device *d, uint64_t page, uint64_t epoch)
{
    struct slab *slab = &d->slab[slab_of(d, page)];
    uint32_t at = (uint32_t)(page & (d->slab_pages - 1));
    if (slab->punch.from >= slab->punch.to) {
        slab->punch.from = at;
        slab->punch.to = at + 1;
        slab->punch.next_epoch = epoch;
        epoch_add(d, epoch);
    } else {
        slab->punch.from = at < slab->punch.from ? at : slab->punch.from;
        slab->punch.to = at >= slab->punch.to ? at + 1 : slab->punch.to;
        if (epoch < slab->punch.next_epoch) {
            epoch_remove(d, slab->punch.next_epoch);
            slab->punch.next_epoch = epoch;
            epoch_add(d, epoch);
        }
    }
    if (slab->punch.listed)
        return;
    slab->punch.listed = true;
    slab->punch.next = NULL;
    *d->punches.end = slab;
    d->punches.end = &slab->punch.next;
    tally(d, ISW_DEVICE_punch_slabs, 1);
}

static void begin_pass(struct slab *slab)
{
    slab->punch.under_way = true;
    slab->punch.at = slab->punch.from;
    slab->punch.end = slab->punch.to;
    slab->punch.epoch = slab->punch.next_epoch; /* counted there already */
    slab->punch.from = slab->punch.to = 0;
}

static bool to_punch(struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    return (meta & (ISW_PAGE_PUNCH | ISW_PAGE_DISK_BUSY | ISW_PAGE_BUSY)) == ISW_PAGE_PUNCH;
}

static void punch_run(struct device *d, struct run *run, uint64_t first, uint32_t pages)
{
    /* Who has waited for them until now waits for this pass.  What is written over them from here on is younger. */
    for (uint32_t i = 0; i < pages; i++)
        page_set_punch(d, first + i, d->epochs.now, ISW_PAGE_DISK_BUSY, 0);
    run->first = first;
    run->pages = pages;
    run->sync_failures = d->flush.sync_failures;
    run->backup = (struct backup_request){.kind = BACKUP_ZERO,
                                          .offset = first * ISW_PAGE_BYTES,
                                          .bytes = (uint64_t)pages * ISW_PAGE_BYTES,
                                          .owner = run};
    d->slab[slab_of(d, first)].punch.runs++;
    tally(d, ISW_DEVICE_backup_punched_pages, pages);
    d->backup->methods->submit(d->backup, &run->backup);
}

/* A quarter of the disk's queue at most: page-outs wait for the rest of it. */
static struct run *take_run(struct device *d, const struct slab *slab)
{
    return slab->punch.runs <= d->config.backup_depth / 4 && unsynced_room(d) ? run_take(d) : NULL;
}

/* Goes on with the slab's pass.  True: it has ended. */
static bool punch_slab(struct device *d, struct slab *slab, uint32_t *budget)
{
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    if (!slab->punch.under_way)
        begin_pass(slab);
    while (slab->punch.at < slab->punch.end && *budget) {
        uint64_t page = base + slab->punch.at;
        uint32_t pages = 0;
        while (pages < *budget && pages < PUNCH_RUN_PAGES_MAX && slab->punch.at + pages < slab->punch.end && to_punch(d, page + pages))
            pages++;
        struct run *run = pages ? take_run(d, slab) : NULL;
        if (pages && !run)
            return false;
        if (pages)
            punch_run(d, run, page, pages);
        else if (d->page[page].meta & ISW_PAGE_PUNCH)
            punch_wanted(d, page, page_punch_epoch(d, page)); /* busy: another time */
        pages = pages ? pages : 1;
        slab->punch.at += pages;
        *budget -= pages;
    }
    if (slab->punch.at < slab->punch.end)
        d->punches.more = true;
    if (slab->punch.at < slab->punch.end || slab->punch.runs)
        return false;
    slab->punch.under_way = false;
    epoch_remove(d, slab->punch.epoch);
    return true;
}

static void to_the_end(struct device *d, struct slab *slab)
{
    d->punches.first = slab->punch.next;
    if (!d->punches.first)
        d->punches.end = &d->punches.first;
    slab->punch.next = NULL;
    *d->punches.end = slab;
    d->punches.end = &slab->punch.next;
}

void punch_some(struct device *d)
{
    uint32_t budget = PUNCH_PAGES_AT_ONCE;
    for (uint64_t left = d->counters[ISW_DEVICE_punch_slabs]; left && budget && unsynced_room(d); left--) {
        struct slab *slab = d->punches.first;
        if (d->now_ns < slab->punch.rest_ns) {
            to_the_end(d, slab);
            continue;
        }
        if (!punch_slab(d, slab, &budget))
            return;
        if (slab->punch.from < slab->punch.to) {
            to_the_end(d, slab);
            continue;
        }
        d->punches.first = slab->punch.next;
        if (!d->punches.first)
            d->punches.end = &d->punches.first;
        slab->punch.listed = false;
        untally(d, ISW_DEVICE_punch_slabs, 1);
    }
}

void punch_run_done(struct device *d, struct run *run, int error)
{
    struct slab *slab = &d->slab[slab_of(d, run->first)];
    slab->punch.runs--;
    if (!error && run->sync_failures != d->flush.sync_failures)
        error = EIO; /* an fdatasync failed meanwhile: perhaps over this */
    if (error) {
        d->punches.failed_ns = d->now_ns;
        slab->punch.rest_ns = d->now_ns + BACKUP_RETRY_MS * 1000000ull;
        flush_fail(d, slab->punch.epoch, run->first, run->pages, error);
    } else {
        unsynced_add(d, run->first, run->pages);
    }
    for (uint32_t i = 0; i < run->pages; i++) {
        uint64_t page = run->first + i;
        if (!error) {
            page_set_flags(d, page, 0, ISW_PAGE_PUNCH);
        } else if (d->page[page].meta & ISW_PAGE_PUNCH) {
            page_set_punch(d, page, slab->punch.epoch, 0, 0);
            punch_wanted(d, page, slab->punch.epoch);
        }
        disk_idle(d, page);
    }
}
