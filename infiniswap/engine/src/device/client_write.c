/* WRITE, TRIM and WRITE_ZEROES of the device's clients: payload into pending buffers, requests into operations. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "op_write.h"
#include "op_zero.h"
#include "pool.h"

#include <errno.h>

/* An operation for the next bytes to write, once they are here, with all that it will need; for no more pages than there are
 * buffers.  Part of a page is an operation of its own.  NULL: it waits for more bytes or, *blocked, for something of ours.
 * Nothing is taken for bytes that are still to come: a client that stops sending holds nothing that others need. */
static struct op *write_op(struct request *request, uint64_t offset, uint64_t left, uint64_t here, bool *blocked)
{
    struct client *client = request->client;
    struct device *d = client->device;
    uint32_t skip = (uint32_t)(offset % ISW_PAGE_BYTES), pages = 1, bytes;
    uint64_t first = offset / ISW_PAGE_BYTES;
    if (skip || left < ISW_PAGE_BYTES) {
        bytes = left < ISW_PAGE_BYTES - skip ? (uint32_t)left : ISW_PAGE_BYTES - skip;
    } else {
        uint64_t to_slab_end = (((first >> d->slab_shift) + 1) << d->slab_shift) - first;
        uint64_t whole = left / ISW_PAGE_BYTES;
        if (whole > to_slab_end)
            whole = to_slab_end;
        pages = whole < ISW_OP_PAGES_MAX ? (uint32_t)whole : ISW_OP_PAGES_MAX;
        bytes = pages * ISW_PAGE_BYTES;
    }
    if (here < bytes)
        return NULL;
    *blocked = true;
    uint32_t most = client_buffers(client);
    if (!most) {
        tally(d, ISW_DEVICE_pending_waits, 1);
        return NULL;
    }
    if (pages > most) {
        pages = most;
        bytes = pages * ISW_PAGE_BYTES;
    }
    struct op *op = client_op_take(client, OP_WRITE, first, pages);
    if (!op)
        return NULL;
    for (uint32_t i = 0; i < pages; i++)
        op->buffer[i] = buffer_take(d, first + i);
    op->skip = skip;
    op->bytes = bytes;
    if (bytes < ISW_PAGE_BYTES && !read_buffer_take(d, op)) {
        op_untake(d, op);
        return NULL;
    }
    op->request = request;
    request_took_buffers(d, request, pages);
    *blocked = false;
    return op;
}

static void start_write(struct device *d, struct op *op)
{
    op->stage = STAGE_LOCK;
    op_write_run(d, op);
}

size_t client_payload(void *owner, struct nbd_connection *c, const uint8_t *data, size_t bytes, bool *blocked)
{
    struct device *d = owner;
    struct client *client = (struct client *)c;
    struct request *request = client->writing;
    size_t taken = 0;
    while (taken < bytes) {
        struct op *op = write_op(request, request->offset + request->issued, request->length - request->issued, bytes - taken, blocked);
        if (!op)
            break;
        for (uint32_t filled = 0, piece; filled < op->bytes; filled += piece) {
            uint32_t at = op->skip + filled, inside = at % ISW_PAGE_BYTES;
            piece = ISW_PAGE_BYTES - inside < op->bytes - filled ? ISW_PAGE_BYTES - inside : op->bytes - filled;
            memcpy(buffer_data(d, op->buffer[at / ISW_PAGE_BYTES]) + inside, data + taken + filled, piece);
        }
        taken += op->bytes;
        request->ops++;
        request->issued += op->bytes;
        if (request->issued == request->length) {
            request->all_issued = true;
            client->writing = NULL;
        }
        start_write(d, op);
    }
    return taken;
}

enum nbd_verdict client_begin_write(struct client *client, const struct nbd_request *r)
{
    struct device *d = client->device;
    struct request *request = request_begin(client, r);
    if (!request)
        return NBD_BLOCKED;
    tally(d, ISW_DEVICE_write_requests, 1);
    request_count_pages(d, r->offset, r->length, true);
    client->writing = request;
    return NBD_TAKEN;
}

/* A zeroed part of a page, as a write. */
static struct op *zero_part(struct device *d, struct request *request, uint64_t offset, uint64_t bytes)
{
    bool blocked;
    struct op *op = write_op(request, offset, bytes, bytes, &blocked);
    if (op)
        memset(buffer_data(d, op->buffer[0]) + op->skip, 0, op->bytes);
    return op;
}

enum nbd_verdict client_begin_zero(struct client *client, const struct nbd_request *r)
{
    struct device *d = client->device;
    uint64_t end = r->offset + r->length;
    uint64_t first = (r->offset + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES, last = end / ISW_PAGE_BYTES;
    bool exact = r->command == NBD_CMD_WRITE_ZEROES; /* TRIM may leave what is not a whole page */
    bool head = exact && (r->offset % ISW_PAGE_BYTES || last < first);
    bool tail = exact && end % ISW_PAGE_BYTES && last >= first;
    struct op *ops[3] = {NULL};
    struct request *request = request_begin(client, r);
    bool ready = request != NULL;
    if (ready && head) {
        uint64_t head_end = first * ISW_PAGE_BYTES < end ? first * ISW_PAGE_BYTES : end;
        ready = (ops[0] = zero_part(d, request, r->offset, head_end - r->offset)) != NULL;
    }
    if (ready && tail)
        ready = (ops[2] = zero_part(d, request, last * ISW_PAGE_BYTES, end % ISW_PAGE_BYTES)) != NULL;
    if (ready && last > first)
        ready = (ops[1] = client_op_take(client, OP_ZERO, first, (uint32_t)(last - first))) != NULL;
    if (!ready) {
        for (int i = 0; i < 3; i += 2)
            if (ops[i])
                op_untake(d, ops[i]);
        if (request)
            request_unbegin(d, request);
        return NBD_BLOCKED;
    }
    tally(d, ISW_DEVICE_trim_requests, 1);
    for (int i = 0; i < 3; i++) {
        if (!ops[i])
            continue;
        ops[i]->request = request;
        request->ops++;
    }
    for (int i = 0; i < 3; i++) {
        if (ops[i] && ops[i]->kind == OP_WRITE)
            start_write(d, ops[i]);
        else if (ops[i])
            op_zero_begin(d, ops[i]);
    }
    request->all_issued = true;
    request_maybe_finish(d, request);
    return NBD_TAKEN;
}

void client_drop_half_write(struct device *d, struct client *client)
{
    struct request *request = client->writing;
    if (!request)
        return;
    client->writing = NULL;
    /* What came whole goes its way; the request ends with it, unanswered by anyone's wish. */
    request->error = EIO;
    request->all_issued = true;
    request_maybe_finish(d, request);
}
