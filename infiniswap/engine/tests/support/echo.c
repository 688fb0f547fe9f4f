#include "echo.h"

#include <errno.h>

static void reply_read(struct echo *e, struct nbd_connection *c, const struct nbd_request *r)
{
    e->tags_out++;
    nbd_reply_data(c, r->cookie, r->offset, true, r->length, e->disk + r->offset, r->length, 7);
}

static enum nbd_verdict on_request(void *owner, struct nbd_connection *c, const struct nbd_request *r)
{
    struct echo *e = owner;
    CHECK(r->command <= NBD_CMD_BLOCK_STATUS && r->command != NBD_CMD_DISC);
    CHECK(r->offset <= ECHO_BYTES && r->length <= ECHO_BYTES - r->offset); /* validated before it comes here */
    if (e->chance && chance_in(e->chance, 4)) {
        e->blocked++;
        return NBD_BLOCKED;
    }
    e->requests++;
    if (r->command == NBD_CMD_READ && r->length) {
        reply_read(e, c, r);
    } else if (r->command == NBD_CMD_WRITE && r->length) {
        e->write_at = r->offset;
        e->write_left = r->length;
        e->write_cookie = r->cookie;
    } else if (r->command == NBD_CMD_BLOCK_STATUS) {
        uint8_t extent[8];
        nbd_put32(extent, r->length);
        nbd_put32(extent + 4, 0);
        nbd_reply_extents(c, r->cookie, ISW_CONTEXT_ALLOCATION, extent, 1, NBD_NO_TAG);
    } else {
        if (r->command == NBD_CMD_TRIM || r->command == NBD_CMD_WRITE_ZEROES)
            memset(e->disk + r->offset, 0, r->length);
        nbd_reply(c, r->cookie, r->command, 0);
    }
    return NBD_TAKEN;
}

static size_t on_payload(void *owner, struct nbd_connection *c, const uint8_t *data, size_t bytes, bool *blocked)
{
    struct echo *e = owner;
    CHECK(bytes && bytes <= e->write_left);
    if (e->chance && chance_in(e->chance, 3)) {
        size_t offered = bytes;
        bytes = (size_t)chance_below(e->chance, bytes + 1);
        *blocked = bytes < offered;
    }
    memcpy(e->disk + e->write_at, data, bytes);
    e->write_at += bytes;
    e->write_left -= (uint32_t)bytes;
    e->payload_bytes += bytes;
    if (!e->write_left)
        nbd_reply(c, e->write_cookie, NBD_CMD_WRITE, 0);
    return bytes;
}

static void on_sent(void *owner, struct nbd_connection *c, uint32_t tag)
{
    (void)c;
    CHECK_EQUAL(tag, 7);
    CHECK(((struct echo *)owner)->tags_out-- > 0);
}

static const struct nbd_handler handler = {on_request, on_payload, on_sent};

void echo_open(struct echo *e, int fd, uint32_t flags, const void *early, size_t early_bytes)
{
    memset(e, 0, sizeof *e);
    e->memory = malloc(nbd_connection_memory_bytes());
    CHECK(e->memory);
    nbd_connection_memory(&e->connection, e->memory);
    e->connection.handler = &handler;
    e->connection.owner = e;
    nbd_connection_open(&e->connection, fd, flags, ECHO_BYTES, early, early_bytes);
}

void echo_turn(struct echo *e)
{
    struct nbd_connection *c = &e->connection;
    c->readable = c->writable = true; /* as after an edge from epoll */
    nbd_connection_receive(c);
    nbd_connection_process(c);
    nbd_connection_send(c, 1);
    CHECK(c->tx_tail - c->tx_head <= NBD_TX_SEGMENTS);
    CHECK(c->rx_start <= c->rx_end && c->rx_end <= NBD_RX_BYTES);
}

void echo_close(struct echo *e)
{
    nbd_connection_close(&e->connection);
    CHECK_EQUAL(e->tags_out, 0);
    free(e->memory);
}
