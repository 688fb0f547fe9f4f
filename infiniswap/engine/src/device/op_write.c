/* WRITE: to remote memory and into the pending buffers, or, where there is no remote memory, to the backup at once.
 *
 * One that a peer does not answer in time goes to the backup, too.  Its transfer is an orphan then: nobody waits for it, but
 * until it has ended, or its connection is closed, the peer or the port may still read the buffers, so it holds them.  When
 * it lands, late, it lands in memory that nobody reads: its pages are DISK and not REMOTE, and what makes them REMOTE again
 * is a later write or promotion, which travels behind it on the same ordered connection.  A slab is not given back before
 * its orphans have ended (slab_place.transfers). */
#include "backup_watch.h"
#include "client.h"
#include "device.h"
#include "events.h"
#include "op.h"
#include "op_hedge.h"
#include "op_move.h"
#include "op_write.h"
#include "op_zero.h"
#include "pages.h"
#include "pending.h"
#include "pool.h"
#include "punch.h"
#include "slab.h"
#include "unsynced.h"

#include <errno.h>

static void finish(struct device *d, struct op *op)
{
    op->stage = STAGE_DONE;
    __atomic_store_n(&op->intent->pages, 0, __ATOMIC_RELAXED);
    if (op->exclusive)
        d->writes_through--;
    if (op->locked)
        pages_unlock(d, op);
    request_op_done(d, op);
}

static void buffers_give(struct device *d, struct op *op)
{
    if (op->orphan) {
        op->orphan->op = NULL; /* from now on they are the orphan's */
        op->orphan = NULL;
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++)
        buffer_give(d, op->buffer[i]);
}

void op_write_orphan_ended(struct device *d, struct transfer *t)
{
    if (t->op) {
        t->op->orphan = NULL;
        return;
    }
    const uint8_t *base = d->seals.sealer ? d->seals.data : d->buffer_data;
    for (uint32_t i = 0; i < t->vectors; i++) {
        size_t begin = (size_t)((const uint8_t *)t->iov[i].iov_base - base), end = begin + t->iov[i].iov_len;
        for (size_t page = begin / ISW_PAGE_BYTES; page * ISW_PAGE_BYTES < end; page++)
            buffer_give(d, (uint32_t)page + 1);
    }
}

/* The new contents will not be used: give their buffers back and leave the pages as they were. */
static void abandon(struct device *d, struct op *op, int error)
{
    for (uint32_t i = 0; i < op->pages; i++) {
        if (op->unsure && (d->page[op->first + i].meta & ISW_PAGE_REMOTE)) /* neither copy is known to be good */
            page_forget_remote(d, op->first + i);
        page_set_flags(d, op->first + i, 0, ISW_PAGE_WRITING);
        if (op->exclusive && op->pending[i])
            pending_resume(d, op->pending[i]);
    }
    buffers_give(d, op);
    if (op->losing)
        pages_lost(d, (uint64_t)__builtin_popcountll(op->losing));
    op->error = error;
    finish(d, op);
}

/* data holds the old page; the buffer holds the payload at its place: fill in around it. */
static void merge(struct device *d, struct op *op)
{
    uint8_t *page = buffer_data(d, op->buffer[0]);
    uint32_t end = op->skip + op->bytes;
    memcpy(page, op->data, op->skip);
    memcpy(page + end, op->data + end, ISW_PAGE_BYTES - end);
}

static void seal(struct device *d, struct op *op, bool travels)
{
    if (!travels)
        seals_forget_intent(d, op);
    for (uint32_t i = 0; travels && i < op->pages; i++)
        seal_page(d, op, i, buffer_data(d, op->buffer[i]), sealed_data(d, op->buffer[i]));
}

/* travels: to a peer. */
static void announce(struct device *d, struct op *op, bool travels)
{
    if (d->seals.sealer)
        seal(d, op, travels);
    for (uint32_t i = 0; i < op->pages; i++)
        op->intent->checksum[i] = page_checksum(d, buffer_data(d, op->buffer[i]));
    for (uint32_t i = 0; d->config.backup_log && i < op->pages; i++)
        pending_note_crc(d, op->buffer[i]);
    op->intent->first_page = op->first;
    op->intent->to_backup = 0;
    __atomic_store_n(&op->intent->pages, op->pages, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < op->pages; i++)
        page_set_flags(d, op->first + i, ISW_PAGE_WRITING, 0);
}

static bool mapped(const struct device *d, uint32_t slab)
{
    return slab_mapped(d, slab) && !d->peers[d->slab_views[slab].peer].write.pace.slow;
}

/* No backup write of these pages may be in flight when ours starts, nor start before it ends. */
static bool claim_disk(struct device *d, struct op *op)
{
    bool idle = true;
    if (!op->exclusive) {
        op->exclusive = true;
        d->writes_through++;
        for (uint32_t i = 0; i < op->pages; i++)
            if (op->pending[i])
                pending_hold(d, op->pending[i]);
    }
    for (uint32_t i = 0; i < op->pages; i++)
        idle = idle && !(d->page[op->first + i].meta & ISW_PAGE_DISK_BUSY);
    return idle;
}

static void write_to_backup(struct device *d, struct op *op)
{
    if (!claim_disk(d, op))
        return; /* op_write_disk_idle follows */
    /* From here on the backup may hold either version; a remote copy that is to be had holds the old one still.  Until the
     * new one is there, WRITING and the intent say that the two may differ. */
    __atomic_store_n(&op->intent->to_backup, 1, __ATOMIC_RELEASE);
    if (!slab_reachable(d, slab_of(d, op->first)))
        for (uint32_t i = 0; i < op->pages; i++)
            if (d->page[op->first + i].meta & ISW_PAGE_DISK)
                page_set_flags(d, op->first + i, 0, ISW_PAGE_REMOTE);
    backup_before_write(d, op->first);
    if (!unsynced_room(d) || !op_transfer(d, op, TRANSFER_DISK_WRITE, 0, op->pages)) {
        op_wait_for_transfer(d, op);
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++)
        page_set_flags(d, op->first + i, ISW_PAGE_DISK_BUSY, 0);
}

void op_write_disk_idle(struct device *d, struct op *op)
{
    if (op->stage != STAGE_BACKUP || op->transfers || !op->exclusive)
        return;
    for (uint32_t i = 0; i < op->pages; i++)
        if (d->page[op->first + i].meta & ISW_PAGE_DISK_BUSY)
            return; /* the last of its pages wakes it, once */
    op_runnable(d, op);
}

void op_write_run(struct device *d, struct op *op)
{
    if (op->stage == STAGE_LOCK) {
        if ((d->zeroing.newest && op_zero_is_ahead(d, op)) || !pages_lock(d, op))
            return;
        pages_touch_sequence(d, op->first, op->pages);
        op->stage = op->bytes < op->pages * ISW_PAGE_BYTES ? STAGE_FETCH : STAGE_REMOTE;
    }
    if (op->stage == STAGE_FETCH) {
        op_fetch(d, op);
        if (!(op->done & 1) || op->transfers)
            return;
        op->stage = STAGE_REMOTE;
        op_unhedge(op);
        if (op->error) {
            abandon(d, op, op->error);
            return;
        }
        merge(d, op);
    }
    if (op->transfers)
        return;
    if (op->stage == STAGE_REMOTE) {
        uint32_t slab = slab_of(d, op->first);
        bool travels = mapped(d, slab);
        announce(d, op, travels);
        if (!travels) {
            slab_tell_touched(d, slab);
            op->stage = STAGE_BACKUP;
        } else if (!op_transfer(d, op, TRANSFER_PEER_WRITE, 0, op->pages)) {
            op_wait_for_transfer(d, op);
        }
    }
    if (op->stage == STAGE_BACKUP)
        write_to_backup(d, op);
}

void op_write_overdue(struct device *d, struct transfer *t)
{
    struct op *op = t->op;
    t->orphan = true;
    op->orphan = t;
    op->unsure = true;
    op->transfers--;
    op->flying &= ~page_bits(t->at, t->pages);
    op->stage = STAGE_BACKUP;
    tally(d, ISW_DEVICE_write_failovers, 1);
    /* Which version the peer has, nobody knows.  Where it may be all that would outlive this process it stays REMOTE: with
     * WRITING beside it both versions are tried for. */
    for (uint32_t i = 0; i < op->pages; i++)
        if ((d->page[op->first + i].meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK)) == (ISW_PAGE_REMOTE | ISW_PAGE_DISK))
            page_forget_remote(d, op->first + i);
    op_write_run(d, op);
}

static void remote_done(struct device *d, struct op *op, struct transfer *t, int error)
{
    const struct isw_slab_view *view = &d->slab_views[t->slab];
    /* A slab that began to drain meanwhile keeps what it has, until all of it is on the backup. */
    bool current = t->generation == view->generation ||
                   (view->state == ISW_SLAB_DRAINING && t->generation + 1 == view->generation);
    if (error || !current) {
        tally(d, ISW_DEVICE_write_failovers, 1);
        op->stage = STAGE_BACKUP;
        for (uint32_t i = 0; i < op->pages && error != ECANCELED; i++) /* which version it has now, nobody knows */
            if (d->page[op->first + i].meta & ISW_PAGE_REMOTE)
                page_forget_remote(d, op->first + i);
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++) {
        pending_commit(d, op, i); /* first: it looks for a punch that is owed */
        seal_commit(d, op, i);
        page_set_remote(d, op->first + i, op->intent->checksum[i],
                        ISW_PAGE_DISK | ISW_PAGE_WRITING | ISW_PAGE_PUNCH | ISW_PAGE_LOST | ISW_PAGE_DOUBTFUL);
    }
    tally(d, ISW_DEVICE_write_remote_pages, op->pages);
    op->request->sources |= SOURCE_BIT_REMOTE;
    finish(d, op);
}

/* What failed may have been written in part; a page that reads as zero must be zero in the image too. */
static void zero_again(struct device *d, struct op *op, uint32_t at)
{
    uint64_t page = op->first + at;
    if (op->pending[at] || (d->page[page].meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_LOST)))
        return;
    if (d->page[page].meta & ISW_PAGE_PUNCH)
        return; /* it is owed since before */
    page_set_punch(d, page, d->epochs.now, 0, 0);
    punch_wanted(d, page, d->epochs.now);
}

/* An fdatasync failed while it was under way, perhaps over some of it. */
static void distrust(struct device *d, const struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++)
        page_distrust_backup(d, op->first + i);
}

static void backup_done(struct device *d, struct op *op, const struct transfer *t, int error)
{
    bool doubtful = t->sync_failures != d->flush.sync_failures;
    for (uint32_t i = 0; i < op->pages; i++)
        page_set_flags(d, op->first + i, 0, ISW_PAGE_DISK_BUSY);
    unsynced_add(d, op->first, op->pages); /* what failed may have been written in part */
    if (error) {
        tally(d, ISW_DEVICE_backup_errors, 1);
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_BACKUP_ERROR, .slab = slab_of(d, op->first), .value = (uint64_t)error});
        for (uint32_t i = 0; i < op->pages; i++) {
            zero_again(d, op, i);
            if (d->page[op->first + i].meta & ISW_PAGE_REMOTE) /* the copy that is sure; the other comes from it again */
                page_set_flags(d, op->first + i, 0, ISW_PAGE_DISK);
        }
        if (doubtful)
            distrust(d, op);
        abandon(d, op, error);
        return;
    }
    for (uint32_t i = 0; i < op->pages; i++) {
        uint64_t page = op->first + i;
        page_set_flags(d, page, ISW_PAGE_DISK,
                       ISW_PAGE_WRITING | ISW_PAGE_PUNCH | ISW_PAGE_LOST | ISW_PAGE_REMOTE | ISW_PAGE_DOUBTFUL);
        if (op->pending[i])
            pending_drop(d, page);
    }
    if (doubtful)
        distrust(d, op);
    buffers_give(d, op);
    slab_release_if_idle(d, slab_of(d, op->first));
    movers_add(d, op->first); /* mapped meanwhile, perhaps */
    tally(d, ISW_DEVICE_write_backup_pages, op->pages);
    tally(d, ISW_DEVICE_backup_written_pages, op->pages);
    op->request->sources |= SOURCE_BIT_BACKUP;
    finish(d, op);
}

void op_write_transferred(struct device *d, struct transfer *t, int error)
{
    if (t->kind == TRANSFER_PEER_WRITE)
        remote_done(d, t->op, t, error);
    else
        backup_done(d, t->op, t, error);
}
