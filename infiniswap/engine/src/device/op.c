/* What all operations share: waiting, transfers, and fetching pages from wherever their present version is. */
#include "backup.h"
#include "client.h"
#include "device.h"
#include "events.h"
#include "op.h"
#include "op_copy.h"
#include "op_hedge.h"
#include "op_lend.h"
#include "op_move.h"
#include "op_read.h"
#include "op_resync.h"
#include "op_scrub.h"
#include "op_write.h"
#include "op_zero.h"
#include "pages.h"
#include "peer.h"
#include "pool.h"
#include "prefetch.h"
#include "slab.h"
#include "trims.h"

#include <errno.h>

void op_runnable(struct device *d, struct op *op)
{
    op->next = NULL;
    *d->schedule.runnable_end = op;
    d->schedule.runnable_end = &op->next;
}

void op_wait_for(struct op *op, struct op *owner)
{
    op->next = NULL;
    *owner->waiters_end = op;
    owner->waiters_end = &op->next;
}

void op_wake_waiters(struct device *d, struct op *owner)
{
    while (owner->waiters) {
        struct op *next = owner->waiters;
        owner->waiters = next->next;
        op_runnable(d, next);
    }
    owner->waiters_end = &owner->waiters;
}

/* What looks at very many pages does so in slices, all of it together no more than scan_left in a round, one after the other. */
void op_scan(struct device *d, struct op *op)
{
    op->next = NULL;
    *d->schedule.scanning_end = op;
    d->schedule.scanning_end = &op->next;
}

void ops_scan(struct device *d)
{
    d->schedule.scan_left = SCAN_PAGES_AT_ONCE;
    while (d->schedule.scanning && d->schedule.scan_left) {
        struct op *op = d->schedule.scanning;
        uint32_t most = d->schedule.scan_left < SCAN_SLICE_PAGES ? d->schedule.scan_left : SCAN_SLICE_PAGES, cost;
        d->schedule.scanning = op->next;
        if (!d->schedule.scanning)
            d->schedule.scanning_end = &d->schedule.scanning;
        if (op->kind == OP_STATUS)
            cost = op_status_run(d, op, most);
        else
            cost = op_zero_run(d, op, (most + ZERO_PAGE_COST - 1) / ZERO_PAGE_COST) * ZERO_PAGE_COST;
        cost += SCAN_OP_COST;
        d->schedule.scan_left -= cost < d->schedule.scan_left ? cost : d->schedule.scan_left;
    }
}

static void run(struct device *d, struct op *op)
{
    switch (op->kind) {
    case OP_READ:
        op_read_run(d, op);
        break;
    case OP_WRITE:
        op_write_run(d, op);
        break;
    case OP_ZERO:
    case OP_STATUS:
        op_scan(d, op);
        break;
    case OP_PROMOTE:
        op_move_run(d, op);
        break;
    case OP_HEDGE:
        op_hedge_run(d, op);
        break;
    case OP_RESYNC: /* these go on when a transfer ends, and never wait for one */
    case OP_SCRUB:
    case OP_COPY:
    case OP_PREFETCH:
    case OP_LEND:
        break;
    }
}

void ops_run(struct device *d)
{
    /* What becomes runnable meanwhile is for the next round, so that a long TRIM does not keep others waiting. */
    struct op *list = d->schedule.runnable;
    d->schedule.runnable = NULL;
    d->schedule.runnable_end = &d->schedule.runnable;
    while (list) {
        struct op *op = list;
        list = op->next;
        run(d, op);
    }
    /* Not one for each transfer that ended: who finds that it needs none any more would leave those behind it waiting. */
    struct schedule *s = &d->schedule;
    while (transfer_waiters_may(d)) {
        bool page_in = s->page_in_waiters && d->direct_in_flight < page_ins_slots(true);
        struct op **first = page_in ? &s->page_in_waiters : &s->transfer_waiters, *op = *first;
        *first = op->next;
        if (!*first)
            *(page_in ? &s->page_in_waiters_end : &s->transfer_waiters_end) = first;
        run(d, op);
    }
}

uint8_t *op_page(const struct device *d, const struct op *op, uint32_t at)
{
    if (op->kind == OP_PREFETCH)
        return guess_data(&d->prefetch, op->buffer[at]);
    bool into_buffers = op->kind == OP_RESYNC || (op->kind == OP_WRITE && op->stage != STAGE_FETCH);
    return into_buffers ? buffer_data(d, op->buffer[at]) : op->data + (size_t)at * ISW_PAGE_BYTES;
}

static bool to_disk(enum transfer_kind kind)
{
    return kind == TRANSFER_DISK_READ || kind == TRANSFER_DISK_WRITE;
}

/* The rest of a page that is written in part need not travel when the peer has it; a page is sealed as a whole. */
static bool in_part(const struct device *d, const struct op *op, enum transfer_kind kind)
{
    return !d->seals.sealer && kind == TRANSFER_PEER_WRITE && op->kind == OP_WRITE && op->bytes < op->pages * ISW_PAGE_BYTES &&
           (d->page[op->first].meta & ISW_PAGE_REMOTE);
}

/* Where what travels lies: of a write that is sealed, beside its buffer. */
static uint8_t *travelling(const struct device *d, const struct op *op, enum transfer_kind kind, uint32_t at)
{
    bool beside = d->seals.sealer && kind == TRANSFER_PEER_WRITE && op->kind == OP_WRITE;
    return beside ? sealed_data(d, op->buffer[at]) : op_page(d, op, at);
}

/* Starts a transfer of pages of one slab.  False: none is free, the operation has to wait for one. */
bool op_transfer(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages)
{
    bool page_in = kind == TRANSFER_DISK_READ && op_is_page_in(op);
    if (to_disk(kind) && d->direct_in_flight >= page_ins_slots(page_in))
        return false;
    struct transfer *t = transfer_take(d, op, kind, at, pages);
    if (!t)
        return false;
    t->first = op->first + at;
    t->slab = slab_of(d, t->first);
    t->generation = d->slab_views[t->slab].generation;
    t->sequence = pages_sequence(d, t->first, pages);
    t->sync_failures = d->flush.sync_failures;
    t->vectors = 0;
    for (uint32_t i = 0; i < pages; i++)
        t->vectors = vector_append(t->iov, t->vectors, travelling(d, op, kind, at + i));
    t->skip = 0;
    t->bytes = pages * ISW_PAGE_BYTES;
    if (in_part(d, op, kind)) {
        t->skip = op->skip;
        t->bytes = op->bytes;
        t->iov[0] = (struct iovec){(uint8_t *)t->iov[0].iov_base + t->skip, t->bytes};
    }
    op->transfers++;
    op->flying |= page_bits(at, pages);
    if (op->request && !op->request->begun_ns) {
        op->request->begun_ns = d->now_ns;
        op->request->peer = to_disk(kind) ? 0 : (uint8_t)(d->slab_views[t->slab].peer + 1);
    }
    if (to_disk(kind)) {
        bool reading = kind == TRANSFER_DISK_READ;
        t->backup = (struct backup_request){
            .kind = reading ? BACKUP_READ : BACKUP_WRITE,
            .iov = t->iov,
            .vectors = t->vectors,
            .offset = t->first * ISW_PAGE_BYTES,
            .bytes = (uint64_t)pages * ISW_PAGE_BYTES,
            .together = op->kind == OP_PROMOTE,
            .owner = t,
        };
        d->direct_in_flight++;
        t->page_in = page_in;
        if (page_in)
            page_in_begins(d);
        tally(d, reading ? ISW_DEVICE_backup_reads : ISW_DEVICE_backup_writes, 1);
        d->backup->methods->submit(d->backup, &t->backup);
    } else {
        slab_transfer_begins(d, t, op->kind == OP_COPY && kind == TRANSFER_PEER_WRITE);
    }
    return true;
}

/* A transfer has come to its end, well or badly; gives it back. */
void op_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->orphan ? NULL : t->op;
    if (to_disk(t->kind) && t->page_in)
        page_in_ends(d, t->started_ns);
    if (to_disk(t->kind))
        d->direct_in_flight--;
    else
        slab_transfer_ended(d, t);
    if (t->orphan)
        op_write_orphan_ended(d, t);
    if (error && t->kind == TRANSFER_PEER_TRIM && t->generation == d->slab_views[t->slab].generation)
        trims_owe(d, t->slab);
    if (op) {
        op->transfers--;
        op->flying &= ~page_bits(t->at, t->pages);
        if (op->request && !op->request->answered_ns)
            op->request->answered_ns = d->now_ns;
        if (op->kind == OP_PROMOTE)
            op_move_transferred(d, t, error);
        else if (op->kind == OP_RESYNC)
            op_resync_transferred(d, t, error);
        else if (op->kind == OP_SCRUB)
            op_scrub_transferred(d, t, error);
        else if (op->kind == OP_COPY)
            op_copy_transferred(d, t, error);
        else if (op->kind == OP_PREFETCH)
            op_prefetch_transferred(d, t, error);
        else if (op->kind == OP_LEND)
            op_lend_transferred(d, t, error);
        else if (op->kind == OP_HEDGE)
            op_hedge_transferred(d, t, error);
        else if (op->kind == OP_WRITE && op->stage != STAGE_FETCH)
            op_write_transferred(d, t, error);
        else
            op_fetched(d, t, error);
    }
    transfer_give(d, t);
    bool runs_itself = op && (op->kind == OP_PROMOTE || op->kind == OP_RESYNC || op->kind == OP_SCRUB || op->kind == OP_COPY ||
                              op->kind == OP_PREFETCH || op->kind == OP_LEND);
    if (op && !runs_itself && op->stage != STAGE_DONE)
        run(d, op);
}

/* ---- fetching ---- */

enum place { PLACE_ZERO, PLACE_PENDING, PLACE_REMOTE, PLACE_DISK, PLACE_LOST, PLACE_BUSY, PLACE_HELD, PLACE_GUESSED, PLACE_ASKED };

/* What is to be had from a peer or the backup may have been asked for already: there is then no need to. */
static enum place guessed(const struct device *d, const struct op *op, uint64_t page, enum place otherwise)
{
    if (!d->prefetch.held || op->kind != OP_READ || op->unguessed || op->careful)
        return otherwise;
    uint32_t number = prefetch_find(d, page);
    const struct guess *guess = number ? guess_at(&d->prefetch, number) : NULL;
    /* What came from the backup was not checked: it counts only while nothing better does. */
    if (!guess || (!guess->remote && otherwise == PLACE_REMOTE))
        return otherwise;
    if (guess->state == GUESS_READY)
        return PLACE_GUESSED;
    /* Those who waited for it were let go, or it comes from a link that takes no more. */
    bool late = guess->op->unsure || (guess->remote && otherwise == PLACE_DISK);
    return late ? otherwise : PLACE_ASKED;
}

static enum place place_of(const struct device *d, const struct op *op, uint64_t page)
{
    uint32_t meta = d->page[page].meta;
    const struct isw_slab_view *view = &d->slab_views[slab_of(d, page)];
    bool hedge = op->kind == OP_HEDGE;
    if ((meta & ISW_PAGE_BUSY) && !op->locked && !(hedge && page_owner(d, page) == op->twin))
        return PLACE_BUSY;
    if (page_pending(d, page))
        return PLACE_PENDING;
    /* Of a slab that is being given up, and does not move, only what has no other copy yet. */
    bool draining = view->state == ISW_SLAB_DRAINING && (d->slab[slab_of(d, page)].moving || !(meta & ISW_PAGE_DISK));
    bool there = view->state == ISW_SLAB_MAPPED || draining;
    bool on_hold = slab_on_hold(d, slab_of(d, page));
    if (on_hold && !hedge && (meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == ISW_PAGE_REMOTE)
        return PLACE_HELD;
    bool remote = (meta & ISW_PAGE_REMOTE) && there && !hedge && !on_hold;
    if (remote && !((meta & ISW_PAGE_DISK) && !link_takes(&d->peers[view->peer].read)))
        return guessed(d, op, page, PLACE_REMOTE);
    if (meta & ISW_PAGE_DISK)
        return guessed(d, op, page, PLACE_DISK);
    /* Remote, but nobody knows where: as good as lost until the slab is adopted. */
    return meta & (ISW_PAGE_REMOTE | ISW_PAGE_LOST) ? PLACE_LOST : PLACE_ZERO;
}

bool op_is_elsewhere(const struct device *d, const struct op *op)
{
    struct op hedge = {.kind = OP_HEDGE, .twin = (struct op *)(uintptr_t)op};
    for (uint32_t at = 0; at < op->pages; at++) {
        enum place place = op->done >> at & 1 ? PLACE_DISK : place_of(d, &hedge, op->first + at);
        if (place == PLACE_BUSY || place == PLACE_LOST || place == PLACE_HELD)
            return false;
    }
    return true;
}

static void note_source(struct device *d, struct op *op, enum isw_device_counter counter, uint32_t source, uint64_t pages)
{
    if (op->kind != OP_READ)
        return;
    tally(d, counter, pages);
    op->request->sources |= source;
}

static void take_guess(struct device *d, struct op *op, uint32_t at)
{
    uint64_t page = op->first + at;
    bool remote = prefetch_take(d, prefetch_find(d, page), op_page(d, op, at));
    if (!remote)
        slab_tell_touched(d, slab_of(d, page));
    note_source(d, op, remote ? ISW_DEVICE_reads_remote_pages : ISW_DEVICE_reads_backup_pages,
                remote ? SOURCE_BIT_REMOTE : SOURCE_BIT_BACKUP, 1);
    op->done |= page_bits(at, 1);
}

/* Goes on with whatever pages are neither here nor on their way.  Afterwards the operation is complete (done covers all
 * pages), or has transfers in flight, or was put into a waiting list. */
void op_fetch(struct device *d, struct op *op)
{
    uint64_t wanted = page_bits(0, op->pages) & ~op->done & ~op->flying;
    struct op *owner = NULL;
    int32_t held = -1; /* by which peer */
    while (wanted) {
        uint32_t at = (uint32_t)__builtin_ctzll(wanted), run_pages = 1;
        uint64_t page = op->first + at;
        enum place place = place_of(d, op, page);
        if (place == PLACE_REMOTE || place == PLACE_DISK) {
            while (at + run_pages < op->pages && (wanted >> (at + run_pages) & 1) &&
                   slab_of(d, page + run_pages) == slab_of(d, page) && place_of(d, op, page + run_pages) == place)
                run_pages++;
            enum transfer_kind kind = place == PLACE_REMOTE ? TRANSFER_PEER_READ : TRANSFER_DISK_READ;
            if (place == PLACE_DISK)
                slab_tell_touched(d, slab_of(d, page));
            if (!op_transfer(d, op, kind, at, run_pages)) {
                if (!op->transfers)
                    op_wait_for_transfer(d, op);
                return;
            }
        } else if (place == PLACE_BUSY) {
            owner = page_owner(d, page);
        } else if (place == PLACE_GUESSED) {
            take_guess(d, op, at);
        } else if (place == PLACE_ASKED) {
            owner = guess_at(&d->prefetch, prefetch_find(d, page))->op;
        } else if (place == PLACE_HELD) {
            held = d->slab_views[slab_of(d, page)].peer;
        } else {
            uint8_t *into = op_page(d, op, at);
            if (place == PLACE_PENDING) {
                memcpy(into, buffer_data(d, page_pending(d, page)), ISW_PAGE_BYTES);
                note_source(d, op, ISW_DEVICE_reads_pending_pages, SOURCE_BIT_PENDING, 1);
            } else {
                memset(into, 0, ISW_PAGE_BYTES);
                if (place == PLACE_LOST)
                    op->error = EIO;
                else
                    note_source(d, op, ISW_DEVICE_reads_zero_pages, 0, 1);
            }
            op->done |= page_bits(at, 1);
        }
        wanted &= ~page_bits(at, run_pages);
    }
    if (owner && !op->transfers) {
        tally(d, owner->kind == OP_PREFETCH ? ISW_DEVICE_prefetch_waits : ISW_DEVICE_busy_waits, 1);
        op_wait_for(op, owner);
    } else if (held >= 0 && !op->transfers) {
        op_wait_for_held(d, op, (uint32_t)held);
    }
}

bool op_remote_arrived(struct device *d, const struct transfer *t, uint64_t page, uint8_t *data, bool undisturbed, bool *unclear)
{
    bool good = remote_is_good(d, page, data);
    *unclear = false;
    if (t->generation == d->slab_views[t->slab].generation && (d->page[page].meta & ISW_PAGE_REMOTE)) {
        if (good)
            return true;
        if (undisturbed && d->slab_views[t->slab].state != ISW_SLAB_UNMAPPED) { /* else given back by this very answer: forgotten anyhow */
            tally(d, ISW_DEVICE_checksum_mismatches, 1);
            count64(&d->peer_views[d->slab_views[t->slab].peer].mismatches, 1);
            peer_tell(d, ISW_EVENT_MISMATCH, (uint32_t)d->slab_views[t->slab].peer, t->slab, page);
            page_forget_remote(d, page);
            return false;
        }
    }
    *unclear = true;
    return false;
}

/* Did page arrive in a version that a read may return? */
static bool check_remote(struct device *d, struct op *op, struct transfer *t, uint64_t page, bool undisturbed)
{
    bool unclear, good = op_remote_arrived(d, t, page, op_page(d, op, (uint32_t)(page - op->first)), undisturbed, &unclear);
    op->careful = op->careful || unclear;
    return good;
}

void op_fetched(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    bool undisturbed = op->locked || pages_sequence(d, t->first, t->pages) == t->sequence;
    bool remote = t->kind == TRANSFER_PEER_READ;
    if (error && remote) {
        tally(d, ISW_DEVICE_read_failovers, 1); /* the present state of the pages tells where to ask next */
        return;
    }
    if (!remote && t->sync_failures != d->flush.sync_failures) {
        tally(d, ISW_DEVICE_read_retries, 1); /* what the backup has may be an older version: is it what counts still? */
        return;
    }
    if (!remote && !undisturbed) {
        op->careful = true;
        tally(d, ISW_DEVICE_read_retries, 1);
        return;
    }
    if (error) {
        tally(d, ISW_DEVICE_backup_errors, 1);
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .slab = t->slab, .value = (uint64_t)error});
        op->error = EIO;
        op->done |= page_bits(t->at, t->pages);
        return;
    }
    uint64_t good = page_bits(t->at, t->pages);
    for (uint32_t i = 0; remote && i < t->pages; i++)
        if (!check_remote(d, op, t, t->first + i, undisturbed))
            good &= ~page_bits(t->at + i, 1);
    if (remote) /* not before: what is wrong with the next page is told of the peer */
        slab_release_if_idle(d, t->slab);
    if (op->careful)
        tally(d, ISW_DEVICE_read_retries, 1);
    op->done |= good;
    note_source(d, op, remote ? ISW_DEVICE_reads_remote_pages : ISW_DEVICE_reads_backup_pages,
                remote ? SOURCE_BIT_REMOTE : SOURCE_BIT_BACKUP, (uint64_t)__builtin_popcountll(good));
}
