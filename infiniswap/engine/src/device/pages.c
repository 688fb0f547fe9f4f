/* The page table: flags, checksums, who owns a page just now, and the counts per slab that follow from the flags. */
#include "device.h"
#include "flush.h"
#include "moving.h"
#include "op.h"
#include "op_resync.h"
#include "pages.h"
#include "pending.h"
#include "punch.h"
#include "state_sync.h"

static uint32_t index_of(uint32_t meta)
{
    return meta >> ISW_PAGE_INDEX_SHIFT;
}

/* One store: a killed process leaves no entry with half of a change. */
static void store(struct isw_page *page, uint32_t sum, uint32_t meta)
{
    union {
        struct isw_page page;
        uint64_t word;
    } value = {.page = {sum, meta}};
    __atomic_store_n((uint64_t *)(void *)page, value.word, __ATOMIC_RELAXED);
}

uint32_t page_pending(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    if (!(meta & ISW_PAGE_BUSY))
        return index_of(meta);
    const struct op *owner = &d->ops[index_of(meta)];
    return owner->pending[page - owner->first];
}

static bool only_remote(uint32_t meta, bool pending)
{
    return (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE && !pending;
}

bool page_only_remote(const struct device *d, uint64_t page)
{
    return only_remote(d->page[page].meta, page_pending(d, page));
}

/* Pages with one copy, which another machine holds, are counted: FLUSH, stop and the release of their slab wait for them. */
static void count_only_remote(struct device *d, uint32_t number, bool is)
{
    if (is) {
        d->slab[number].only_remote++;
        tally(d, ISW_DEVICE_only_remote_pages, 1);
        resync_add(d, number);
        resync_hold(d);
    } else {
        if (must_hold(d, d->slab[number].only_remote, ISW_INVARIANT_COUNT, number))
            d->slab[number].only_remote--;
        untally(d, ISW_DEVICE_only_remote_pages, 1);
        if (!d->counters[ISW_DEVICE_only_remote_pages])
            resync_settled(d);
    }
}

/* What nearly all changes are about, on the way of every write: a page that is on the backup, or pending, before and after. */
static bool counts_stay(uint32_t was, bool was_pending, uint32_t is, bool is_pending)
{
    return !((was | is) & (ISW_PAGE_LOST | ISW_PAGE_DOUBTFUL)) && !only_remote(was, was_pending) && !only_remote(is, is_pending);
}

/* A power cut takes the pending buffer, and leaves what the backup has: that is what was flushed.  A page that is lost without
 * one stays so. */
static uint32_t lost_checksum(bool pending)
{
    return pending ? ISW_LOST_PENDING : 0;
}

/* Keeps the counts when a page's flags or its pending buffer change. */
static void count_change(struct device *d, uint64_t page, uint32_t was, bool was_pending, uint32_t is, bool is_pending)
{
    bool lost_before = (was & ISW_PAGE_LOST) && !was_pending, lost_now = (is & ISW_PAGE_LOST) && !is_pending;
    if (was & ISW_PAGE_DISK && only_remote(is, is_pending))
        flush_note_loss(d);
    if (only_remote(was, was_pending) != only_remote(is, is_pending))
        count_only_remote(d, slab_of(d, page), only_remote(is, is_pending));
    if (lost_before && !lost_now)
        untally(d, ISW_DEVICE_unreadable_pages, 1);
    else if (!lost_before && lost_now)
        tally(d, ISW_DEVICE_unreadable_pages, 1);
    if ((was & ISW_PAGE_DOUBTFUL) && !(is & ISW_PAGE_DOUBTFUL))
        untally(d, ISW_DEVICE_doubtful_pages, 1);
    else if (!(was & ISW_PAGE_DOUBTFUL) && (is & ISW_PAGE_DOUBTFUL))
        tally(d, ISW_DEVICE_doubtful_pages, 1);
}

static void note_lost(struct device *d, uint64_t page, bool pending)
{
    store(&d->page[page], lost_checksum(pending), d->page[page].meta);
    state_lost_changed(d, slab_of(d, page));
}

void page_set_pending(struct device *d, uint64_t page, uint32_t buffer)
{
    struct isw_page *entry = &d->page[page];
    uint32_t *slot = NULL, was;
    if (entry->meta & ISW_PAGE_BUSY) {
        struct op *owner = &d->ops[index_of(entry->meta)];
        slot = &owner->pending[page - owner->first];
        was = *slot;
        *slot = buffer;
    } else {
        was = index_of(entry->meta);
        store(entry, entry->checksum, (entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1)) | buffer << ISW_PAGE_INDEX_SHIFT);
    }
    if (!was != !buffer) {
        if (entry->meta & ISW_PAGE_LOST)
            note_lost(d, page, buffer);
        count32(&d->slab_views[slab_of(d, page)].pending_pages, buffer ? 1 : -1);
        if (!counts_stay(entry->meta, was, entry->meta, buffer))
            count_change(d, page, entry->meta, was, entry->meta, buffer);
    }
}

struct op *page_owner(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    return meta & ISW_PAGE_BUSY ? &d->ops[index_of(meta)] : NULL;
}

static bool only_on_backup(uint32_t meta)
{
    return (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_DISK;
}

enum { COUNTED_FLAGS = ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_LOST | ISW_PAGE_DOUBTFUL };

static void counted_change(struct device *d, uint64_t page, uint32_t was, uint32_t is)
{
    struct isw_slab_view *view = &d->slab_views[slab_of(d, page)];
    if ((was ^ is) & ISW_PAGE_REMOTE)
        count32(&view->remote_pages, is & ISW_PAGE_REMOTE ? 1 : -1);
    if (only_on_backup(was) != only_on_backup(is))
        count32(&view->backup_pages, only_on_backup(is) ? 1 : -1);
    if (counts_stay(was, false, is, false))
        return;
    bool pending = page_pending(d, page);
    if ((was ^ is) & ISW_PAGE_LOST & is)
        note_lost(d, page, pending);
    else if ((was ^ is) & ISW_PAGE_LOST)
        state_lost_changed(d, slab_of(d, page));
    if (!counts_stay(was, pending, is, pending))
        count_change(d, page, was, pending, is, pending);
}

static void change(struct device *d, uint64_t page, uint32_t sum, uint32_t meta)
{
    struct isw_page *entry = &d->page[page];
    uint32_t was = entry->meta;
    if (d->moves.first)
        moving_page_changes(d, page, sum, meta);
    store(entry, sum, meta);
    if ((was ^ meta) & COUNTED_FLAGS)
        counted_change(d, page, was, meta);
}

void page_set_flags(struct device *d, uint64_t page, uint32_t set, uint32_t clear)
{
    change(d, page, d->page[page].checksum, (d->page[page].meta & ~clear) | set);
}

/* Such a page has no checksum: its place is for the epoch. */
void page_set_punch(struct device *d, uint64_t page, uint64_t epoch, uint32_t set, uint32_t clear)
{
    change(d, page, (uint32_t)epoch, (d->page[page].meta & ~clear) | set | ISW_PAGE_PUNCH);
}

uint64_t page_punch_epoch(const struct device *d, uint64_t page)
{
    uint64_t epoch = d->epochs.done + (uint32_t)(d->page[page].checksum - (uint32_t)d->epochs.done);
    return epoch < d->epochs.now ? epoch : d->epochs.now;
}

void page_set_remote(struct device *d, uint64_t page, uint32_t sum, uint32_t clear)
{
    change(d, page, sum, (d->page[page].meta & ~clear) | ISW_PAGE_REMOTE);
}

bool pages_lock(struct device *d, struct op *op)
{
    for (uint64_t page = op->first; page < op->first + op->pages; page++) {
        struct op *owner = page_owner(d, page);
        if (owner) {
            tally(d, ISW_DEVICE_busy_waits, 1);
            op_wait_for(op, owner);
            return false;
        }
    }
    for (uint32_t i = 0; i < op->pages; i++) {
        struct isw_page *entry = &d->page[op->first + i];
        op->pending[i] = index_of(entry->meta);
        store(entry, entry->checksum,
              (entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1)) | ISW_PAGE_BUSY | op->tag << ISW_PAGE_INDEX_SHIFT);
    }
    op->locked = true;
    if (op->request && !op->request->locked_ns)
        op->request->locked_ns = d->now_ns;
    return true;
}

void pages_unlock(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        struct isw_page *entry = &d->page[op->first + i];
        uint32_t flags = entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1) & ~(uint32_t)ISW_PAGE_BUSY;
        store(entry, entry->checksum, flags | op->pending[i] << ISW_PAGE_INDEX_SHIFT);
    }
    op->locked = false;
    op_wake_waiters(d, op);
}

static uint32_t *sequence_of(const struct device *d, uint64_t page)
{
    return &d->sequence[(page * 0x9e3779b97f4a7c15ull) >> 48];
}

uint64_t pages_sequence(const struct device *d, uint64_t first, uint32_t pages)
{
    uint64_t sum = 0;
    for (uint64_t page = first; page < first + pages; page++)
        sum += *sequence_of(d, page);
    return sum;
}

void pages_touch_sequence(struct device *d, uint64_t first, uint64_t pages)
{
    for (uint64_t page = first; page < first + pages; page++)
        ++*sequence_of(d, page);
}

void pages_recount(struct device *d)
{
    for (uint64_t page = 0; page < d->pages; page++) {
        struct isw_page *entry = &d->page[page];
        uint32_t meta = entry->meta & ISW_PAGE_PERSISTENT & ~(uint32_t)ISW_PAGE_WRITING;
        uint32_t sum = meta & ISW_PAGE_LOST ? lost_checksum(false) : entry->checksum;
        if (meta != entry->meta || sum != entry->checksum)
            store(entry, sum, meta);
        if (!meta)
            continue;
        struct isw_slab_view *view = &d->slab_views[slab_of(d, page)];
        view->remote_pages += (meta & ISW_PAGE_REMOTE) != 0;
        view->backup_pages += only_on_backup(meta);
        count_change(d, page, 0, false, meta, false);
        if (meta & ISW_PAGE_PUNCH) {
            store(entry, (uint32_t)d->epochs.now, meta);
            punch_wanted(d, page, d->epochs.now);
        }
    }
    if (d->config.recovering)
        d->flush.losses = d->counters[ISW_DEVICE_unreadable_pages] + d->counters[ISW_DEVICE_doubtful_pages];
}

void pages_lost(struct device *d, uint64_t pages)
{
    tally(d, ISW_DEVICE_lost_pages, pages);
    d->flush.losses += pages;
}

/* The remote copy does not count any more.  Where a write is about to take the page's place it is lost only if that fails. */
void page_forget_remote(struct device *d, uint64_t page)
{
    struct op *owner = page_owner(d, page);
    bool safe = d->page[page].meta & ISW_PAGE_DISK;
    if (!safe && !page_pending(d, page)) {
        if (owner && owner->kind == OP_WRITE && (owner->stage == STAGE_REMOTE || owner->stage == STAGE_BACKUP))
            owner->losing |= page_bits((uint32_t)(page - owner->first), 1);
        else
            pages_lost(d, 1);
    }
    /* LOST until the pending copy is on the backup: true at once should the process die before. */
    page_set_flags(d, page, safe ? 0 : ISW_PAGE_LOST, ISW_PAGE_REMOTE);
}

