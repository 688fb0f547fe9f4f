/* What a log wants to write anew and has not read: from a pending buffer, or from its peer.
 *
 * No page is locked.  As with reads, the checksum tells whether what has come is the page's present version.  Whatever is not to
 * be had now, or would have to be waited for, is refused: the log reads it, and must not wait for operations that wait for it. */
#include "device.h"
#include "op.h"
#include "op_lend.h"
#include "pages.h"
#include "peer.h"
#include "pool.h"
#include "slab.h"

#include <string.h>

enum {
    LEND_PAGES = 16,     /* of one operation */
    LEND_PAGES_OUT = 32, /* in flight: a page-in to the same peer waits for so many at most */
    LEND_OVERDUE = 8,    /* operations */
};

static void answer(struct device *d, struct backup_loan *loan, bool got)
{
    loan->got = got;
    loan->newer = page_pending(d, loan->page) || !(d->page[loan->page].meta & ISW_PAGE_DISK);
    d->backup->methods->lent(d->backup, loan);
}

static void lend(void *owner, struct backup_loan *loans, uint32_t count)
{
    struct device *d = owner;
    d->loans.next = loans;
    d->loans.left = count;
}

void loans_open(struct device *d)
{
    if (d->backup->methods->lender)
        d->backup->methods->lender(d->backup, &(struct backup_lender){d, d->config.backup_log_borrows, lend});
}

/* A slow one gets its trials from those who can be asked elsewhere, too: the cleaner would wait until the deadline. */
static bool is_quick(const struct peer_link *link)
{
    return !link->pace.slow && link_takes(link);
}

static bool is_at_peer(const struct device *d, uint64_t page)
{
    uint32_t meta = d->page[page].meta, slab = slab_of(d, page);
    return (meta & (ISW_PAGE_REMOTE | ISW_PAGE_BUSY | ISW_PAGE_WRITING)) == ISW_PAGE_REMOTE && !page_pending(d, page) &&
           slab_mapped(d, slab) && is_quick(&d->peers[d->slab_views[slab].peer].read);
}

static uint32_t run_length(const struct device *d)
{
    const struct loans *l = &d->loans;
    uint32_t room = LEND_PAGES_OUT - l->pages, most = d->pool.large_free >= LARGE_BUFFERS / 2 ? LEND_PAGES : 1, pages = 0;
    most = most < room ? most : room;
    while (pages < most && pages < l->left && l->next[pages].page == l->next->page + pages &&
           slab_of(d, l->next[pages].page) == slab_of(d, l->next->page) && is_at_peer(d, l->next[pages].page))
        pages++;
    return pages;
}

/* How many pages it begins with; 0: something is missing just now. */
static uint32_t start(struct device *d)
{
    struct loans *l = &d->loans;
    uint32_t pages = run_length(d);
    struct op *op = pages ? op_take(d, OP_LEND, l->next->page, pages) : NULL;
    if (!op)
        return 0;
    op->stage = STAGE_FETCH;
    op->loan = l->next;
    if (!read_buffer_take(d, op) || !op_transfer(d, op, TRANSFER_PEER_READ, 0, pages)) {
        op_untake(d, op);
        return 0;
    }
    l->in_flight++;
    l->pages += pages;
    return pages;
}

/* From its pending buffer, or not at all. */
static void answer_here(struct device *d, struct backup_loan *loan)
{
    uint32_t pending = page_pending(d, loan->page);
    bool got = pending && !(d->page[loan->page].meta & (ISW_PAGE_BUSY | ISW_PAGE_WRITING));
    if (got)
        memcpy(loan->data, buffer_data(d, pending), ISW_PAGE_BYTES);
    answer(d, loan, got);
}

void loans_run(struct device *d)
{
    struct loans *l = &d->loans;
    while (l->left) {
        bool at_peer = l->overdue < LEND_OVERDUE && is_at_peer(d, l->next->page);
        uint32_t pages = at_peer ? start(d) : 0;
        if (at_peer && !pages && l->in_flight)
            return; /* what is missing may be what those have */
        if (!pages) {
            answer_here(d, l->next);
            pages = 1;
        }
        l->next += pages;
        l->left -= pages;
    }
}

static void no_longer_out(struct device *d, const struct op *op)
{
    d->loans.in_flight--;
    d->loans.pages -= op->pages;
}

void op_lend_transferred(struct device *d, struct transfer *t, int error)
{
    struct op *op = t->op;
    bool undisturbed = pages_sequence(d, op->first, op->pages) == t->sequence, unclear;
    if (op->unsure)
        d->loans.overdue--;
    else
        no_longer_out(d, op);
    for (uint32_t i = 0; !op->unsure && i < op->pages; i++) {
        bool got = !error && op_remote_arrived(d, t, op->first + i, op_page(d, op, i), undisturbed, &unclear);
        if (got)
            memcpy(op->loan[i].data, op_page(d, op, i), ISW_PAGE_BYTES);
        answer(d, &op->loan[i], got);
    }
    if (!op->unsure && !error)
        slab_release_if_idle(d, t->slab);
    op->stage = STAGE_DONE;
    op_give(d, op);
}

/* The log reads them; the operation keeps what the transfer still touches until it ends. */
void op_lend_overdue(struct device *d, struct op *op)
{
    if (op->unsure)
        return;
    op->unsure = true;
    no_longer_out(d, op);
    d->loans.overdue++;
    for (uint32_t i = 0; i < op->pages; i++)
        answer(d, &op->loan[i], false);
}
