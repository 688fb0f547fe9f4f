/* The legal states of a page and of a pending buffer between two rounds of the loop, and what is done where one is not met. */
#include "device.h"
#include "events.h"
#include "invariants.h"
#include "moving.h"
#include "pages.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    COPIES = ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_PUNCH | ISW_PAGE_LOST | ISW_PAGE_DOUBTFUL,
    CHECKED_AT_ONCE = 256, /* pages, and buffers, of one round */
};

/* Where a page's present version is.  WRITING, BUSY and DISK_BUSY may come to each of these.  ARCHITECTURE.md has this table. */
static const struct legal {
    uint32_t copies;
    bool pending, alone; /* with a pending buffer; without one */
} legal[] = {
    {0, false, true},                                   /* never written: zeroes */
    {ISW_PAGE_PUNCH, false, true},                      /* zeroes, and the backup has something else still */
    {ISW_PAGE_REMOTE, true, true},                      /* alone: it waits for resync */
    {ISW_PAGE_DISK, false, true},
    {ISW_PAGE_REMOTE | ISW_PAGE_DISK, false, true},
    {ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL, false, true},
    {ISW_PAGE_LOST, true, true},                        /* alone: reads fail */
};

static bool copies_legal(uint32_t copies, bool pending)
{
    for (size_t i = 0; i < sizeof legal / sizeof *legal; i++)
        if (legal[i].copies == copies)
            return pending ? legal[i].pending : legal[i].alone;
    return false;
}

const char *page_wrong(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta, number = slab_of(d, page), pending = page_pending(d, page);
    const struct op *owner = page_owner(d, page);
    const struct slab *slab = &d->slab[number];
    bool written = meta & ISW_PAGE_WRITING;
    if (owner && (!owner->locked || owner->stage == STAGE_DONE || page < owner->first || page >= owner->first + owner->pages))
        return "BUSY for an operation that does not hold it";
    if (written && !(owner && owner->kind == OP_WRITE))
        return "WRITING, and no write is under way";
    if (pending && (d->buffer[pending - 1].page != page || d->buffer[pending - 1].state < BUFFER_QUEUED))
        return "its pending buffer is another page's";
    if ((meta & ISW_PAGE_DISK_BUSY) && !pending && !written && !(meta & ISW_PAGE_PUNCH))
        return "DISK_BUSY, and nothing is on its way to the backup";
    if ((meta & ISW_PAGE_PUNCH) && !slab->punch.listed)
        return "PUNCH, and nobody will";
    if (page_only_remote(d, page) && !(slab->resync.listed && slab->only_remote && d->resync.held))
        return "REMOTE is the only copy, and it does not wait for resync";
    if (moving_marked(d, page) && !(meta & ISW_PAGE_REMOTE))
        return "marked as moved, and not REMOTE";
    /* Of a slab that was lost: what was said of its remote copies counts no more, and is taken back a slice a round. */
    bool forgotten = slab->forget.listed && d->slab_views[number].state == ISW_SLAB_UNMAPPED;
    /* A write that goes to the backup may be overtaken by a failed fdatasync: until it has ended DOUBTFUL may be beside any. */
    uint32_t copies = meta & COPIES & ~(written ? (uint32_t)ISW_PAGE_DOUBTFUL : 0);
    return forgotten || copies_legal(copies, pending) ? NULL : "these copies do not go together";
}

const char *buffer_wrong(const struct device *d, uint32_t number)
{
    const struct page_buffer *buffer = &d->buffer[number - 1];
    enum page_buffer_state state = (enum page_buffer_state)buffer->state;
    if (state > BUFFER_IN_FLIGHT)
        return "in no state";
    if (state == BUFFER_FREE || state == BUFFER_HELD)
        return NULL; /* page_wrong sees a page that still names it */
    uint32_t meta = d->page[buffer->page].meta;
    if (state != BUFFER_IN_FLIGHT && page_pending(d, buffer->page) != number)
        return "waits for the backup, and its page does not know it";
    if (state == BUFFER_QUEUED && (meta & ISW_PAGE_DISK_BUSY))
        return "QUEUED while its page is on its way to the backup";
    if (state == BUFFER_IN_FLIGHT && !(meta & ISW_PAGE_DISK_BUSY))
        return "IN_FLIGHT, and its page is not on its way";
    return NULL;
}

void invariant_broken(struct device *d, enum isw_invariant which, uint64_t where)
{
#ifdef ISW_CHECKED
    fprintf(stderr, "invariant %d is broken at %llu\n", (int)which, (unsigned long long)where);
    abort();
#endif
    tally(d, ISW_DEVICE_broken_invariants, 1);
    if (d->invariants.told)
        return;
    d->invariants.told = true;
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BROKEN, .slab = (uint32_t)which, .value = where});
}

#ifdef ISW_CHECKED
static void wrong(struct device *d, enum isw_invariant which, uint64_t page, const char *what)
{
    fprintf(stderr, "page %llu, flags %02x, index %u: %s\n", (unsigned long long)page, d->page[page].meta & 0xff,
            d->page[page].meta >> ISW_PAGE_INDEX_SHIFT, what);
    invariant_broken(d, which, page);
}

void invariants_check(struct device *d)
{
    struct invariants *v = &d->invariants;
    for (uint32_t i = 0; i < CHECKED_AT_ONCE && i < d->pages; i++, v->page = (v->page + 1) % d->pages) {
        const char *what = page_wrong(d, v->page);
        if (what)
            wrong(d, ISW_INVARIANT_PAGE, v->page, what);
    }
    for (uint32_t i = 0; i < CHECKED_AT_ONCE && i < d->buffers; i++, v->buffer = (v->buffer + 1) % d->buffers) {
        const char *what = buffer_wrong(d, v->buffer + 1);
        if (what)
            wrong(d, ISW_INVARIANT_BUFFER, d->buffer[v->buffer].page, what);
    }
}
#endif
