/* READ and BLOCK_STATUS. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "op_hedge.h"
#include "op_read.h"
#include "pages.h"

void op_read_run(struct device *d, struct op *op)
{
    if (op->careful && !op->locked) {
        /* A write came between: once more, with the pages held still. */
        if (op->transfers || !pages_lock(d, op))
            return;
    }
    op_fetch(d, op);
    if (op->done != page_bits(0, op->pages) || op->transfers)
        return;
    op->stage = STAGE_DONE;
    op_unhedge(op);
    if (op->locked)
        pages_unlock(d, op);
    request_op_done(d, op);
}

static uint32_t status_of(uint32_t meta)
{
    bool written = meta & (ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_LOST | ISW_PAGE_WRITING | ISW_PAGE_BUSY) ||
                   meta >> ISW_PAGE_INDEX_SHIFT;
    return written ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
}

/* Looks at pages in turn; fills data with extents in network order, of which the last may still grow, and filled with their number. */
uint32_t op_status_run(struct device *d, struct op *op, uint32_t pages_max)
{
    const struct request *r = op->request;
    uint64_t at = r->offset + op->cursor, end = r->offset + r->length;
    uint64_t look_end = (r->offset / ISW_PAGE_BYTES + STATUS_PAGES_MAX) * ISW_PAGE_BYTES;
    uint32_t most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS_MAX, looked = 0;
    uint32_t flags = op->filled ? nbd_get32(op->data + 8 * op->filled - 4) : 0;
    uint32_t bytes = op->filled ? nbd_get32(op->data + 8 * op->filled - 8) : 0; /* of the last extent */
    bool full = false;
    if (end > look_end)
        end = look_end;
    for (; at < end && looked < pages_max && !full; looked++) {
        uint32_t now = status_of(d->page[at / ISW_PAGE_BYTES].meta);
        uint64_t next = (at / ISW_PAGE_BYTES + 1) * ISW_PAGE_BYTES;
        if (!op->filled || now != flags) {
            full = op->filled == most;
            if (full)
                break;
            if (op->filled)
                nbd_put32(op->data + 8 * op->filled - 8, bytes);
            op->filled++;
            flags = now;
            bytes = 0;
            nbd_put32(op->data + 8 * op->filled - 4, flags);
        }
        if (next > end)
            next = end;
        bytes += (uint32_t)(next - at);
        at = next;
    }
    nbd_put32(op->data + 8 * op->filled - 8, bytes);
    op->cursor = at - r->offset;
    if (at < end && !full) {
        op_scan(d, op);
    } else {
        op->stage = STAGE_DONE;
        request_op_done(d, op);
    }
    return looked;
}
