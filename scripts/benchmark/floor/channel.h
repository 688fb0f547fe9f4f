/* One socket in transmission: cuts what arrives into messages (a head of fixed size, then a payload) and gathers what is
 * to be sent.  Knows no event loop: loop.c drives it.
 *
 * Payloads are not copied: they stay in the chunk they were received into, which is counted, until they are sent on. */
#ifndef FLOOR_CHANNEL_H
#define FLOOR_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    CHUNK_BYTES = 256 << 10,    /* the most that one receive takes */
    CHUNK_ROOM_MIN = 64 << 10,  /* with less room left a receive starts a new chunk */
    CHUNKS_MAX = 512,
    OUT_MAX = 8192,             /* pieces waiting to be sent on one socket; power of two */
    IOV_MAX_SEND = 512,         /* pieces handed to one send */
    HEAD_BYTES_MAX = 28,
    DIRECT_BYTES_MIN = 32 << 10, /* payloads with more left than this are received in place */
};

struct chunk {
    struct chunk *next_free;
    uint32_t references;
    size_t fill;
    uint8_t *data;
};

struct chunk_pool {
    struct chunk *free;
    struct chunk chunks[CHUNKS_MAX];
};

struct channel;

/* What a program does with messages.  Callbacks return 0, or -1 to have the channel closed. */
struct channel_ops {
    size_t head_bytes;      /* of messages that arrive */
    size_t out_head_bytes;  /* of messages that are sent */
    bool (*ready)(struct channel *channel); /* may the next message begin? false pauses the channel */
    int (*head)(struct channel *channel, const uint8_t *head); /* sets payload_left, and direct where it can */
    int (*payload)(struct channel *channel, const uint8_t *data, size_t bytes); /* a piece that is in channel->chunk */
    int (*done)(struct channel *channel);
    void (*closed)(struct channel *channel);
};

struct out {
    const uint8_t *base;
    size_t bytes;
    struct chunk *chunk; /* NULL: a head, or memory that outlives the channel */
};

struct channel {
    int fd;
    const struct channel_ops *ops;
    void *owner; /* the program's own */
    struct loop *loop;
    struct chunk_pool *pool;

    /* arriving */
    struct chunk *chunk;
    size_t parsed; /* up to here chunk has been cut into messages */
    uint8_t head[HEAD_BYTES_MAX];
    size_t head_fill;
    bool in_payload;
    size_t payload_left;
    uint8_t *direct; /* where the rest of the payload belongs, or NULL */
    bool paused;
    bool closing;

    /* leaving: entries out_first up to out_last, both running freely */
    struct out out[OUT_MAX];
    uint8_t heads[OUT_MAX * HEAD_BYTES_MAX];
    uint32_t out_first, out_last;

    /* the loop's own */
    bool dirty; /* has something to send and stands in the loop's list */
    bool watching_output;
    struct iovec send_iov[IOV_MAX_SEND];
};

int chunk_pool_open(struct chunk_pool *pool);
struct channel *channel_open(int fd, const struct channel_ops *ops, void *owner, struct chunk_pool *pool);
void channel_free(struct channel *channel);

/* Where the next bytes should be received; false: no chunk is left. */
bool channel_receive_space(struct channel *channel, uint8_t **to, size_t *bytes);
/* So many bytes have arrived there.  -1: close the channel. */
int channel_received(struct channel *channel, size_t bytes);
/* Goes on after ready() said no. */
int channel_parse(struct channel *channel);

uint8_t *channel_push_head(struct channel *channel);
void channel_push_span(struct channel *channel, const uint8_t *base, size_t bytes, struct chunk *chunk);
static inline uint32_t channel_out_room(const struct channel *channel)
{
    return OUT_MAX - (channel->out_last - channel->out_first);
}
int channel_gather(struct channel *channel, struct iovec *iov, int iov_max);
void channel_sent(struct channel *channel, size_t bytes);
void chunk_release(struct chunk_pool *pool, struct chunk *chunk);

#endif
