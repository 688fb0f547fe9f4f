/* The server side of one negotiated NBD connection: bytes in, validated requests out, replies queued and gathered.
 *
 * Shared by the device and the memory daemon; knows no epoll and no pages.  All memory is given at initialisation. */
#ifndef ISW_NBD_CONNECTION_H
#define ISW_NBD_CONNECTION_H

#include "nbd_wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    NBD_RX_BYTES = 260 << 10, /* one recv takes what a deep queue has sent meanwhile; and all pages of one operation fit */
    NBD_TX_SEGMENTS = 1024,   /* power of two; twice ISW_CONNECTION_REQUESTS_MAX */
    NBD_TX_HEAD_BYTES = 64,
    NBD_INLINE_EXTENTS = 4,
    NBD_NO_TAG = UINT32_MAX,
    NBD_PROGRESS_BYTES = 64 << 10, /* that a client takes, or sends of a payload, within the time-out, or all there is */
};

struct nbd_segment {
    const uint8_t *body; /* stays valid until sent() is told the tag */
    uint32_t body_bytes;
    uint32_t head_bytes;
    uint32_t tag;
    uint8_t head[NBD_TX_HEAD_BYTES];
};

struct nbd_connection;

enum nbd_verdict { NBD_TAKEN, NBD_BLOCKED };

struct nbd_handler {
    /* A request whose form is right.  WRITE: payload() follows for r->length bytes, unless discard_left is set here.
     * NBD_BLOCKED: something is missing just now; the request is offered again at the next nbd_connection_process. */
    enum nbd_verdict (*request)(void *owner, struct nbd_connection *connection, const struct nbd_request *request);
    /* Returns how many of the bytes it took.  Fewer than offered: it waits for more of them, or sets *blocked. */
    size_t (*payload)(void *owner, struct nbd_connection *connection, const uint8_t *data, size_t bytes, bool *blocked);
    /* A segment with a tag has left, or never will. */
    void (*sent)(void *owner, struct nbd_connection *connection, uint32_t tag);
};

struct nbd_connection {
    const struct nbd_handler *handler;
    void *owner;
    int fd; /* -1: not in use */
    uint32_t flags; /* ISW_CONNECTION_* */
    uint64_t size_bytes;
    uint8_t *rx;
    uint32_t rx_start, rx_end;
    uint32_t payload_left; /* of the WRITE under way */
    uint32_t discard_left; /* of a refused WRITE */
    uint32_t in_flight;    /* requests taken and not yet answered; kept by the owner */
    bool solo;             /* the only request in flight answers in pieces that nothing may come between; kept by the owner */
    bool readable;         /* the socket may hold more */
    bool hung_up;          /* epoll has told of the end: no further edge will, so it is read for until it shows */
    bool writable;
    bool ended;     /* the client will send no more */
    bool finishing; /* nothing more is taken: answer what is in flight, then close */
    bool dead;      /* nothing more can be sent either */
    uint64_t errors;
    uint64_t sent_bytes, received_bytes;
    struct nbd_segment *tx; /* [NBD_TX_SEGMENTS] */
    uint32_t tx_head, tx_tail;
    uint32_t tx_offset; /* sent of the first segment */
    /* Since when the client is waited for, and what had passed by then; 0: it is not. */
    uint64_t tx_stalled_ns, tx_stalled_at, rx_stalled_ns, rx_stalled_at;
};

size_t nbd_connection_memory_bytes(void);
void nbd_connection_memory(struct nbd_connection *c, void *memory);
/* early may hold at most NBD_RX_BYTES. */
void nbd_connection_open(struct nbd_connection *c, int fd, uint32_t flags, uint64_t size_bytes, const void *early,
                         size_t early_bytes);
/* Closes the socket and gives all tags back. */
void nbd_connection_close(struct nbd_connection *c);

/* The client can no longer be served: nothing more is sent; what was queued gives its tags back. */
void nbd_connection_abort(struct nbd_connection *c);

/* Reads once if the socket may hold something and there is room. */
void nbd_connection_receive(struct nbd_connection *c);
/* Hands on what was read, until nothing is left or the handler blocks.  True: it blocked. */
bool nbd_connection_process(struct nbd_connection *c);
/* Asked now and then: has the client kept us waiting for limit_ns, with answers that it does not take or a payload that it does
 * not send?  Fewer than NBD_PROGRESS_BYTES in that time are no progress.  blocked: the payload waits for us.  anew: we stood still
 * ourselves, and nothing is to be concluded from the time that went by. */
bool nbd_connection_stalled(struct nbd_connection *c, uint64_t now_ns, uint64_t limit_ns, bool blocked, bool anew);
/* Sends what is queued, as far as the socket takes it. */
void nbd_connection_send(struct nbd_connection *c, uint64_t now_ns);

static inline bool nbd_connection_has_output(const struct nbd_connection *c)
{
    return c->tx_head != c->tx_tail;
}
/* Room for segments more replies? */
static inline bool nbd_connection_has_room(const struct nbd_connection *c, uint32_t segments)
{
    return NBD_TX_SEGMENTS - (c->tx_tail - c->tx_head) >= segments;
}

/* error: an errno, 0 for success. */
void nbd_reply(struct nbd_connection *c, uint64_t cookie, uint16_t command, int error);
/* A successful READ's answer, or a piece of it: chunk_bytes (of a structured reply's chunk) may be more than body_bytes; the rest
 * follows by nbd_reply_more, as does that of a simple reply. */
void nbd_reply_data(struct nbd_connection *c, uint64_t cookie, uint64_t offset, bool done, uint32_t chunk_bytes,
                    const uint8_t *body, uint32_t body_bytes, uint32_t tag);
/* More bytes of the answer before, without a header. */
void nbd_reply_more(struct nbd_connection *c, const uint8_t *body, uint32_t body_bytes, uint32_t tag);
/* extents: count pairs of length and flags in network order, behind a tag or (count <= NBD_INLINE_EXTENTS) copied. */
void nbd_reply_extents(struct nbd_connection *c, uint64_t cookie, uint32_t context, const uint8_t *extents,
                       uint32_t count, uint32_t tag);

#endif
