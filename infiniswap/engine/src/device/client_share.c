/* What one client may hold of what all of them need, so that none can take it all: by waiting for the disk, by not reading, or by
 * asking for very much.  Nobody may hold more of a pool than he leaves to the others, so the first gets a half at most, the
 * next a half of what is left; and who holds nothing always gets something. */
#include "client.h"
#include "device.h"
#include "pool.h"

/* left: in the pool; kept: of that, for those who hold nothing. */
static bool within_share(uint32_t held, uint32_t left, uint32_t kept)
{
    return held ? left > kept && held < left - kept : left > 0;
}

struct op *client_op_take(struct client *client, enum op_kind kind, uint64_t first, uint32_t pages)
{
    struct device *d = client->device;
    uint32_t kept = d->config.connections_max < ISW_OPS / 4 ? d->config.connections_max : ISW_OPS / 4;
    struct op *op = within_share(client->ops, d->pool.ops_free, kept + HEDGE_OPS) ? op_take(d, kind, first, pages) : NULL;
    if (!op)
        return NULL;
    op->client = client;
    client->ops++;
    return op;
}

bool client_may_request(const struct client *client)
{
    const struct device *d = client->device;
    return within_share(client->connection.in_flight, d->pool.requests_free, d->config.connections_max);
}

/* left: that are not kept for something else. */
bool small_buffer_allowed(const struct client *client, uint32_t left)
{
    return client ? within_share(client->small_buffers, left, client->device->config.connections_max) : left > 0;
}

bool large_buffer_allowed(const struct client *client, uint32_t left)
{
    return within_share(client ? client->large_buffers : 0, left, 0);
}

void client_count_buffer(const struct op *op, int32_t by)
{
    if (op->client)
        *(op->room > 1 ? &op->client->large_buffers : &op->client->small_buffers) += (uint32_t)by;
}

/* The operation goes on as another one, with that one's buffer. */
void client_share_moves(struct op *from, struct op *to)
{
    client_count_buffer(from, -1);
    to->client = from->client;
    from->client = NULL;
    client_count_buffer(to, 1);
}

/* ---- pending buffers ---- */

/* While resync has work a few are kept for it. */
static uint32_t buffers_for_clients(const struct device *d)
{
    if (!d->resync.held)
        return d->pool.buffers_free;
    uint32_t share = d->buffers / 4 < RESYNC_BUFFERS ? d->buffers / 4 : RESYNC_BUFFERS;
    uint32_t kept = share > d->resync.buffers ? share - d->resync.buffers : 0;
    return d->pool.buffers_free > kept ? d->pool.buffers_free - kept : 0;
}

/* The last LATE_BUFFERS_MAX of them (an eighth at most) are for writes that are answered late: when write-behind has made room again.
 * So a client feels the limit by its answers, and its socket is read on: what stands behind its writes there are the reads of
 * the same swap area. */
static uint32_t late_buffers(const struct device *d)
{
    return d->buffers / 8 < LATE_BUFFERS_MAX ? d->buffers / 8 : LATE_BUFFERS_MAX;
}

uint32_t client_buffers(const struct client *client)
{
    const struct device *d = client->device;
    uint32_t left = buffers_for_clients(d), late = late_buffers(d), held = client->late_pages;
    if (left > late)
        return left - late;
    if (!within_share(held, left, 0))
        return 0;
    return held ? left - held : (left + 1) / 2;
}

void request_took_buffers(struct device *d, struct request *request, uint32_t pages)
{
    if (buffers_for_clients(d) >= late_buffers(d))
        return;
    request->late_pages += pages;
    request->client->late_pages += pages;
}

bool request_is_late(const struct device *d, const struct request *request)
{
    return request->late_pages && !request->error && buffers_for_clients(d) <= late_buffers(d);
}

void request_answer_late(struct device *d, struct request *request)
{
    tally(d, ISW_DEVICE_pending_waits, 1);
    request->next = NULL;
    *d->late.end = request;
    d->late.end = &request->next;
}

static struct request *take_first(struct device *d)
{
    struct request *request = d->late.first;
    d->late.first = request->next;
    if (!d->late.first)
        d->late.end = &d->late.first;
    return request;
}

void late_requests_answer(struct device *d)
{
    uint32_t left = buffers_for_clients(d), late = late_buffers(d);
    uint32_t room = left > late ? left - late : 0;
    while (d->late.first && room) { /* each answer may bring as many pages again */
        struct request *request = take_first(d);
        room -= request->late_pages < room ? request->late_pages : room;
        request_answer(d, request, 0);
    }
}

void late_requests_drop_dead(struct device *d)
{
    struct request *list = d->late.first;
    d->late.first = NULL;
    d->late.end = &d->late.first;
    while (list) {
        struct request *request = list;
        list = request->next;
        if (request->client->connection.dead || request->client->connection.ended) {
            request_answer(d, request, 0); /* nobody waits for it: it need not keep the connection */
        } else {
            request->next = NULL;
            *d->late.end = request;
            d->late.end = &request->next;
        }
    }
}
