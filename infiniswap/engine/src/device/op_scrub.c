/* Scrubbing: every page that has two copies is read from both and compared with its checksum, a few pages at a time and at
 * a rate.  Nothing is repaired here: the copy that is wrong just stops to count, and what is left of the page is then like
 * that of any page with one copy: promotion or resync makes the other one anew.
 *
 * No page is locked, for a page-in would wait behind the disk.  As with reads, the write counters tell whether a write
 * came between; its pages are new and need no look.
 *
 * A verification goes the same way, changes nothing, and looks at remote copies of pages that are not on the backup, too. */
#include "device.h"
#include "events.h"
#include "op.h"
#include "op_move.h"
#include "op_scrub.h"
#include "pages.h"
#include "peer.h"
#include "pool.h"
#include "prefetch.h"

#include <errno.h>

enum {
    SCRUB_PAGES = 32, /* of one operation */
    SCRUBBERS = 2,    /* operations at a time */
    SCRUB_SCAN_PAGES = 4096, /* looked at in one round */
    SCRUB_BEHIND_NS = 100000000, /* of the rate, what was not used is lost after this time */
};

enum scrub_kind { SCRUB_NOT, SCRUB_BUSY, SCRUB_BOTH, SCRUB_DISK, SCRUB_REMOTE };

static enum scrub_kind kind_of(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    bool remote = meta & ISW_PAGE_REMOTE && slab_mapped(d, slab_of(d, page));
    if (meta & (ISW_PAGE_BUSY | ISW_PAGE_DISK_BUSY | ISW_PAGE_WRITING))
        return SCRUB_BUSY;
    if (!(meta & ISW_PAGE_DISK) || page_pending(d, page))
        return remote && d->scrub.verify ? SCRUB_REMOTE : SCRUB_NOT;
    return remote ? SCRUB_BOTH : SCRUB_DISK;
}

static void skip(struct device *d, uint64_t pages)
{
    if (d->scrub.verify)
        tally(d, ISW_DEVICE_verify_skipped_pages, pages);
}

static void finish(struct device *d, struct op *op)
{
    d->scrub.in_flight--;
    op->stage = STAGE_DONE;
    op_give(d, op);
}

/* False: something is missing just now. */
static bool start(struct device *d, enum scrub_kind kind, uint64_t first, uint32_t pages)
{
    bool freed = d->resources_freed; /* what goes back for want of the rest wakes nobody */
    struct op *op = op_take(d, OP_SCRUB, first, pages);
    if (!op)
        return false;
    d->scrub.in_flight++;
    op->cursor = pages_sequence(d, first, pages);
    op->order = kind == SCRUB_REMOTE;
    op->stage = kind == SCRUB_DISK ? STAGE_BACKUP : STAGE_REMOTE;
    if (!read_buffer_take(d, op) ||
        !op_transfer(d, op, kind == SCRUB_DISK ? TRANSFER_DISK_READ : TRANSFER_PEER_READ, 0, pages)) {
        finish(d, op);
        d->resources_freed = freed;
        return false;
    }
    return true;
}

static void pass_ended(struct device *d)
{
    d->scrub.running = false;
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_SCRUBBED, .value = d->counters[ISW_DEVICE_scrub_checked_pages]});
}

void scrub_begin(struct device *d, uint32_t pages_per_s, bool verify)
{
    d->scrub.running = pages_per_s != 0;
    if (pages_per_s) /* what is still out when a pass is ended is of that one */
        d->scrub.verify = verify;
    d->scrub.told = 0;
    d->scrub.pages_per_s = pages_per_s;
    d->scrub.at = 0;
    d->scrub.next_ns = d->now_ns;
    set64(&d->counters[ISW_DEVICE_scrub_position_pages], 0);
}

void scrub_run(struct device *d)
{
    struct scrub *s = &d->scrub;
    uint32_t budget = SCRUB_SCAN_PAGES;
    if (!s->running)
        return;
    if (d->now_ns > SCRUB_BEHIND_NS && s->next_ns < d->now_ns - SCRUB_BEHIND_NS)
        s->next_ns = d->now_ns - SCRUB_BEHIND_NS;
    while (s->at < d->pages && budget && s->in_flight < SCRUBBERS && s->next_ns <= d->now_ns) {
        if (d->pool.ops_free < ISW_OPS / 2)
            return;
        enum scrub_kind kind = kind_of(d, s->at);
        uint32_t pages = 1;
        budget--;
        if (kind == SCRUB_BUSY)
            skip(d, 1);
        while (kind > SCRUB_BUSY && pages < SCRUB_PAGES && s->at + pages < d->pages &&
               slab_of(d, s->at + pages) == slab_of(d, s->at) && kind_of(d, s->at + pages) == kind)
            pages++;
        if (kind > SCRUB_BUSY) {
            if (!start(d, kind, s->at, pages))
                return;
            s->next_ns += 1000000000ull * pages / s->pages_per_s;
        }
        s->at += pages;
        set64(&d->counters[ISW_DEVICE_scrub_position_pages], s->at);
    }
    if (s->at >= d->pages && !s->in_flight)
        pass_ended(d);
}

/* What a verification found is told, but not for ever: thousands of events would push others out. */
static void differs(struct device *d, uint64_t page, enum isw_copy copy, enum isw_device_counter counter)
{
    tally(d, counter, 1);
    if (d->scrub.told < ISW_VERIFY_TOLD_MAX) {
        d->scrub.told++;
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_DIFFERS, .slab = copy, .value = page});
    }
}

/* A verification's word on a page whose remote copy was read (forged: no seal of ours opens it) and, unless remote alone is
 * asked for, the backup's. */
static void compare(struct device *d, uint64_t page, uint32_t remote_sum, bool forged, const uint8_t *disk, bool remote_alone)
{
    uint32_t sum = d->page[page].checksum, disk_sum = disk ? page_checksum(d, disk) : ~sum;
    tally(d, ISW_DEVICE_verify_remote_pages, 1);
    if (!remote_alone)
        tally(d, ISW_DEVICE_verify_backup_pages, 1);
    if (!remote_alone && disk && !forged && disk_sum == remote_sum && disk_sum != sum) {
        differs(d, page, ISW_COPY_RECORD, ISW_DEVICE_verify_wrong_records);
        return;
    }
    if (remote_sum != sum)
        differs(d, page, ISW_COPY_REMOTE, ISW_DEVICE_verify_wrong_remote);
    if (!remote_alone && !disk)
        differs(d, page, ISW_COPY_UNREADABLE, ISW_DEVICE_verify_unreadable_pages);
    else if (!remote_alone && disk_sum != sum)
        differs(d, page, ISW_COPY_BACKUP, ISW_DEVICE_verify_wrong_backup);
}

/* Both copies of a page were read and no write came between: which of them count? */
static void judge(struct device *d, uint64_t page, uint32_t remote_sum, bool forged, const uint8_t *disk)
{
    if (d->scrub.verify) {
        compare(d, page, remote_sum, forged, disk, false);
        return;
    }
    uint32_t sum = d->page[page].checksum, disk_sum = disk ? page_checksum(d, disk) : ~sum;
    bool remote_good = remote_sum == sum, disk_good = disk && disk_sum == sum;
    tally(d, ISW_DEVICE_scrub_checked_pages, 1);
    if (remote_good && disk_good)
        return;
    if (!remote_good)
        peer_tell(d, ISW_EVENT_MISMATCH, (uint32_t)d->slab_views[slab_of(d, page)].peer, slab_of(d, page), page);
    if (!disk_good)
        prefetch_distrust_backup(d, page);
    if (remote_good) {
        tally(d, ISW_DEVICE_scrub_backup_repairs, 1);
        page_set_flags(d, page, 0, ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL);
    } else if (disk_good) {
        tally(d, ISW_DEVICE_scrub_remote_repairs, 1);
        tally(d, ISW_DEVICE_checksum_mismatches, 1);
        page_set_flags(d, page, 0, ISW_PAGE_REMOTE);
    } else if (disk && !forged && disk_sum == remote_sum) {
        tally(d, ISW_DEVICE_scrub_record_repairs, 1); /* two copies agree: it is the checksum that is wrong */
        page_set_remote(d, page, disk_sum, 0);
    } else {
        tally(d, ISW_DEVICE_checksum_mismatches, 1);
        pages_lost(d, 1);
        page_set_flags(d, page, ISW_PAGE_LOST, ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_DOUBTFUL);
    }
    movers_add(d, page);
}

/* Only the backup has it, and of that no checksum is kept: it can be read or not. */
static void judge_alone(struct device *d, uint64_t page, bool readable)
{
    if (d->scrub.verify) {
        tally(d, ISW_DEVICE_verify_backup_pages, 1);
        if (!readable)
            differs(d, page, ISW_COPY_UNREADABLE, ISW_DEVICE_verify_unreadable_pages);
        return;
    }
    tally(d, ISW_DEVICE_scrub_checked_pages, 1);
    if (readable)
        return;
    tally(d, ISW_DEVICE_scrub_unreadable_pages, 1);
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .slab = slab_of(d, page), .value = EIO});
}

/* A run that cannot be read is read again page by page, to find the one that cannot. */
static bool disk_again(struct device *d, struct op *op, struct transfer *t)
{
    uint64_t rest = page_bits(0, op->pages) & ~op->done;
    if (t->pages == 1 || !rest)
        return false;
    return op_transfer(d, op, TRANSFER_DISK_READ, (uint32_t)__builtin_ctzll(rest), 1);
}

static void disk_read(struct device *d, struct op *op, struct transfer *t, int error)
{
    bool undisturbed = pages_sequence(d, op->first, op->pages) == op->cursor;
    if (error && t->pages > 1 && undisturbed && disk_again(d, op, t))
        return;
    if (error)
        tally(d, ISW_DEVICE_backup_errors, 1);
    for (uint32_t i = t->at; undisturbed && i < t->at + t->pages; i++) {
        uint64_t page = op->first + i;
        enum scrub_kind now = kind_of(d, page);
        if (op->careful && now == SCRUB_BOTH)
            judge(d, page, op->intent->checksum[i], op->losing >> i & 1, error ? NULL : op_page(d, op, i));
        else if (!op->careful && (now == SCRUB_BOTH || now == SCRUB_DISK))
            judge_alone(d, page, !error);
        else
            skip(d, 1);
    }
    if (!undisturbed)
        skip(d, op->pages - (uint32_t)__builtin_popcountll(op->done));
    op->done |= page_bits(t->at, t->pages);
    uint64_t rest = page_bits(0, op->pages) & ~op->done;
    if (!rest || !undisturbed || !op_transfer(d, op, TRANSFER_DISK_READ, (uint32_t)__builtin_ctzll(rest), 1))
        finish(d, op);
}

/* Pages that only a peer has, or whose way to the backup is not over: it may be by now, the remote copy is the same. */
static void remote_read(struct device *d, struct op *op)
{
    bool undisturbed = pages_sequence(d, op->first, op->pages) == op->cursor;
    for (uint32_t i = 0; i < op->pages; i++) {
        enum scrub_kind now = kind_of(d, op->first + i);
        if (undisturbed && (now == SCRUB_REMOTE || now == SCRUB_BOTH))
            compare(d, op->first + i, op->intent->checksum[i], op->losing >> i & 1, NULL, true);
        else
            skip(d, 1);
    }
    finish(d, op);
}

/* careful: the remote copies were read, and their checksums stand in the intent. */
void op_scrub_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    if (t->kind == TRANSFER_DISK_READ) {
        disk_read(d, op, t, error);
        return;
    }
    if (error || t->generation != d->slab_views[t->slab].generation) {
        skip(d, op->pages);
        finish(d, op); /* the peer is lost, or the slab is given up: nothing to compare any more */
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++)
        if (!remote_checksum(d, op->first + i, op_page(d, op, i), &op->intent->checksum[i]))
            op->losing |= page_bits(i, 1);
    if (op->order) {
        remote_read(d, op);
        return;
    }
    op->careful = true;
    op->stage = STAGE_BACKUP;
    if (!op_transfer(d, op, TRANSFER_DISK_READ, 0, op->pages)) {
        skip(d, op->pages);
        finish(d, op);
    }
}
