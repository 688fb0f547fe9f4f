#include "channel.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int chunk_pool_open(struct chunk_pool *pool)
{
    uint8_t *memory = mmap(NULL, (size_t)CHUNK_BYTES * CHUNKS_MAX, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    pool->free = NULL;
    for (size_t i = CHUNKS_MAX; i-- > 0;) {
        pool->chunks[i] = (struct chunk){.next_free = pool->free, .data = memory + i * CHUNK_BYTES};
        pool->free = &pool->chunks[i];
    }
    return 0;
}

void chunk_release(struct chunk_pool *pool, struct chunk *chunk)
{
    if (--chunk->references == 0) {
        chunk->next_free = pool->free; /* last in, first out: the warm one is used again */
        pool->free = chunk;
    }
}

struct channel *channel_open(int fd, const struct channel_ops *ops, void *owner, struct chunk_pool *pool)
{
    struct channel *channel = calloc(1, sizeof *channel);
    if (channel) {
        channel->fd = fd;
        channel->ops = ops;
        channel->owner = owner;
        channel->pool = pool;
    }
    return channel;
}

void channel_free(struct channel *channel)
{
    for (; channel->out_first != channel->out_last; channel->out_first++) {
        struct chunk *chunk = channel->out[channel->out_first % OUT_MAX].chunk;
        if (chunk)
            chunk_release(channel->pool, chunk);
    }
    if (channel->chunk)
        chunk_release(channel->pool, channel->chunk);
    close(channel->fd);
    free(channel);
}

static bool receives_directly(const struct channel *channel)
{
    return channel->in_payload && channel->direct && channel->payload_left > DIRECT_BYTES_MIN;
}

bool channel_receive_space(struct channel *channel, uint8_t **to, size_t *bytes)
{
    if (receives_directly(channel)) {
        *to = channel->direct;
        *bytes = channel->payload_left;
        return true;
    }
    struct chunk *chunk = channel->chunk;
    if (chunk && chunk->references == 1 && channel->parsed == chunk->fill)
        chunk->fill = channel->parsed = 0;
    if (!chunk || CHUNK_BYTES - chunk->fill < CHUNK_ROOM_MIN) {
        struct chunk *fresh = channel->pool->free;
        if (!fresh)
            return false;
        channel->pool->free = fresh->next_free;
        fresh->references = 1;
        fresh->fill = 0;
        if (chunk)
            chunk_release(channel->pool, chunk);
        channel->chunk = chunk = fresh;
        channel->parsed = 0;
    }
    *to = chunk->data + chunk->fill;
    *bytes = CHUNK_BYTES - chunk->fill;
    return true;
}

static int finish_payload(struct channel *channel)
{
    channel->in_payload = false;
    channel->direct = NULL;
    return channel->ops->done(channel);
}

int channel_received(struct channel *channel, size_t bytes)
{
    if (receives_directly(channel)) {
        channel->direct += bytes;
        channel->payload_left -= bytes;
        return channel->payload_left == 0 ? finish_payload(channel) : 0;
    }
    channel->chunk->fill += bytes;
    return channel_parse(channel);
}

static int parse_payload(struct channel *channel, size_t available)
{
    size_t bytes = available < channel->payload_left ? available : channel->payload_left;
    const uint8_t *data = channel->chunk->data + channel->parsed;
    channel->parsed += bytes;
    channel->payload_left -= bytes;
    if (channel->direct) {
        memcpy(channel->direct, data, bytes);
        channel->direct += bytes;
    } else if (channel->ops->payload(channel, data, bytes)) {
        return -1;
    }
    return channel->payload_left == 0 ? finish_payload(channel) : 0;
}

static int parse_head(struct channel *channel, size_t available)
{
    size_t head_bytes = channel->ops->head_bytes;
    const uint8_t *data = channel->chunk->data + channel->parsed;
    const uint8_t *head = data;
    if (channel->head_fill > 0 || available < head_bytes) { /* it was cut in two by the end of a receive */
        size_t bytes = head_bytes - channel->head_fill;
        bytes = available < bytes ? available : bytes;
        memcpy(channel->head + channel->head_fill, data, bytes);
        channel->head_fill += bytes;
        channel->parsed += bytes;
        if (channel->head_fill < head_bytes)
            return 0;
        channel->head_fill = 0;
        head = channel->head;
    } else {
        channel->parsed += head_bytes;
    }
    channel->payload_left = 0;
    if (channel->ops->head(channel, head))
        return -1;
    if (channel->payload_left == 0)
        return finish_payload(channel);
    channel->in_payload = true;
    return 0;
}

int channel_parse(struct channel *channel)
{
    channel->paused = false;
    while (channel->chunk && channel->parsed < channel->chunk->fill) {
        size_t available = channel->chunk->fill - channel->parsed;
        if (channel->in_payload) {
            if (parse_payload(channel, available))
                return -1;
        } else {
            if (channel->head_fill == 0 && !channel->ops->ready(channel)) {
                channel->paused = true;
                return 0;
            }
            if (parse_head(channel, available))
                return -1;
        }
    }
    return 0;
}

/* The caller keeps room by its limit on messages in flight. */
static struct out *push(struct channel *channel)
{
    if (channel_out_room(channel) == 0)
        abort();
    return &channel->out[channel->out_last++ % OUT_MAX];
}

/* Heads lie behind one another without a gap, so that neighbours leave as one piece. */
uint8_t *channel_push_head(struct channel *channel)
{
    size_t bytes = channel->ops->out_head_bytes;
    uint8_t *head = channel->heads + channel->out_last % OUT_MAX * bytes;
    *push(channel) = (struct out){.base = head, .bytes = bytes};
    return head;
}

void channel_push_span(struct channel *channel, const uint8_t *base, size_t bytes, struct chunk *chunk)
{
    if (chunk)
        chunk->references++;
    *push(channel) = (struct out){.base = base, .bytes = bytes, .chunk = chunk};
}

int channel_gather(struct channel *channel, struct iovec *iov, int iov_max)
{
    int count = 0;
    for (uint32_t i = channel->out_first; i != channel->out_last; i++) {
        const struct out *out = &channel->out[i % OUT_MAX];
        if (count > 0 && (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == out->base) {
            iov[count - 1].iov_len += out->bytes;
            continue;
        }
        if (count == iov_max)
            break;
        union {
            const uint8_t *from;
            void *to;
        } base = {.from = out->base}; /* iovec knows no const */
        iov[count++] = (struct iovec){.iov_base = base.to, .iov_len = out->bytes};
    }
    return count;
}

void channel_sent(struct channel *channel, size_t bytes)
{
    while (bytes > 0) {
        struct out *out = &channel->out[channel->out_first % OUT_MAX];
        if (bytes < out->bytes) {
            out->base += bytes;
            out->bytes -= bytes;
            return;
        }
        bytes -= out->bytes;
        if (out->chunk)
            chunk_release(channel->pool, out->chunk);
        channel->out_first++;
    }
}
