/* READ of the device's clients: pieces of at most 64 pages, all at once or, where there are too few buffers, one after the other. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "op_read.h"
#include "pool.h"
#include "prefetch.h"

#include <errno.h>

static void start_piece(struct device *d, struct op *op, struct request *request)
{
    uint64_t offset = request->offset + request->issued;
    uint32_t left = request->length - request->issued;
    uint32_t skip = (uint32_t)(offset % ISW_PAGE_BYTES), most = op->room * ISW_PAGE_BYTES - skip;
    op->request = request;
    op->first = offset / ISW_PAGE_BYTES;
    op->skip = skip;
    op->bytes = left < most ? left : most;
    op->pages = (skip + op->bytes + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES;
    op->done = 0;
    op->stage = STAGE_FETCH;
    op->careful = op->unguessed = false;
    request->issued += op->bytes;
    op_read_run(d, op);
}

/* A READ of several pieces that is answered when all of them are here: other answers need not wait for it, nor it for them.  False:
 * there are too few buffers, or there may be no place for each in the queue of answers. */
static bool begin_pieces(struct client *client, const struct nbd_request *r, uint32_t pages)
{
    struct device *d = client->device;
    uint32_t pieces = (pages + ISW_OP_PAGES_MAX - 1) / ISW_OP_PAGES_MAX, taken = 0;
    struct op *first = NULL, **end = &first;
    struct request *request = NULL;
    if (pieces > READ_PIECES_MAX || client->connection.in_flight + pieces > ISW_CONNECTION_REQUESTS_MAX)
        return false;
    while (taken < pieces) {
        struct op *op = client_op_take(client, OP_READ, 0, ISW_OP_PAGES_MAX);
        if (!op)
            break;
        op->next_piece = NULL;
        *end = op;
        end = &op->next_piece;
        if (!read_buffer_take(d, op) || op->room < ISW_OP_PAGES_MAX)
            break;
        taken++;
    }
    if (taken == pieces)
        request = request_begin(client, r);
    if (!request) {
        while (first) {
            struct op *op = first;
            first = op->next_piece;
            op_untake(d, op);
        }
        return false;
    }
    tally(d, ISW_DEVICE_read_requests, 1);
    request_count_pages(d, r->offset, r->length, false);
    if (d->prefetch.trends)
        prefetch_note(d, r->offset, r->length);
    client->connection.in_flight += pieces - 1;
    request->pieces = request->ops = pieces;
    request->piece = first;
    for (struct op *op = first, *next; op; op = next) {
        next = op->next_piece; /* the last one to be done answers, and they are gone */
        start_piece(d, op, request);
    }
    return true;
}

static void answer_pieces(struct device *d, struct request *request)
{
    struct nbd_connection *c = &request->client->connection;
    bool structured = c->flags & ISW_CONNECTION_STRUCTURED;
    if (request->error)
        nbd_reply(c, request->cookie, request->command, request->error);
    for (struct op *op = request->piece, *next; op; op = next) {
        const uint8_t *body = op->data + op->skip;
        next = op->next_piece;
        op->request = NULL;
        if (request->error)
            op_give(d, op);
        else if (structured || op == request->piece)
            nbd_reply_data(c, request->cookie, op->first * ISW_PAGE_BYTES + op->skip, !next, op->bytes, body, op->bytes, op->tag);
        else
            nbd_reply_more(c, body, op->bytes, op->tag);
    }
    request_finish(d, request, request->error);
}

void client_read_goes_on(struct op *from, struct op *to)
{
    struct op **at = &to->request->piece;
    while (*at && *at != from)
        at = &(*at)->next_piece;
    if (!*at)
        return;
    *at = to;
    to->next_piece = from->next_piece;
}

enum nbd_verdict client_begin_read(struct client *client, const struct nbd_request *r)
{
    struct device *d = client->device;
    uint64_t last = r->offset + r->length - 1;
    uint64_t pages = last / ISW_PAGE_BYTES - r->offset / ISW_PAGE_BYTES + 1;
    if ((r->flags & NBD_CMD_FLAG_DF) && pages > ISW_OP_PAGES_MAX) {
        nbd_reply(&client->connection, r->cookie, r->command, EOVERFLOW);
        return NBD_TAKEN;
    }
    if (pages > ISW_OP_PAGES_MAX && begin_pieces(client, r, (uint32_t)pages))
        return NBD_TAKEN;
    /* The pieces of a simple reply have no headers: no other reply may come between them. */
    bool solo = !(client->connection.flags & ISW_CONNECTION_STRUCTURED) && pages > ISW_OP_PAGES_MAX;
    if (solo && client->connection.in_flight)
        return NBD_BLOCKED;
    struct op *op = client_op_take(client, OP_READ, 0, pages < ISW_OP_PAGES_MAX ? (uint32_t)pages : ISW_OP_PAGES_MAX);
    if (!op)
        return NBD_BLOCKED;
    bool buffer = read_buffer_take(d, op);
    if (buffer && op->room < op->pages) { /* in more pieces than it should be */
        solo = !(client->connection.flags & ISW_CONNECTION_STRUCTURED);
        buffer = !(r->flags & NBD_CMD_FLAG_DF) && !(solo && client->connection.in_flight);
    }
    struct request *request = buffer ? request_begin(client, r) : NULL;
    if (!request) {
        op_untake(d, op);
        return NBD_BLOCKED;
    }
    client->connection.solo = solo;
    tally(d, ISW_DEVICE_read_requests, 1);
    request_count_pages(d, r->offset, r->length, false);
    if (d->prefetch.trends)
        prefetch_note(d, r->offset, r->length);
    start_piece(d, op, request);
    return NBD_TAKEN;
}

void client_read_done(struct device *d, struct op *op)
{
    struct request *request = op->request;
    struct nbd_connection *c = &request->client->connection;
    if (request->pieces) {
        if (op->error && !request->error)
            request->error = op->error;
        if (!--request->ops)
            answer_pieces(d, request);
        return;
    }
    bool structured = c->flags & ISW_CONNECTION_STRUCTURED, last = request->issued == request->length;
    if (op->error) {
        op_give(d, op);
        if (request->header_sent && !structured)
            nbd_connection_abort(c); /* a simple reply cannot take its good beginning back */
        else
            nbd_reply(c, request->cookie, request->command, op->error);
        request_finish(d, request, op->error);
        return;
    }
    uint64_t offset = op->first * ISW_PAGE_BYTES + op->skip;
    const uint8_t *body = op->data + op->skip;
    uint32_t bytes = op->bytes, tag = op->tag;
    bool first = !request->header_sent;
    request->header_sent = true;
    if (last)
        op->request = NULL; /* once sent the operation is given back; before, its buffer is being read */
    if (structured || first)
        nbd_reply_data(c, request->cookie, offset, last, bytes, body, bytes, tag);
    else
        nbd_reply_more(c, body, bytes, tag);
    if (last)
        request_finish(d, request, 0);
}

void client_sent(void *owner, struct nbd_connection *c, uint32_t tag)
{
    struct device *d = owner;
    struct op *op = &d->ops[tag];
    struct request *request = op->request;
    if (request && !c->dead) {
        start_piece(d, op, request);
        return;
    }
    op_give(d, op);
    if (request)
        request_finish(d, request, 0); /* nobody is left to hear the rest */
}
