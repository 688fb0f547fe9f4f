/* What is trimmed its peer may free.  Nobody waits for that, and a slow peer is not told while others wait for it, nor one on hold,
 * nor for want of a transfer; what it has not been sent by the deadline is taken back.  Such a slab is gone through later, or its donor
 * would keep the memory for as long as the slab is mapped: nothing else would ever name these pages to it again.  So is one of which
 * something is trimmed while it moves, wherever it is then: both places may have it, and for a while neither is told. */
#include "device.h"
#include "pages.h"
#include "peer.h"
#include "pool.h"
#include "slab.h"
#include "transport.h"
#include "trims.h"

enum {
    LOOKS = 16384, /* pages in a tick: some 50 us */
    RUNS = 16,     /* sent in a tick */
};

/* It travels before any later write of these pages, on the same connection, and a page that it would hit wrongly fails its checksum. */
static bool send(struct device *d, uint64_t first, uint32_t pages)
{
    struct transfer *t = transfer_take(d, NULL, TRANSFER_PEER_TRIM, 0, pages);
    if (!t)
        return false;
    t->first = first;
    t->skip = 0;
    t->bytes = pages * ISW_PAGE_BYTES;
    t->slab = slab_of(d, first);
    t->generation = d->slab_views[t->slab].generation;
    slab_transfer_begins(d, t, false);
    return true;
}

/* Its peer has memory for it that a TRIM gives back. */
static bool has_memory(const struct device *d, uint32_t slab)
{
    const struct isw_slab_view *view = &d->slab_views[slab];
    return view->state == ISW_SLAB_MAPPED && d->peers[view->peer].transport->trims;
}

static bool may_be_told(const struct device *d, uint32_t slab)
{
    return slab_mapped(d, slab) && !d->peers[d->slab_views[slab].peer].write.pace.slow;
}

void trims_send(struct device *d, uint64_t first, uint32_t pages)
{
    uint32_t slab = slab_of(d, first);
    bool owed = has_memory(d, slab) && !(may_be_told(d, slab) && send(d, first, pages));
    if (owed || d->slab[slab].moving)
        trims_owe(d, slab);
}

static void append(struct device *d, struct slab *slab)
{
    slab->trim.next = NULL;
    *d->trims.end = slab;
    d->trims.end = &slab->trim.next;
    d->trims.slabs++;
}

static struct slab *take_first(struct device *d)
{
    struct slab *slab = d->trims.first;
    d->trims.first = slab->trim.next;
    if (!d->trims.first)
        d->trims.end = &d->trims.first;
    d->trims.slabs--;
    return slab;
}

void trims_owe(struct device *d, uint32_t number)
{
    struct slab *slab = &d->slab[number];
    slab->trim.at = 0;
    if (slab->trim.listed)
        return;
    slab->trim.listed = true;
    append(d, slab);
}

static bool is_free(const struct device *d, uint64_t page)
{
    return !(d->page[page].meta & (ISW_PAGE_REMOTE | ISW_PAGE_BUSY | ISW_PAGE_WRITING)) && !page_pending(d, page);
}

static uint32_t free_run(const struct device *d, uint64_t first, uint64_t end)
{
    uint32_t pages = 0;
    while (first + pages < end && is_free(d, first + pages))
        pages++;
    return pages;
}

/* False: not to its end. */
static bool go_through(struct device *d, struct slab *slab, uint32_t *looks, uint32_t *runs)
{
    uint64_t base = (uint64_t)(slab - d->slab) << d->slab_shift;
    uint64_t end = base + d->slab_pages < d->pages ? base + d->slab_pages : d->pages;
    while (base + slab->trim.at < end) {
        uint64_t first = base + slab->trim.at;
        if (!*looks || !*runs)
            return false;
        uint32_t pages = free_run(d, first, first + *looks < end ? first + *looks : end);
        if (pages && !send(d, first, pages))
            return false;
        uint32_t looked = pages ? pages : 1;
        slab->trim.at += looked;
        *looks -= looked;
        *runs -= pages != 0;
    }
    return true;
}

void trims_run(struct device *d)
{
    uint32_t looks = LOOKS, runs = RUNS;
    for (uint32_t left = d->trims.slabs; left && looks && runs; left--) {
        struct slab *slab = take_first(d);
        uint32_t number = (uint32_t)(slab - d->slab);
        bool leaves = !slab->moving && !has_memory(d, number); /* its memory there comes back as a whole */
        if (leaves || (!slab->moving && may_be_told(d, number) && go_through(d, slab, &looks, &runs)))
            slab->trim.listed = false;
        else
            append(d, slab);
    }
}
