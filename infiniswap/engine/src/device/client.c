/* The device's clients: NBD requests become operations, finished operations become replies. */
#include "client.h"
#include "device.h"
#include "events.h"
#include "flush.h"
#include "op.h"
#include "pool.h"

#include <errno.h>

static struct client *client_of(struct nbd_connection *c)
{
    return (struct client *)c; /* its first member */
}

void client_make_ready(struct device *d, struct client *client)
{
    if (client->ready)
        return;
    client->ready = true;
    client->next_ready = NULL;
    *d->turns.ready_end = client;
    d->turns.ready_end = &client->next_ready;
}

/* ---- requests ---- */

void request_count_pages(struct device *d, uint64_t offset, uint64_t bytes, bool out)
{
    uint64_t page = offset / ISW_PAGE_BYTES, end = (offset + bytes + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES;
    while (page < end) {
        uint32_t slab = slab_of(d, page);
        uint64_t slab_end = (uint64_t)(slab + 1) << d->slab_shift, stop = slab_end < end ? slab_end : end;
        count64(out ? &d->slab_views[slab].page_outs : &d->slab_views[slab].page_ins, stop - page);
        page = stop;
    }
}

struct request *request_begin(struct client *client, const struct nbd_request *r)
{
    struct request *request = client_may_request(client) ? request_take(client->device) : NULL;
    if (!request)
        return NULL;
    request->client = client;
    request->cookie = r->cookie;
    request->offset = r->offset;
    request->length = r->length;
    request->command = r->command;
    request->flags = r->flags;
    client->connection.in_flight++;
    return request;
}

void request_unbegin(struct device *d, struct request *request)
{
    bool freed = d->resources_freed;
    request->client->connection.in_flight--;
    request->client->late_pages -= request->late_pages;
    request_give(d, request);
    d->resources_freed = freed; /* as op_untake */
}

static enum isw_source source_of(const struct request *request)
{
    if (request->command == NBD_CMD_READ)
        return request->sources & SOURCE_BIT_BACKUP    ? ISW_SOURCE_BACKUP
               : request->sources & SOURCE_BIT_REMOTE  ? ISW_SOURCE_REMOTE
               : request->sources & SOURCE_BIT_PENDING ? ISW_SOURCE_PENDING
                                                       : ISW_SOURCE_ZERO;
    if (request->command == NBD_CMD_WRITE)
        return request->sources & SOURCE_BIT_BACKUP ? ISW_SOURCE_WRITE_BACKUP : ISW_SOURCE_WRITE_REMOTE;
    return request->command == NBD_CMD_FLUSH ? ISW_SOURCE_FLUSH : ISW_SOURCES;
}

/* The request's last answer is queued. */
void request_finish(struct device *d, struct request *request, int error)
{
    struct client *client = request->client;
    enum isw_source source = source_of(request);
    uint64_t took_ns = d->now_ns - request->started_ns;
    if (error)
        tally(d, ISW_DEVICE_request_errors, 1);
    else if (source != ISW_SOURCES)
        histogram_add(&d->histograms[source], took_ns);
    if (trace_wants(&d->trace, took_ns))
        trace_note(&d->trace, request, source, error, d->now_ns);
    client->connection.in_flight -= request->pieces ? request->pieces : 1;
    client->late_pages -= request->late_pages;
    client->connection.solo = false;
    request_give(d, request);
}

void request_answer(struct device *d, struct request *request, int error)
{
    nbd_reply(&request->client->connection, request->cookie, request->command, error);
    request_finish(d, request, error);
}

void request_flushed(struct device *d, struct request *request, int error)
{
    if (request->client) {
        request_answer(d, request, error);
        return;
    }
    if (request == &d->stop.flush) {
        d->stop.flushing = false;
        request->cookie = !error; /* else it is tried again */
        return;
    }
    event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_FLUSHED, .slab = (uint32_t)error, .value = request->cookie});
    request_give(d, request);
}

void request_maybe_finish(struct device *d, struct request *request)
{
    if (!request->all_issued || request->ops)
        return;
    if ((request->flags & NBD_CMD_FLAG_FUA) && !request->error && request->length)
        flush_add(d, request);
    else if (request_is_late(d, request))
        request_answer_late(d, request);
    else
        request_answer(d, request, request->error);
}

/* ---- BLOCK_STATUS ---- */

static enum nbd_verdict begin_status(struct client *client, const struct nbd_request *r)
{
    struct device *d = client->device;
    struct op *op = client_op_take(client, OP_STATUS, 0, 1);
    if (!op)
        return NBD_BLOCKED;
    struct request *request = read_buffer_take(d, op) ? request_begin(client, r) : NULL;
    if (!request) {
        op_untake(d, op);
        return NBD_BLOCKED;
    }
    tally(d, ISW_DEVICE_other_requests, 1);
    op->request = request;
    op_scan(d, op);
    return NBD_TAKEN;
}

static void status_done(struct device *d, struct op *op)
{
    struct request *request = op->request;
    op->request = NULL;
    nbd_reply_extents(&request->client->connection, request->cookie, ISW_CONTEXT_ALLOCATION, op->data, op->filled,
                      op->tag);
    request_finish(d, request, 0);
}

void request_op_done(struct device *d, struct op *op)
{
    if (op->kind == OP_READ) {
        client_read_done(d, op);
        return;
    }
    if (op->kind == OP_STATUS) {
        status_done(d, op);
        return;
    }
    struct request *request = op->request;
    if (op->error && !request->error)
        request->error = op->error;
    request->ops--;
    op_give(d, op);
    request_maybe_finish(d, request);
}

static enum nbd_verdict on_request(void *owner, struct nbd_connection *c, const struct nbd_request *r)
{
    struct client *client = client_of(c);
    struct device *d = owner;
    if (r->command != NBD_CMD_FLUSH && r->command != NBD_CMD_CACHE && r->length) {
        switch (r->command) {
        case NBD_CMD_READ:
            return client_begin_read(client, r);
        case NBD_CMD_WRITE:
            return client_begin_write(client, r);
        case NBD_CMD_BLOCK_STATUS:
            return begin_status(client, r);
        default:
            return client_begin_zero(client, r);
        }
    }
    if (r->command != NBD_CMD_FLUSH) { /* of no length, or CACHE: there is nothing to be done */
        tally(d, ISW_DEVICE_other_requests, 1);
        nbd_reply(c, r->cookie, r->command, 0);
        return NBD_TAKEN;
    }
    struct request *request = request_begin(client, r);
    if (!request)
        return NBD_BLOCKED;
    tally(d, ISW_DEVICE_flush_requests, 1);
    flush_add(d, request);
    return NBD_TAKEN;
}

const struct nbd_handler device_handler = {on_request, client_payload, client_sent};

/* ---- turns ---- */

/* Ends the client when nothing is left to do for it. */
static void end_if_done(struct device *d, struct client *client)
{
    struct nbd_connection *c = &client->connection;
    /* A WRITE that a stop cuts short gets no answer: a client that connects again will send it again, whereas an error would be
     * its last word.  What others wait for goes out first. */
    if (c->payload_left && d->stop.begun && !c->dead && !c->ended) {
        if (c->in_flight > 1 || nbd_connection_has_output(c))
            return;
        nbd_connection_abort(c);
    }
    if (c->payload_left || c->dead) {
        client_drop_half_write(d, client);
        nbd_connection_send(c, d->now_ns);
    }
    if (c->in_flight || (!c->dead && nbd_connection_has_output(c)))
        return;
    tally(d, ISW_DEVICE_protocol_errors, c->errors);
    nbd_connection_close(c);
    client->used = false;
    d->clients_used--;
    untally(d, ISW_DEVICE_connections, 1);
}

void clients_send(struct device *d)
{
    for (uint32_t i = 0, left = d->clients_used; left; i++) {
        struct client *client = &d->clients[i];
        struct nbd_connection *c = &client->connection;
        if (!client->used)
            continue;
        left--;
        if (nbd_connection_has_output(c)) {
            uint32_t before = c->tx_head;
            nbd_connection_send(c, d->now_ns);
            if (client->starved && c->tx_head != before)
                d->resources_freed = true; /* perhaps it was room for replies that was missing */
        }
        if (c->finishing)
            end_if_done(d, client);
    }
}

void clients_check_time(struct device *d, bool anew)
{
    uint64_t limit_ns = (uint64_t)d->config.client_stall_timeout_ms * 1000000u;
    for (uint32_t i = 0; i < d->config.connections_max; i++) {
        struct nbd_connection *c = &d->clients[i].connection;
        if (d->clients[i].used && nbd_connection_stalled(c, d->now_ns, limit_ns, d->clients[i].starved, anew))
            nbd_connection_abort(c);
    }
}

static void serve(struct device *d, struct client *client)
{
    struct nbd_connection *c = &client->connection;
    if (!client->used)
        return;
    if (d->stop.begun && !c->payload_left)
        c->finishing = true;
    nbd_connection_receive(c);
    client->starved = nbd_connection_process(c);
    d->turns.starved = d->turns.starved || client->starved;
    if (d->stop.begun && !client->starved)
        c->finishing = true;
    if (c->readable && !client->starved && !c->finishing)
        client_make_ready(d, client); /* behind the others */
}

/* To the end of the line. */
static void stand_in_line(struct device *d, struct client *client)
{
    client->in_line = true;
    client->next_in_line = NULL;
    *d->turns.line_end = client;
    d->turns.line_end = &client->next_in_line;
}

static uint64_t consumed(const struct nbd_connection *c)
{
    return c->received_bytes - (c->rx_end - c->rx_start);
}

/* Those who wait have their turns before anybody new, in the order of the line; who got something stands behind those who got
 * nothing. */
static void serve_line(struct device *d)
{
    struct client *list = d->turns.line_first, *lucky = NULL, **lucky_end = &lucky;
    d->turns.line_first = NULL;
    d->turns.line_end = &d->turns.line_first;
    while (list) {
        struct client *client = list;
        list = client->next_in_line;
        client->in_line = false;
        if (!client->used || !client->starved)
            continue;
        uint64_t before = consumed(&client->connection);
        serve(d, client);
        if (!client->starved)
            continue;
        if (consumed(&client->connection) == before) {
            stand_in_line(d, client);
        } else {
            client->next_in_line = NULL;
            *lucky_end = client;
            lucky_end = &client->next_in_line;
        }
    }
    while (lucky) {
        struct client *client = lucky;
        lucky = client->next_in_line;
        stand_in_line(d, client);
    }
}

void clients_serve(struct device *d)
{
    if (d->resources_freed) {
        d->resources_freed = d->turns.starved = false;
        serve_line(d);
    }
    struct client *list = d->turns.ready;
    d->turns.ready = NULL;
    d->turns.ready_end = &d->turns.ready;
    while (list) {
        struct client *client = list;
        list = client->next_ready;
        client->ready = false;
        if (client->in_line && client->starved && !d->stop.begun)
            continue; /* its turn is when something has been freed */
        serve(d, client);
        if (client->starved && !client->in_line)
            stand_in_line(d, client);
    }
}
