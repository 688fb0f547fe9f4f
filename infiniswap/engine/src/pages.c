/* The page table: flags, checksums, who owns a page just now, and the counts per slab that follow from the flags. */
#include "device.h"

static uint32_t index_of(uint32_t meta)
{
    return meta >> ISW_PAGE_INDEX_SHIFT;
}

/* One store: a killed process leaves no entry with half of a change. */
static void store(struct isw_page *page, uint32_t crc, uint32_t meta)
{
    union {
        struct isw_page page;
        uint64_t word;
    } value = {.page = {crc, meta}};
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
        store(entry, entry->crc, (entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1)) | buffer << ISW_PAGE_INDEX_SHIFT);
    }
    if (!was != !buffer)
        count32(&d->slab_views[slab_of(d, page)].pending_pages, buffer ? 1 : -1);
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

static void change(struct device *d, uint64_t page, uint32_t crc, uint32_t meta)
{
    struct isw_page *entry = &d->page[page];
    struct isw_slab_view *view = &d->slab_views[slab_of(d, page)];
    uint32_t was = entry->meta;
    if ((was ^ meta) & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) {
        int32_t remote = (int32_t)(meta & ISW_PAGE_REMOTE) - (int32_t)(was & ISW_PAGE_REMOTE);
        if (remote)
            count32(&view->remote_pages, remote);
        if (only_on_backup(was) != only_on_backup(meta))
            count32(&view->backup_pages, only_on_backup(meta) ? 1 : -1);
    }
    store(entry, crc, meta);
}

void page_set_flags(struct device *d, uint64_t page, uint32_t set, uint32_t clear)
{
    change(d, page, d->page[page].crc, (d->page[page].meta & ~clear) | set);
}

void page_set_remote(struct device *d, uint64_t page, uint32_t crc, uint32_t clear)
{
    change(d, page, crc, (d->page[page].meta & ~clear) | ISW_PAGE_REMOTE);
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
        store(entry, entry->crc,
              (entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1)) | ISW_PAGE_BUSY | op->tag << ISW_PAGE_INDEX_SHIFT);
    }
    op->locked = true;
    return true;
}

void pages_unlock(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        struct isw_page *entry = &d->page[op->first + i];
        uint32_t flags = entry->meta & ((1u << ISW_PAGE_INDEX_SHIFT) - 1) & ~(uint32_t)ISW_PAGE_BUSY;
        store(entry, entry->crc, flags | op->pending[i] << ISW_PAGE_INDEX_SHIFT);
    }
    op->locked = false;
    while (op->waiters) {
        struct op *next = op->waiters;
        op->waiters = next->next;
        op_runnable(d, next);
    }
    op->waiters_end = &op->waiters;
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
        if (meta != entry->meta)
            store(entry, entry->crc, meta);
        if (!meta)
            continue;
        struct isw_slab_view *view = &d->slab_views[slab_of(d, page)];
        view->remote_pages += (meta & ISW_PAGE_REMOTE) != 0;
        view->backup_pages += only_on_backup(meta);
        if (meta & ISW_PAGE_PUNCH)
            punch_wanted(d, slab_of(d, page), d->epoch);
    }
}

void slab_forget_remote(struct device *d, uint32_t slab)
{
    uint64_t first = (uint64_t)slab << d->slab_shift, end = first + d->slab_pages;
    for (uint64_t page = first; page < end && page < d->pages; page++) {
        uint32_t meta = d->page[page].meta;
        if (!(meta & ISW_PAGE_REMOTE))
            continue;
        bool safe = meta & ISW_PAGE_DISK;
        /* LOST until the pending copy is on the backup: true at once should the process die before. */
        page_set_flags(d, page, safe ? 0 : ISW_PAGE_LOST, ISW_PAGE_REMOTE);
        if (!safe && !page_pending(d, page))
            tally(d, ISW_DEVICE_lost_pages, 1);
    }
}
