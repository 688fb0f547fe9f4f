/* The pools: everything a request needs, taken at start. */
#include "client.h"
#include "device.h"
#include "op.h"
#include "pending.h"
#include "pool.h"

static uint8_t *pop(uint8_t **list)
{
    uint8_t *buffer = *list;
    if (buffer)
        memcpy(list, buffer, sizeof *list);
    return buffer;
}

static void push(uint8_t **list, uint8_t *buffer)
{
    memcpy(buffer, list, sizeof *list);
    *list = buffer;
}

/* Lists are filled from the end, so that the first entries are used first and the rest of a pool is never touched. */
void pools_fill(struct device *d)
{
    struct pools *p = &d->pool;
    p->ops_free = ISW_OPS;
    for (uint32_t i = p->ops_free; i-- > 0;) {
        d->ops[i].tag = i;
        d->ops[i].intent = &d->intents[i];
        d->intents[i].pages = 0;
        d->ops[i].next = p->free_ops;
        p->free_ops = &d->ops[i];
    }
    p->requests_free = ISW_OPS + d->config.connections_max;
    for (uint32_t i = p->requests_free; i-- > 0;) {
        d->requests[i].next = p->free_requests;
        p->free_requests = &d->requests[i];
    }
    for (uint32_t i = TRANSFERS; i-- > 0;) {
        d->transfers[i].id = i;
        d->transfers[i].next = p->free_transfers;
        p->free_transfers = &d->transfers[i];
    }
    p->small_free = SMALL_BUFFERS + d->config.connections_max;
    for (uint32_t i = p->small_free; i-- > 0;)
        push(&p->free_small, d->small_buffers + (size_t)i * ISW_PAGE_BYTES);
    p->large_free = LARGE_BUFFERS;
    for (uint32_t i = p->large_free; i-- > 0;)
        push(&p->free_large, d->large_buffers + (size_t)i * ISW_OP_PAGES_MAX * ISW_PAGE_BYTES);
    p->buffers_free = d->buffers;
    for (uint32_t i = 0; i < d->buffers; i++)
        bitmap_set(&p->buffers_left, i);
    for (uint32_t i = d->config.backup_depth; i-- > 0;) {
        d->writeback.runs[i].next = d->writeback.free_runs;
        d->writeback.free_runs = &d->writeback.runs[i];
    }
}

struct op *op_take(struct device *d, enum op_kind kind, uint64_t first, uint32_t pages)
{
    struct op *op = d->pool.free_ops;
    uint32_t kept = kind == OP_HEDGE ? 0u : HEDGE_OPS;
    if (kind != OP_RESYNC && d->resync.held)
        kept += RESYNC_OPS;
    if (!op || d->pool.ops_free <= kept)
        return NULL;
    d->pool.free_ops = op->next;
    d->pool.ops_free--;
    op->kind = kind;
    op->stage = STAGE_NEW;
    op->locked = op->careful = op->unguessed = op->exclusive = false;
    op->pages = pages;
    op->first = first;
    op->skip = op->bytes = op->filled = 0;
    op->request = NULL;
    op->client = NULL;
    op->done = op->flying = 0;
    op->transfers = 0;
    op->error = 0;
    op->data = NULL;
    op->cursor = op->losing = 0;
    op->order = d->zeroing.begun;
    op->twin = NULL;
    op->orphan = NULL;
    op->unsure = false;
    op->next = NULL;
    op->waiters = NULL;
    op->waiters_end = &op->waiters;
    return op;
}

void op_give(struct device *d, struct op *op)
{
    if (op->data)
        read_buffer_give(d, op);
    if (op->client)
        op->client->ops--;
    op->next = d->pool.free_ops;
    d->pool.free_ops = op;
    d->pool.ops_free++;
    d->resources_freed = true;
}

/* For want of the rest, what was taken just now goes back: that helps nobody who waits, and must not wake him. */
void op_untake(struct device *d, struct op *op)
{
    bool freed = d->resources_freed;
    for (uint32_t i = 0; op->kind == OP_WRITE && i < op->pages; i++)
        buffer_give(d, op->buffer[i]);
    op_give(d, op);
    d->resources_freed = freed;
}

struct request *request_take(struct device *d)
{
    struct request *request = d->pool.free_requests;
    if (!request)
        return NULL;
    d->pool.free_requests = request->next;
    d->pool.requests_free--;
    *request = (struct request){.started_ns = d->now_ns};
    tally(d, ISW_DEVICE_in_flight, 1);
    return request;
}

void request_give(struct device *d, struct request *request)
{
    request->next = d->pool.free_requests;
    d->pool.free_requests = request;
    d->pool.requests_free++;
    untally(d, ISW_DEVICE_in_flight, 1);
    d->resources_freed = true;
}

struct transfer *transfer_take(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages)
{
    struct transfer *t = d->pool.free_transfers;
    if (!t)
        return NULL;
    d->pool.free_transfers = t->next;
    t->kind = kind;
    t->op = op;
    t->at = at;
    t->pages = pages;
    t->id += 1u << 16; /* an answer to an earlier use is not taken for one to this */
    t->next = t->previous = NULL;
    t->asked_ns = t->started_ns = d->now_ns;
    t->hedged = t->overdue = t->orphan = false;
    return t;
}

void transfer_give(struct device *d, struct transfer *transfer)
{
    transfer->next = d->pool.free_transfers;
    d->pool.free_transfers = transfer;
}

static uint32_t more_than(uint32_t left, uint32_t kept)
{
    return left > kept ? left - kept : 0;
}

bool read_buffer_take(struct device *d, struct op *op)
{
    bool hedge = op->kind == OP_HEDGE, piecewise = op->pages == 1 || op->kind == OP_READ; /* a page at a time is slow, but it goes on */
    struct client *client = op->client;
    uint32_t smalls = hedge ? d->pool.small_free : more_than(d->pool.small_free, HEDGE_SMALL);
    uint32_t larges = hedge ? d->pool.large_free : more_than(d->pool.large_free, HEDGE_LARGE);
    bool large = op->pages > 1 && large_buffer_allowed(client, larges);
    bool small = !large && piecewise && small_buffer_allowed(client, smalls);
    if (!large && !small)
        large = large_buffer_allowed(client, larges);
    if (!large && !small)
        return false;
    op->data = pop(large ? &d->pool.free_large : &d->pool.free_small);
    op->room = large ? ISW_OP_PAGES_MAX : 1;
    --*(large ? &d->pool.large_free : &d->pool.small_free);
    client_count_buffer(op, 1);
    return true;
}

void read_buffer_give(struct device *d, struct op *op)
{
    bool large = op->room > 1;
    push(large ? &d->pool.free_large : &d->pool.free_small, op->data);
    ++*(large ? &d->pool.large_free : &d->pool.small_free);
    client_count_buffer(op, -1);
    op->data = NULL;
    d->resources_freed = true;
}

bool read_buffer_is_large(const struct device *d, const uint8_t *data)
{
    return data >= d->large_buffers && data < d->large_buffers + (size_t)LARGE_BUFFERS * ISW_OP_PAGES_MAX * ISW_PAGE_BYTES;
}

/* Beyond its share only from plenty: clients do not wait for resync, as it does not wait for them. */
uint32_t buffers_for_resync(const struct device *d)
{
    uint32_t share = d->buffers / 4 < RESYNC_BUFFERS ? d->buffers / 4 : RESYNC_BUFFERS;
    uint32_t left = share > d->resync.buffers ? share - d->resync.buffers : 0;
    if (d->pool.buffers_free > d->buffers / 2)
        left = d->pool.buffers_free;
    return left < d->pool.buffers_free ? left : d->pool.buffers_free;
}

uint32_t buffer_take(struct device *d, uint64_t page)
{
    if (!d->pool.buffers_free)
        return 0;
    /* The lowest: so what is taken together mostly lies together, and memory that need not be touched is not. */
    uint64_t at = bitmap_next(&d->pool.buffers_left, 0);
    bitmap_clear(&d->pool.buffers_left, at);
    uint32_t number = (uint32_t)at + 1;
    struct page_buffer *buffer = &d->buffer[at];
    d->pool.buffers_free--;
    buffer->page = page;
    buffer->state = BUFFER_HELD;
    buffer->resync = buffer->has_crc = false;
    return number;
}

void buffer_give(struct device *d, uint32_t number)
{
    struct page_buffer *buffer = &d->buffer[number - 1];
    if (!must_hold(d, buffer->state != BUFFER_FREE, ISW_INVARIANT_BUFFER, number))
        return;
    if (buffer->resync)
        d->resync.buffers--;
    buffer->resync = false;
    buffer->state = BUFFER_FREE;
    bitmap_set(&d->pool.buffers_left, number - 1);
    d->pool.buffers_free++;
    d->resources_freed = true;
}
