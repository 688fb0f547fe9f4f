/* The legal states of the engine's memory between two turns of its loop: flags of a page together, counts that follow from
 * them, buffers and epochs. */
#include "sim.h"

#include "device.h"
#include "invariants.h"
#include "pages.h"
#include "slab.h"

enum { EPOCHS_LOOKED_AT = 64 };

struct counts {
    uint32_t remote, backup, pending, only_remote;
};

static _Noreturn void illegal(const struct device *d, uint64_t page, const char *what)
{
    FAIL("page %llu, slab %u, flags %02x, index %u: %s", (unsigned long long)page, slab_of(d, page), d->page[page].meta & 0xff,
         d->page[page].meta >> ISW_PAGE_INDEX_SHIFT, what);
}

static void check_page(const struct device *d, uint64_t page)
{
    const char *what = page_wrong(d, page);
    if (what)
        illegal(d, page, what);
    if ((d->page[page].meta & ISW_PAGE_REMOTE) && d->slab_views[slab_of(d, page)].state == ISW_SLAB_UNMAPPED)
        illegal(d, page, "REMOTE in a slab that nobody holds");
}

/* Invariant 12: REMOTE without DISK is pending or queued for resync, and a FLUSH waits for both. */
static void check_only_remote(const struct device *d, const struct counts *counts)
{
    uint32_t all = 0;
    for (uint32_t slab = 0; slab < d->slabs; slab++) {
        all += counts[slab].only_remote;
        CHECK_EQUAL(d->slab[slab].only_remote, counts[slab].only_remote);
        CHECK(!counts[slab].only_remote || d->slab[slab].resync.listed);
    }
    CHECK_EQUAL(d->counters[ISW_DEVICE_only_remote_pages], all);
    CHECK_EQUAL(d->resync.held, all != 0);
}

static void check_buffers(const struct device *d)
{
    uint32_t in_use = 0, live = 0, epochs[EPOCHS_LOOKED_AT] = {0};
    for (uint32_t i = 0; i < d->buffers; i++) {
        const struct page_buffer *b = &d->buffer[i];
        const char *what = buffer_wrong(d, i + 1);
        if (what)
            illegal(d, b->page, what);
        in_use += b->state != BUFFER_FREE;
        if (b->state <= BUFFER_HELD)
            continue;
        live++;
        uint32_t age = b->epoch - (uint32_t)d->epochs.done;
        if (age < EPOCHS_LOOKED_AT)
            epochs[age]++;
    }
    for (uint32_t i = 0; i < d->slabs; i++) {
        const struct slab *slab = &d->slab[i];
        if (slab->punch.under_way && slab->punch.epoch - d->epochs.done < EPOCHS_LOOKED_AT)
            epochs[slab->punch.epoch - d->epochs.done]++;
        if (slab->punch.from < slab->punch.to && slab->punch.next_epoch - d->epochs.done < EPOCHS_LOOKED_AT)
            epochs[slab->punch.next_epoch - d->epochs.done]++;
    }
    if (d->resync.held && d->resync.epoch - d->epochs.done < EPOCHS_LOOKED_AT)
        epochs[d->resync.epoch - d->epochs.done]++;
    CHECK_EQUAL(d->buffers - d->pool.buffers_free, in_use);
    CHECK_EQUAL(d->counters[ISW_DEVICE_pending_pages], live);
    for (uint64_t i = 0; i < EPOCHS_LOOKED_AT && d->epochs.done + i <= d->epochs.now; i++)
        if (d->epochs.count[(d->epochs.done + i) % EPOCHS] != epochs[i])
            FAIL("epoch %llu counts %u, but %u wait in it", (unsigned long long)(d->epochs.done + i),
                 d->epochs.count[(d->epochs.done + i) % EPOCHS], epochs[i]);
}

/* Of every guess it is known what became of it, and those that are here and count are the page. */
static void check_guesses(struct sim *sim, const struct device *d)
{
    const struct prefetch *p = &d->prefetch;
    uint32_t held = 0, flying = 0;
    if (!p->trends)
        return;
    for (uint32_t i = 0; i < PREFETCH_PAGES; i++) {
        held += p->guess[i].state != GUESS_FREE;
        flying += p->guess[i].state == GUESS_ASKED;
        bool came = p->guess[i].state == GUESS_READY && p->guess[i].ready_ns > sim->ready_ns;
        sim->met.guesses_of_peers += came && p->guess[i].remote;
        sim->met.guesses_of_disk += came && !p->guess[i].remote;
    }
    sim->ready_ns = d->now_ns;
    CHECK(held == p->held && flying == p->flying && flying <= PREFETCH_FLYING);
    CHECK_EQUAL(d->counters[ISW_DEVICE_prefetch_guesses], d->counters[ISW_DEVICE_prefetch_hits] + d->counters[ISW_DEVICE_prefetch_wasted] +
                                                              d->counters[ISW_DEVICE_prefetch_dropped] + held);
}

void sim_check(struct sim *sim)
{
    const struct device *d = (const struct device *)sim->device;
    struct counts counts[SIM_SLABS_MAX] = {{0}};
    sim->checks++;
    for (uint64_t page = 0; page < d->pages; page++) {
        uint32_t meta = d->page[page].meta, pending = page_pending(d, page);
        if (!meta)
            continue;
        struct counts *c = &counts[slab_of(d, page)];
        c->remote += (meta & ISW_PAGE_REMOTE) != 0;
        c->backup += (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_DISK;
        c->pending += pending != 0;
        check_page(d, page);
        c->only_remote += (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE && !pending;
    }
    check_only_remote(d, counts);
    for (uint32_t slab = 0; slab < d->slabs; slab++) {
        const struct isw_slab_view *view = &d->slab_views[slab];
        if (counts[slab].remote != view->remote_pages || counts[slab].backup != view->backup_pages ||
            counts[slab].pending != view->pending_pages)
            FAIL("slab %u counts %u remote, %u backup, %u pending; there are %u, %u, %u", slab, view->remote_pages,
                 view->backup_pages, view->pending_pages, counts[slab].remote, counts[slab].backup, counts[slab].pending);
    }
    check_buffers(d);
    check_guesses(sim, d);
    sim->met.guessed += d->counters[ISW_DEVICE_prefetch_hits] - sim->guessed;
    sim->guessed = d->counters[ISW_DEVICE_prefetch_hits];
    sim->met.guesses_dropped += d->counters[ISW_DEVICE_prefetch_dropped] - sim->dropped;
    sim->dropped = d->counters[ISW_DEVICE_prefetch_dropped];
}

bool sim_any_doubtful(const struct sim *sim)
{
    for (uint64_t page = 0; page < sim->oracle.pages; page++)
        if (sim->page[page].meta & ISW_PAGE_DOUBTFUL)
            return true;
    return false;
}

bool sim_all_durable(const struct sim *sim)
{
    const struct device *d = (const struct device *)sim->device;
    for (uint64_t page = 0; page < d->pages; page++)
        if ((d->page[page].meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE || page_pending(d, page))
            return false;
    return true;
}
