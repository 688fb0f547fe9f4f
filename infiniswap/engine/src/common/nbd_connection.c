#include "nbd_connection.h"

#include "infiniswap_engine.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { GATHER_SEGMENTS = 128 }; /* segments of one sendmsg: two iovecs each, well below IOV_MAX */

_Static_assert(NBD_TX_HEAD_BYTES >= NBD_CHUNK_BYTES + 4 + 8 * NBD_INLINE_EXTENTS, "extents fit the head");
_Static_assert(NBD_RX_BYTES > ISW_OP_PAGES_MAX * ISW_PAGE_BYTES, "a payload that is waited for fits");
_Static_assert((NBD_TX_SEGMENTS & (NBD_TX_SEGMENTS - 1)) == 0, "ring index is masked");

size_t nbd_connection_memory_bytes(void)
{
    return NBD_RX_BYTES + NBD_TX_SEGMENTS * sizeof(struct nbd_segment);
}

void nbd_connection_memory(struct nbd_connection *c, void *memory)
{
    c->fd = -1;
    c->rx = memory;
    c->tx = (struct nbd_segment *)((uint8_t *)memory + NBD_RX_BYTES);
}

void nbd_connection_open(struct nbd_connection *c, int fd, uint32_t flags, uint64_t size_bytes, const void *early,
                         size_t early_bytes)
{
    c->fd = fd;
    c->flags = flags;
    c->size_bytes = size_bytes;
    c->rx_start = 0;
    c->rx_end = (uint32_t)early_bytes;
    if (early_bytes)
        memcpy(c->rx, early, early_bytes);
    c->payload_left = c->discard_left = c->in_flight = 0;
    c->readable = c->writable = true;
    c->hung_up = false;
    c->ended = c->finishing = c->dead = c->solo = false;
    c->errors = c->sent_bytes = c->received_bytes = 0;
    c->tx_head = c->tx_tail = c->tx_offset = 0;
    c->tx_stalled_ns = c->rx_stalled_ns = 0;
}

static struct nbd_segment *segment_at(struct nbd_connection *c, uint32_t position)
{
    return &c->tx[position & (NBD_TX_SEGMENTS - 1)];
}

static void drop_output(struct nbd_connection *c)
{
    while (c->tx_head != c->tx_tail) {
        uint32_t tag = segment_at(c, c->tx_head++)->tag;
        if (tag != NBD_NO_TAG)
            c->handler->sent(c->owner, c, tag);
    }
    c->tx_offset = 0;
}

void nbd_connection_abort(struct nbd_connection *c)
{
    c->dead = c->finishing = true;
    c->tx_stalled_ns = c->rx_stalled_ns = 0;
    drop_output(c);
}

void nbd_connection_close(struct nbd_connection *c)
{
    nbd_connection_abort(c);
    close(c->fd);
    c->fd = -1;
}

void nbd_connection_receive(struct nbd_connection *c)
{
    if (!c->readable || c->ended || c->finishing)
        return;
    if (c->rx_start == c->rx_end) {
        c->rx_start = c->rx_end = 0;
    } else if (c->rx_start > NBD_RX_BYTES / 2 || c->rx_end == NBD_RX_BYTES) {
        memmove(c->rx, c->rx + c->rx_start, c->rx_end - c->rx_start);
        c->rx_end -= c->rx_start;
        c->rx_start = 0;
    }
    size_t room = NBD_RX_BYTES - c->rx_end;
    if (!room)
        return;
    ssize_t got = recv(c->fd, c->rx + c->rx_end, room, MSG_DONTWAIT);
    if (got > 0) {
        c->rx_end += (uint32_t)got;
        c->received_bytes += (uint64_t)got;
        /* Less than there was room for: the socket is empty, and epoll will tell when it is not (epoll(7), Q9). */
        c->readable = (size_t)got == room || c->hung_up;
    } else if (got < 0 && errno == EINTR) {
        return;
    } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        c->readable = false;
    } else {
        c->readable = false;
        c->ended = true;
        if (got < 0)
            nbd_connection_abort(c);
    }
}

/* Everything that can be wrong with a request by itself, in one place.  Returns 0, or the errno to answer. */
static int validate(const struct nbd_connection *c, const struct nbd_request *r)
{
    static const uint16_t flags_allowed[] = {
        [NBD_CMD_READ] = NBD_CMD_FLAG_DF | NBD_CMD_FLAG_FUA, /* FUA on READ is meaningless but must not hurt */
        [NBD_CMD_WRITE] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_FLUSH] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_TRIM] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_CACHE] = NBD_CMD_FLAG_FUA,
        [NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
        [NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
    };
    if (r->command == NBD_CMD_DISC)
        return 0;
    if (r->command > NBD_CMD_BLOCK_STATUS)
        return EINVAL;
    if (r->flags & ~flags_allowed[r->command])
        return EINVAL;
    if ((r->flags & NBD_CMD_FLAG_DF) && !(c->flags & ISW_CONNECTION_STRUCTURED))
        return EINVAL;
    if (r->command == NBD_CMD_FLUSH)
        return r->offset || r->length ? EINVAL : 0;
    bool changes = r->command == NBD_CMD_WRITE || r->command == NBD_CMD_TRIM || r->command == NBD_CMD_WRITE_ZEROES;
    if (changes && (c->flags & ISW_CONNECTION_READ_ONLY))
        return EPERM;
    if (r->offset > c->size_bytes || r->length > c->size_bytes - r->offset)
        return changes ? ENOSPC : EINVAL;
    if ((r->command == NBD_CMD_READ || r->command == NBD_CMD_WRITE) && r->length > ISW_REQUEST_BYTES_MAX)
        return EOVERFLOW;
    if (r->command == NBD_CMD_BLOCK_STATUS && (!(c->flags & ISW_CONNECTION_ALLOCATION) || !r->length))
        return EINVAL;
    return 0;
}

/* False: blocked. */
static bool take_request(struct nbd_connection *c)
{
    const uint8_t *at = c->rx + c->rx_start;
    struct nbd_request r;
    if (nbd_get32(at) != NBD_REQUEST_MAGIC) {
        /* Out of step: nothing that follows can be trusted. */
        c->errors++;
        c->finishing = true;
        return true;
    }
    r.flags = nbd_get16(at + 4);
    r.command = nbd_get16(at + 6);
    memcpy(&r.cookie, at + 8, sizeof r.cookie);
    r.offset = nbd_get64(at + 16);
    r.length = nbd_get32(at + 24);

    if (c->solo || !nbd_connection_has_room(c, NBD_TX_SEGMENTS / 2) || c->in_flight >= ISW_CONNECTION_REQUESTS_MAX)
        return false;
    int error = validate(c, &r);
    if (error) {
        c->errors++;
        if (r.command == NBD_CMD_WRITE)
            c->discard_left = r.length; /* keeps the stream in step */
        nbd_reply(c, r.cookie, r.command, error);
    } else if (r.command == NBD_CMD_DISC) {
        c->finishing = true;
    } else {
        if (c->handler->request(c->owner, c, &r) == NBD_BLOCKED)
            return false;
        if (r.command == NBD_CMD_WRITE && !c->discard_left)
            c->payload_left = r.length;
    }
    c->rx_start += NBD_REQUEST_BYTES;
    return true;
}

/* Takes one step; *blocked tells why none was possible. */
static bool step(struct nbd_connection *c, bool *blocked)
{
    uint32_t have = c->rx_end - c->rx_start;
    *blocked = false;
    if (c->discard_left) {
        uint32_t gone = have < c->discard_left ? have : c->discard_left;
        c->rx_start += gone;
        c->discard_left -= gone;
        if (!c->discard_left)
            c->rx_stalled_ns = 0;
        return gone > 0;
    }
    if (c->payload_left) {
        uint32_t offered = have < c->payload_left ? have : c->payload_left;
        if (!offered)
            return false;
        uint32_t taken = (uint32_t)c->handler->payload(c->owner, c, c->rx + c->rx_start, offered, blocked);
        c->rx_start += taken;
        c->payload_left -= taken;
        if (!c->payload_left)
            c->rx_stalled_ns = 0; /* the next one has its own time */
        return taken == offered;
    }
    if (have < NBD_REQUEST_BYTES)
        return false;
    *blocked = !take_request(c);
    return !*blocked;
}

bool nbd_connection_process(struct nbd_connection *c)
{
    bool blocked = false;
    while (!c->finishing && step(c, &blocked))
        ;
    /* Whole requests that came before the end of the stream still count. */
    if (c->ended && !blocked)
        c->finishing = true;
    return blocked && !c->finishing;
}

void nbd_connection_send(struct nbd_connection *c, uint64_t now_ns)
{
    while (c->writable && c->tx_head != c->tx_tail && !c->dead) {
        struct iovec iov[2 * GATHER_SEGMENTS];
        size_t vectors = 0, total = 0;
        uint32_t skip = c->tx_offset;
        for (uint32_t at = c->tx_head; at != c->tx_tail && at - c->tx_head < GATHER_SEGMENTS; at++) {
            struct nbd_segment *s = segment_at(c, at);
            if (skip < s->head_bytes) {
                iov[vectors++] = (struct iovec){s->head + skip, s->head_bytes - skip};
                skip = 0;
            } else {
                skip -= s->head_bytes;
            }
            if (s->body_bytes > skip)
                iov[vectors++] = (struct iovec){(void *)(uintptr_t)(s->body + skip), s->body_bytes - skip};
            skip = 0;
        }
        for (size_t i = 0; i < vectors; i++)
            total += iov[i].iov_len;
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = vectors};
        ssize_t sent = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK) {
                c->writable = false;
                break;
            }
            nbd_connection_abort(c);
            return;
        }
        c->sent_bytes += (uint64_t)sent;
        if (c->sent_bytes - c->tx_stalled_at >= NBD_PROGRESS_BYTES)
            c->tx_stalled_ns = 0;
        if ((size_t)sent < total)
            c->writable = false;
        uint64_t left = (uint64_t)sent + c->tx_offset;
        while (c->tx_head != c->tx_tail) {
            struct nbd_segment *s = segment_at(c, c->tx_head);
            uint64_t bytes = (uint64_t)s->head_bytes + s->body_bytes;
            if (left < bytes)
                break;
            left -= bytes;
            uint32_t tag = s->tag;
            c->tx_head++;
            if (tag != NBD_NO_TAG)
                c->handler->sent(c->owner, c, tag);
        }
        c->tx_offset = (uint32_t)left;
    }
    if (c->tx_head == c->tx_tail) {
        c->tx_stalled_ns = 0;
    } else if (!c->tx_stalled_ns) {
        c->tx_stalled_ns = now_ns;
        c->tx_stalled_at = c->sent_bytes;
    }
}

bool nbd_connection_stalled(struct nbd_connection *c, uint64_t now_ns, uint64_t limit_ns, bool blocked, bool anew)
{
    if (anew && c->tx_stalled_ns)
        c->tx_stalled_ns = now_ns;
    bool owes = (c->payload_left || c->discard_left) && !blocked && !c->ended && !c->dead;
    if (!owes) {
        c->rx_stalled_ns = 0;
    } else if (!c->rx_stalled_ns || anew || c->received_bytes - c->rx_stalled_at >= NBD_PROGRESS_BYTES) {
        c->rx_stalled_ns = now_ns;
        c->rx_stalled_at = c->received_bytes;
    }
    return (c->tx_stalled_ns && now_ns > c->tx_stalled_ns && now_ns - c->tx_stalled_ns > limit_ns) ||
           (c->rx_stalled_ns && now_ns - c->rx_stalled_ns > limit_ns);
}

static struct nbd_segment *append(struct nbd_connection *c)
{
    struct nbd_segment *s = segment_at(c, c->tx_tail++);
    s->body = NULL;
    s->body_bytes = s->head_bytes = 0;
    s->tag = NBD_NO_TAG;
    return s;
}

static void put_chunk(struct nbd_segment *s, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length)
{
    nbd_put32(s->head, NBD_STRUCTURED_REPLY_MAGIC);
    nbd_put16(s->head + 4, flags);
    nbd_put16(s->head + 6, type);
    memcpy(s->head + 8, &cookie, sizeof cookie);
    nbd_put32(s->head + 16, length);
    s->head_bytes = NBD_CHUNK_BYTES;
}

static void put_simple(struct nbd_segment *s, uint64_t cookie, uint32_t error)
{
    nbd_put32(s->head, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(s->head + 4, error);
    memcpy(s->head + 8, &cookie, sizeof cookie);
    s->head_bytes = NBD_SIMPLE_REPLY_BYTES;
}

static uint32_t wire_error(int error)
{
    switch (error) {
    case 0:
        return 0;
    case EPERM:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

void nbd_reply(struct nbd_connection *c, uint64_t cookie, uint16_t command, int error)
{
    if (c->dead)
        return;
    struct nbd_segment *s = append(c);
    bool structured = (c->flags & ISW_CONNECTION_STRUCTURED) && (command == NBD_CMD_READ || command == NBD_CMD_BLOCK_STATUS);
    /* EOVERFLOW is defined for structured replies only. */
    uint32_t wire = error == EOVERFLOW && !structured ? NBD_EINVAL : wire_error(error);
    if (!structured) {
        put_simple(s, cookie, wire);
    } else if (error) {
        put_chunk(s, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, cookie, 6);
        nbd_put32(s->head + NBD_CHUNK_BYTES, wire);
        nbd_put16(s->head + NBD_CHUNK_BYTES + 4, 0);
        s->head_bytes += 6;
    } else {
        put_chunk(s, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, cookie, 0);
    }
}

void nbd_reply_data(struct nbd_connection *c, uint64_t cookie, uint64_t offset, bool done, uint32_t chunk_bytes,
                    const uint8_t *body, uint32_t body_bytes, uint32_t tag)
{
    if (c->dead) {
        if (tag != NBD_NO_TAG)
            c->handler->sent(c->owner, c, tag);
        return;
    }
    struct nbd_segment *s = append(c);
    if (c->flags & ISW_CONNECTION_STRUCTURED) {
        put_chunk(s, done ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_OFFSET_DATA, cookie, chunk_bytes + 8);
        nbd_put64(s->head + NBD_CHUNK_BYTES, offset);
        s->head_bytes += 8;
    } else {
        put_simple(s, cookie, 0);
    }
    s->body = body;
    s->body_bytes = body_bytes;
    s->tag = tag;
}

void nbd_reply_more(struct nbd_connection *c, const uint8_t *body, uint32_t body_bytes, uint32_t tag)
{
    if (c->dead) {
        if (tag != NBD_NO_TAG)
            c->handler->sent(c->owner, c, tag);
        return;
    }
    struct nbd_segment *s = append(c);
    s->body = body;
    s->body_bytes = body_bytes;
    s->tag = tag;
}

void nbd_reply_extents(struct nbd_connection *c, uint64_t cookie, uint32_t context, const uint8_t *extents,
                       uint32_t count, uint32_t tag)
{
    if (c->dead) {
        if (tag != NBD_NO_TAG)
            c->handler->sent(c->owner, c, tag);
        return;
    }
    struct nbd_segment *s = append(c);
    uint32_t bytes = count * 8;
    put_chunk(s, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, cookie, bytes + 4);
    nbd_put32(s->head + NBD_CHUNK_BYTES, context);
    s->head_bytes += 4;
    if (tag == NBD_NO_TAG) {
        memcpy(s->head + s->head_bytes, extents, bytes);
        s->head_bytes += bytes;
    } else {
        s->body = extents;
        s->body_bytes = bytes;
        s->tag = tag;
    }
}
