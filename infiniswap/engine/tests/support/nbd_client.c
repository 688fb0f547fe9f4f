#include "nbd_client.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

void client_open(struct client *c, int fd, bool structured)
{
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->structured = structured;
}

void client_close(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    free(c->tx);
    free(c->rx);
    c->tx = c->rx = NULL;
    c->tx_start = c->tx_end = c->tx_room = c->rx_end = c->rx_room = 0;
}

static void make_room(uint8_t **buffer, size_t *room, size_t wanted)
{
    if (wanted <= *room)
        return;
    *room = wanted * 2;
    *buffer = realloc(*buffer, *room);
    CHECK(*buffer);
}

static void queue(struct client *c, const void *bytes, size_t count)
{
    if (c->tx_start == c->tx_end)
        c->tx_start = c->tx_end = 0;
    make_room(&c->tx, &c->tx_room, c->tx_end + count);
    memcpy(c->tx + c->tx_end, bytes, count);
    c->tx_end += count;
}

struct call *client_send(struct client *c, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length,
                         const void *payload, void *read_into)
{
    uint32_t slot = 0;
    while (slot < CLIENT_CALLS && c->calls[slot].used)
        slot++;
    if (slot == CLIENT_CALLS)
        return NULL;
    struct call *call = &c->calls[slot];
    *call = (struct call){.used = true,
                          .command = command,
                          .flags = flags,
                          .cookie = (uint64_t)++c->generation << 32 | slot,
                          .offset = offset,
                          .length = length,
                          .data = read_into};
    uint8_t head[NBD_REQUEST_BYTES];
    nbd_put_request(head, command, flags, call->cookie, offset, length);
    queue(c, head, sizeof head);
    if (command == NBD_CMD_WRITE)
        queue(c, payload, length);
    c->calls_out++;
    return call;
}

static void finish(struct client *c, struct call *call)
{
    if (call->command == NBD_CMD_READ && !call->error)
        CHECK_EQUAL(call->filled, call->length);
    c->calls_out--;
    struct call done = *call;
    call->used = false;
    if (done.done)
        done.done(done.owner, c, &done);
}

static struct call *find(struct client *c, uint64_t cookie)
{
    uint32_t slot = (uint32_t)cookie;
    if (slot >= CLIENT_CALLS || !c->calls[slot].used || c->calls[slot].cookie != cookie)
        FAIL("an answer to nothing that was asked: cookie %llx", (unsigned long long)cookie);
    return &c->calls[slot];
}

/* Bytes of a whole simple reply, 0: not all here. */
static size_t take_simple(struct client *c, const uint8_t *at, size_t have)
{
    uint64_t cookie;
    memcpy(&cookie, at + 8, sizeof cookie);
    struct call *call = find(c, cookie);
    uint32_t error = nbd_get32(at + 4);
    bool data = call->command == NBD_CMD_READ && !error;
    CHECK(!c->structured || (call->command != NBD_CMD_READ && call->command != NBD_CMD_BLOCK_STATUS));
    size_t bytes = NBD_SIMPLE_REPLY_BYTES + (data ? call->length : 0);
    if (have < bytes)
        return 0;
    if (data) {
        memcpy(call->data, at + NBD_SIMPLE_REPLY_BYTES, call->length);
        call->filled = call->length;
    }
    call->error = error;
    finish(c, call);
    return bytes;
}

static size_t take_chunk(struct client *c, const uint8_t *at, size_t have)
{
    uint64_t cookie;
    CHECK(c->structured);
    if (have < NBD_CHUNK_BYTES)
        return 0;
    uint16_t flags = nbd_get16(at + 4), type = nbd_get16(at + 6);
    uint32_t length = nbd_get32(at + 16);
    const uint8_t *body = at + NBD_CHUNK_BYTES;
    memcpy(&cookie, at + 8, sizeof cookie);
    struct call *call = find(c, cookie);
    if (have < NBD_CHUNK_BYTES + (size_t)length)
        return 0;
    if (type == NBD_REPLY_TYPE_OFFSET_DATA) {
        CHECK(call->command == NBD_CMD_READ && length > 8);
        uint64_t offset = nbd_get64(body);
        CHECK(offset >= call->offset && offset + (length - 8) <= call->offset + call->length);
        memcpy(call->data + (offset - call->offset), body + 8, length - 8);
        call->filled += length - 8;
    } else if (type == NBD_REPLY_TYPE_BLOCK_STATUS) {
        CHECK(call->command == NBD_CMD_BLOCK_STATUS && length >= 12 && length % 8 == 4 && nbd_get32(body) == 1);
        memcpy(call->data, body + 4, length - 4);
        call->filled = length - 4;
    } else if (type == NBD_REPLY_TYPE_ERROR) {
        CHECK(length >= 6 && nbd_get32(body));
        call->error = nbd_get32(body);
    } else {
        CHECK(type == NBD_REPLY_TYPE_NONE && !length);
    }
    if (flags & NBD_REPLY_FLAG_DONE)
        finish(c, call);
    return NBD_CHUNK_BYTES + (size_t)length;
}

static void take_replies(struct client *c)
{
    size_t start = 0;
    while (c->rx_end - start >= NBD_SIMPLE_REPLY_BYTES) {
        const uint8_t *at = c->rx + start;
        size_t have = c->rx_end - start;
        uint32_t magic = nbd_get32(at);
        if (magic != NBD_SIMPLE_REPLY_MAGIC && magic != NBD_STRUCTURED_REPLY_MAGIC)
            FAIL("out of step: a reply begins with %08x", magic);
        size_t taken = magic == NBD_SIMPLE_REPLY_MAGIC ? take_simple(c, at, have) : take_chunk(c, at, have);
        if (!taken)
            break;
        start += taken;
    }
    if (!start) /* a long answer is not moved once for every piece of it that comes */
        return;
    memmove(c->rx, c->rx + start, c->rx_end - start);
    c->rx_end -= start;
}

void client_pump(struct client *c)
{
    while (c->fd >= 0 && !c->ended && c->tx_start < c->tx_end) {
        ssize_t sent = send(c->fd, c->tx + c->tx_start, c->tx_end - c->tx_start, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (sent < 0)
            c->ended = true;
        else
            c->tx_start += (size_t)sent;
    }
    while (c->fd >= 0) {
        size_t most = c->receive_most ? c->receive_most : 1 << 18;
        make_room(&c->rx, &c->rx_room, c->rx_end + most);
        ssize_t got = recv(c->fd, c->rx + c->rx_end, most, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (got <= 0) {
            c->ended = true;
            return;
        }
        c->rx_end += (size_t)got;
        take_replies(c);
        if (c->receive_most)
            return;
    }
}

void clients_pump(struct client *clients, uint32_t count, int timeout_ms)
{
    struct pollfd fds[64];
    CHECK(count <= 64);
    for (uint32_t i = 0; i < count; i++) {
        struct client *c = &clients[i];
        bool open = c->fd >= 0 && !c->ended;
        fds[i] = (struct pollfd){.fd = open ? c->fd : -1,
                                 .events = (short)(POLLIN | (c->tx_start < c->tx_end ? POLLOUT : 0))};
    }
    poll(fds, count, timeout_ms);
    for (uint32_t i = 0; i < count; i++)
        if (clients[i].fd >= 0 && !clients[i].ended)
            client_pump(&clients[i]);
}

static void note_done(void *owner, struct client *c, struct call *call)
{
    (void)c;
    *(struct call *)owner = *call;
}

uint32_t client_call(struct client *c, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length,
                     const void *payload, void *read_into)
{
    struct call result = {.used = true};
    struct call *call = client_send(c, command, flags, offset, length, payload, read_into);
    uint64_t deadline = now_ns() + WAIT_S_MAX * 1000000000ull;
    CHECK(call);
    call->done = note_done;
    call->owner = &result;
    result.cookie = 0;
    while (!result.cookie) {
        clients_pump(c, 1, 100);
        if (c->ended && !result.cookie)
            FAIL("the server closed the connection; command %u at %llu is unanswered", command, (unsigned long long)offset);
        if (now_ns() > deadline)
            FAIL("command %u at %llu is unanswered", command, (unsigned long long)offset);
    }
    return result.error;
}

void client_settle(struct client *c)
{
    uint64_t deadline = now_ns() + WAIT_S_MAX * 1000000000ull;
    while (c->calls_out && !c->ended) {
        clients_pump(c, 1, 100);
        if (now_ns() > deadline)
            FAIL("%u requests are unanswered", c->calls_out);
    }
}
