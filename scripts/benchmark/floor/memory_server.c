/* A bare NBD server over one region of memory, on TCP loopback, one thread, no policy: the floor's donor.
 *
 *     memory_server SIZE_BYTES [PORT]
 *
 * Prints "ready PORT" when it serves. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/mman.h>

#include "handshake.h"
#include "loop.h"
#include "sockets.h"
#include "wire.h"

enum { OUT_ROOM_MIN = 2 }; /* pieces that one answer takes */

struct server {
    uint8_t *memory;
    uint64_t size_bytes;
    struct chunk_pool pool;
};

struct connection {
    struct server *server;
    struct nbd_request request;
};

static bool server_ready(struct channel *channel)
{
    return channel_out_room(channel) >= OUT_ROOM_MIN;
}

static int server_head(struct channel *channel, const uint8_t *head)
{
    struct connection *connection = channel->owner;
    struct server *server = connection->server;
    struct nbd_request request = get_request(head);
    connection->request = request;
    if (request.magic != NBD_REQUEST_MAGIC || request.type == NBD_CMD_DISC)
        return -1;
    bool moves_data = request.type == NBD_CMD_READ || request.type == NBD_CMD_WRITE;
    if (moves_data && (request.length > REQUEST_BYTES_MAX || request.offset > server->size_bytes ||
                       request.length > server->size_bytes - request.offset))
        return -1; /* a fit partner never asks for this */
    if (request.type == NBD_CMD_WRITE) {
        channel->payload_left = request.length;
        channel->direct = server->memory + request.offset;
    }
    return 0;
}

static int server_payload(struct channel *channel, const uint8_t *data, size_t bytes)
{
    (void)channel, (void)data, (void)bytes;
    return -1; /* all payloads are direct */
}

static int server_done(struct channel *channel)
{
    const struct connection *connection = channel->owner;
    const struct nbd_request *request = &connection->request;
    bool known = request->type == NBD_CMD_READ || request->type == NBD_CMD_WRITE || request->type == NBD_CMD_FLUSH;
    put_reply(channel_push_head(channel), known ? 0 : NBD_EINVAL, request->cookie);
    if (request->type == NBD_CMD_READ)
        channel_push_span(channel, connection->server->memory + request->offset, request->length, NULL);
    loop_touch(channel->loop, channel);
    return 0;
}

static void server_closed(struct channel *channel)
{
    free(channel->owner);
}

static const struct channel_ops server_ops = {
    .head_bytes = NBD_REQUEST_BYTES,
    .out_head_bytes = NBD_REPLY_BYTES,
    .ready = server_ready,
    .head = server_head,
    .payload = server_payload,
    .done = server_done,
    .closed = server_closed,
};

static void accepted(struct loop *loop, int fd)
{
    struct server *server = loop->program;
    socket_no_delay(fd);
    struct connection *connection = NULL;
    struct channel *channel = NULL;
    if (handshake_serve(fd, server->size_bytes) == 0)
        connection = calloc(1, sizeof *connection);
    if (connection) {
        connection->server = server;
        channel = channel_open(fd, &server_ops, connection, &server->pool);
    }
    if (!channel) {
        free(connection);
        close(fd);
    } else if (loop_add(loop, channel)) {
        free(connection);
        channel_free(channel);
    }
}

int main(int argc, char **argv)
{
    static struct server server;
    static struct loop loop;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: memory_server SIZE_BYTES [PORT]\n");
        return 2;
    }
    server.size_bytes = parse_number(argv[1], "SIZE_BYTES");
    uint16_t port = argc == 3 ? (uint16_t)parse_number(argv[2], "PORT") : 0;
    server.memory = mmap(NULL, server.size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
    int listen_fd = socket_listen_tcp(&port);
    if (server.memory == MAP_FAILED || listen_fd < 0 || chunk_pool_open(&server.pool) ||
        loop_open(&loop, &server, accepted) || loop_listen(&loop, listen_fd)) {
        perror("memory_server");
        return 1;
    }
    printf("ready %u\n", (unsigned)port);
    fflush(stdout);
    loop_run(&loop);
    perror("memory_server");
    return 1;
}
