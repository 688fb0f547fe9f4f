/* Ranges to zero on the backup, for pages that were trimmed: slab after slab, behind the requests. */
#include "pending.h"

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

static void to_the_end(struct device *d, struct slab *slab)
{
    d->punch_first = slab->next_punch;
    if (!d->punch_first)
        d->punch_end = &d->punch_first;
    slab->next_punch = NULL;
    *d->punch_end = slab;
    d->punch_end = &slab->next_punch;
}

void punch_some(struct device *d)
{
    struct slab *slab = d->punch_first;
    for (uint64_t left = d->counters[ISW_DEVICE_punch_slabs]; slab && d->now_ns < slab->punch_rest_ns; slab = d->punch_first) {
        if (!left--)
            return; /* all of them rest */
        to_the_end(d, slab);
    }
    if (!slab || !unsynced_room(d))
        return;
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
    uint64_t page = base + slab->punch_at;
    while (page < end) {
        if (!to_punch(d, page)) {
            page++;
            continue;
        }
        struct run *run = unsynced_room(d) ? run_take(d) : NULL;
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
    if (slab->punch_again || !punch_pass_ended(d, slab)) {
        slab->punch_again = false;
        slab->punch_at = 0;
        to_the_end(d, slab);
        return;
    }
    d->punch_first = slab->next_punch;
    if (!d->punch_first)
        d->punch_end = &d->punch_first;
    slab->punching = false;
    epoch_remove(d, slab->punch_epoch);
    untally(d, ISW_DEVICE_punch_slabs, 1);
}

void punch_run_done(struct device *d, struct run *run, int error)
{
    struct slab *slab = &d->slab[slab_of(d, run->first)];
    slab->punch_runs--;
    if (error) {
        d->punch_failed_ns = d->now_ns;
        slab->punch_rest_ns = d->now_ns + BACKUP_RETRY_MS * 1000000ull;
        flush_fail(d, slab->punch_epoch, run->first, run->pages, error);
    } else {
        unsynced_add(d, run->first, run->pages);
    }
    for (uint32_t i = 0; i < run->pages; i++) {
        uint64_t page = run->first + i;
        if (!error)
            page_set_flags(d, page, 0, ISW_PAGE_PUNCH);
        disk_idle(d, page);
    }
}
