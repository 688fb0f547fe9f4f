/* READ and BLOCK_STATUS. */
#include "device.h"

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

/* Looks at pages in turn; fills data with extents in network order and filled with their number. */
void op_status_run(struct device *d, struct op *op)
{
    const struct request *r = op->request;
    uint64_t at = r->offset, end = r->offset + r->length;
    uint64_t look_end = at + (uint64_t)STATUS_PAGES_MAX * ISW_PAGE_BYTES;
    uint32_t most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS_MAX, count = 0, flags = 0;
    uint64_t begin = at;
    if (end > look_end)
        end = look_end;
    while (at < end) {
        uint32_t now = status_of(d->page[at / ISW_PAGE_BYTES].meta);
        if (at != begin && now != flags) {
            nbd_put32(op->data + 8 * count, (uint32_t)(at - begin));
            nbd_put32(op->data + 8 * count + 4, flags);
            if (++count == most)
                break;
            begin = at;
        }
        flags = now;
        at = (at / ISW_PAGE_BYTES + 1) * ISW_PAGE_BYTES;
    }
    if (at >= end && count < most) {
        nbd_put32(op->data + 8 * count, (uint32_t)(end - begin));
        nbd_put32(op->data + 8 * count + 4, flags);
        count++;
    }
    op->filled = count;
    op->stage = STAGE_DONE;
    request_op_done(d, op);
}
