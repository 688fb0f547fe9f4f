/* A bare relay: NBD on a UNIX socket in front, memory servers on TCP loopback behind, nothing in between: no page states,
 * no checksums, no backup.  What a device with a policy costs shows against it.
 *
 *     relay SOCKET STRIPE_BYTES PORT...
 *
 * Stripe i lies on server i modulo their number, at the same offset as here; a request may not cross a stripe.
 * Prints "ready" when it serves. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "handshake.h"
#include "loop.h"
#include "sockets.h"
#include "wire.h"

enum {
    SERVERS_MAX = 16,
    SLOTS = 1024,            /* requests in flight, all clients together */
    STAGED_MAX = REQUEST_BYTES_MAX / CHUNK_ROOM_MIN + 2, /* pieces one payload may arrive in */
    OUT_ROOM_MIN = STAGED_MAX + 1,
    CLIENTS_MAX = LOOP_CHANNELS_MAX - SERVERS_MAX,
};

struct slot {
    struct channel *client; /* NULL: it has gone */
    uint64_t cookie;
    uint32_t length; /* of the data that a reply brings */
    int next_free;
};

struct relay {
    uint64_t size_bytes, stripe_bytes;
    struct channel *servers[SERVERS_MAX];
    unsigned server_count;
    struct channel *clients[CLIENTS_MAX];
    bool any_paused; /* a client waits for a slot or for room behind a server */
    struct slot slots[SLOTS];
    int free_slot;
    struct chunk_pool pool;
};

struct piece {
    const uint8_t *data;
    size_t bytes;
    struct chunk *chunk;
};

/* The state of one connection's arriving message; pieces wait here until it is whole, because many connections feed one. */
struct connection {
    struct relay *relay;
    struct channel *target; /* NULL: the message is dropped or answered here */
    struct nbd_request request;
    uint32_t error;
    int slot;
    struct piece staged[STAGED_MAX];
    int staged_count;
};

static int stage(struct channel *channel, const uint8_t *data, size_t bytes)
{
    struct connection *connection = channel->owner;
    if (connection->staged_count > 0) {
        struct piece *last = &connection->staged[connection->staged_count - 1];
        if (last->chunk == channel->chunk && last->data + last->bytes == data) {
            last->bytes += bytes;
            return 0;
        }
    }
    if (connection->staged_count == STAGED_MAX)
        return -1;
    channel->chunk->references++;
    connection->staged[connection->staged_count++] = (struct piece){data, bytes, channel->chunk};
    return 0;
}

/* Hands the staged pieces on to the target, or drops them. */
static void unstage(struct connection *connection, struct channel *target)
{
    for (int i = 0; i < connection->staged_count; i++) {
        struct piece *piece = &connection->staged[i];
        if (target)
            channel_push_span(target, piece->data, piece->bytes, piece->chunk);
        chunk_release(&connection->relay->pool, piece->chunk);
    }
    connection->staged_count = 0;
}

static void free_connection(struct connection *connection)
{
    unstage(connection, NULL);
    free(connection);
}

/* ---- clients ---- */

static bool client_ready(struct channel *channel)
{
    struct relay *relay = ((struct connection *)channel->owner)->relay;
    bool ready = relay->free_slot >= 0 && channel_out_room(channel) >= SLOTS * 2;
    for (unsigned i = 0; ready && i < relay->server_count; i++)
        ready = channel_out_room(relay->servers[i]) >= OUT_ROOM_MIN;
    relay->any_paused |= !ready;
    return ready;
}

static void release_slot(struct relay *relay, int number)
{
    struct slot *slot = &relay->slots[number];
    slot->client = NULL;
    slot->next_free = relay->free_slot;
    relay->free_slot = number;
}

static int client_head(struct channel *channel, const uint8_t *head)
{
    struct connection *connection = channel->owner;
    struct relay *relay = connection->relay;
    struct nbd_request request = get_request(head);
    connection->request = request;
    connection->target = NULL;
    connection->error = 0;
    if (request.magic != NBD_REQUEST_MAGIC || request.type == NBD_CMD_DISC)
        return -1;
    if (request.type == NBD_CMD_WRITE) {
        if (request.length > REQUEST_BYTES_MAX)
            return -1;
        channel->payload_left = request.length;
    }
    if (request.type == NBD_CMD_FLUSH)
        return 0;
    uint64_t stripe = request.offset / relay->stripe_bytes;
    if (request.type > NBD_CMD_WRITE || request.length == 0 || request.length > REQUEST_BYTES_MAX ||
        request.offset > relay->size_bytes || request.length > relay->size_bytes - request.offset ||
        (request.offset + request.length - 1) / relay->stripe_bytes != stripe) {
        connection->error = NBD_EINVAL;
        return 0;
    }
    connection->slot = relay->free_slot;
    struct slot *slot = &relay->slots[connection->slot];
    relay->free_slot = slot->next_free;
    slot->client = channel;
    slot->cookie = request.cookie;
    slot->length = request.type == NBD_CMD_READ ? request.length : 0;
    connection->target = relay->servers[stripe % relay->server_count];
    return 0;
}

static int client_done(struct channel *channel)
{
    struct connection *connection = channel->owner;
    const struct nbd_request *request = &connection->request;
    struct channel *target = connection->target;
    if (!target) {
        unstage(connection, NULL);
        put_reply(channel_push_head(channel), connection->error, request->cookie);
        loop_touch(channel->loop, channel);
        return 0;
    }
    uint8_t *head = channel_push_head(target);
    put_u32(head, NBD_REQUEST_MAGIC);
    put_u16(head + 4, 0);
    put_u16(head + 6, request->type);
    put_u64(head + 8, (uint64_t)connection->slot);
    put_u64(head + 16, request->offset);
    put_u32(head + 24, request->length);
    unstage(connection, target);
    loop_touch(channel->loop, target);
    return 0;
}

static void client_closed(struct channel *channel)
{
    struct connection *connection = channel->owner;
    struct relay *relay = connection->relay;
    if (channel->in_payload && connection->target)
        release_slot(relay, connection->slot); /* cut off in the middle of a WRITE: nobody will answer it */
    for (int i = 0; i < SLOTS; i++)
        if (relay->slots[i].client == channel)
            relay->slots[i].client = NULL;
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (relay->clients[i] == channel)
            relay->clients[i] = NULL;
    free_connection(connection);
}

static const struct channel_ops client_ops = {
    .head_bytes = NBD_REQUEST_BYTES,
    .out_head_bytes = NBD_REPLY_BYTES,
    .ready = client_ready,
    .head = client_head,
    .payload = stage,
    .done = client_done,
    .closed = client_closed,
};

/* ---- servers ---- */

static bool server_ready(struct channel *channel)
{
    (void)channel; /* clients have room for every answer before they may ask */
    return true;
}

static int server_head(struct channel *channel, const uint8_t *head)
{
    struct connection *connection = channel->owner;
    uint64_t cookie = get_u64(head + 8);
    if (get_u32(head) != NBD_REPLY_MAGIC || cookie >= SLOTS)
        return -1;
    connection->slot = (int)cookie;
    connection->error = get_u32(head + 4);
    channel->payload_left = connection->error ? 0 : connection->relay->slots[cookie].length;
    return 0;
}

static int server_done(struct channel *channel)
{
    struct connection *connection = channel->owner;
    struct relay *relay = connection->relay;
    struct slot *slot = &relay->slots[connection->slot];
    struct channel *client = slot->client;
    if (client) {
        put_reply(channel_push_head(client), connection->error, slot->cookie);
        loop_touch(channel->loop, client);
    }
    unstage(connection, client);
    release_slot(relay, connection->slot);
    if (relay->any_paused) {
        relay->any_paused = false; /* whoever still cannot go on sets it again */
        for (int i = 0; i < CLIENTS_MAX; i++)
            if (relay->clients[i])
                loop_unpause(channel->loop, relay->clients[i]);
    }
    return 0;
}

static void server_closed(struct channel *channel)
{
    (void)channel;
    fprintf(stderr, "relay: a memory server has closed its connection\n");
    exit(1);
}

static const struct channel_ops server_ops = {
    .head_bytes = NBD_REPLY_BYTES,
    .out_head_bytes = NBD_REQUEST_BYTES,
    .ready = server_ready,
    .head = server_head,
    .payload = stage,
    .done = server_done,
    .closed = server_closed,
};

/* ---- setting up ---- */

static struct channel *open_channel(struct relay *relay, struct loop *loop, int fd, const struct channel_ops *ops)
{
    struct connection *connection = calloc(1, sizeof *connection);
    struct channel *channel = connection ? channel_open(fd, ops, connection, &relay->pool) : NULL;
    if (!channel) {
        free(connection);
        close(fd);
        return NULL;
    }
    connection->relay = relay;
    if (loop_add(loop, channel)) {
        free(connection);
        channel_free(channel);
        return NULL;
    }
    return channel;
}

static void accepted(struct loop *loop, int fd)
{
    struct relay *relay = loop->program;
    int place = 0;
    while (place < CLIENTS_MAX && relay->clients[place])
        place++;
    if (place == CLIENTS_MAX || handshake_serve(fd, relay->size_bytes)) {
        close(fd);
        return;
    }
    relay->clients[place] = open_channel(relay, loop, fd, &client_ops);
}

static int connect_server(struct relay *relay, struct loop *loop, uint16_t port)
{
    uint64_t size_bytes;
    int fd = socket_connect_tcp(port);
    if (fd < 0 || handshake_connect(fd, &size_bytes))
        return -1;
    if (relay->server_count == 0 || size_bytes < relay->size_bytes)
        relay->size_bytes = size_bytes;
    struct channel *channel = open_channel(relay, loop, fd, &server_ops);
    if (!channel)
        return -1;
    relay->servers[relay->server_count++] = channel;
    return 0;
}

int main(int argc, char **argv)
{
    static struct relay relay;
    static struct loop loop;
    if (argc < 4 || argc > 3 + SERVERS_MAX) {
        fprintf(stderr, "usage: relay SOCKET STRIPE_BYTES PORT...\n");
        return 2;
    }
    relay.stripe_bytes = parse_number(argv[2], "STRIPE_BYTES");
    relay.free_slot = -1;
    for (int i = SLOTS; i-- > 0;) {
        relay.slots[i].next_free = relay.free_slot;
        relay.free_slot = i;
    }
    if (relay.stripe_bytes == 0 || chunk_pool_open(&relay.pool) || loop_open(&loop, &relay, accepted)) {
        perror("relay");
        return 1;
    }
    for (int i = 3; i < argc; i++) {
        if (connect_server(&relay, &loop, (uint16_t)parse_number(argv[i], "PORT"))) {
            fprintf(stderr, "relay: no memory server on port %s\n", argv[i]);
            return 1;
        }
    }
    int listen_fd = socket_listen_unix(argv[1]);
    if (listen_fd < 0 || loop_listen(&loop, listen_fd)) {
        perror(argv[1]);
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    loop_run(&loop);
    perror("relay");
    return 1;
}
