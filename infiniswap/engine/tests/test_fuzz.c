/* Proves: no stream of bytes from a client or a peer breaks, hangs or leaks anything; ISW_TEST_SCALE makes it longer. */
#include "fuzz.h"
#include "rig.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE = ISW_PAGE_BYTES, SIZE = 4 << 20, ROOM = 3 << 18 };

TEST(client_streams)
{
    static uint8_t stream[ROOM];
    for (uint64_t i = 0; i < scaled(1600); i++) {
        struct chance chance = chance_start(i);
        fuzz_connection(stream, fuzz_make_stream(&chance, stream, i % 16 ? 6000 : ROOM));
    }
}

TEST(client_noise)
{
    static uint8_t stream[4096];
    for (uint64_t i = 0; i < scaled(1200); i++) {
        struct chance chance = chance_start(i);
        size_t bytes = chance_below(&chance, sizeof stream);
        for (size_t k = 0; k < bytes; k++)
            stream[k] = (uint8_t)chance_next(&chance);
        nbd_put_request(stream + 2, (uint16_t)chance_below(&chance, 9), 0, 0, 0, 100);
        fuzz_connection(stream, bytes < 32 ? 32 : bytes);
    }
}

/* A whole device with a hostile client beside a good one. */
TEST(hostile_client_beside_a_good_one)
{
    static uint8_t stream[ROOM], page[PAGE], in[PAGE];
    struct rig rig;
    struct client good;
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &good, true);
    memset(page, 0x3c, PAGE);
    for (uint64_t i = 0; i < scaled(400); i++) {
        struct chance chance = chance_start(i);
        size_t bytes = fuzz_make_stream(&chance, stream, ROOM), at = 2;
        int fds[2];
        stream_pair(fds, false, false);
        CHECK_EQUAL(isw_device_connection_add(rig.device, fds[1], stream[0] & 7, stream + 2, 0), 0);
        while (at < bytes) {
            ssize_t sent = send(fds[0], stream + at, bytes - at, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent < 0 && errno == EPIPE)
                break;
            at += sent > 0 ? (size_t)sent : 0;
            static uint8_t sink[1 << 16];
            if (i % 4) /* one in four never reads */
                while (recv(fds[0], sink, sizeof sink, MSG_DONTWAIT) > 0)
                    ;
            else if (sent < 0)
                break;
        }
        CHECK_EQUAL(client_call(&good, NBD_CMD_WRITE, 0, SIZE - PAGE, PAGE, page, NULL), 0);
        CHECK_EQUAL(client_call(&good, NBD_CMD_READ, 0, SIZE - PAGE, PAGE, NULL, in), 0);
        CHECK(!memcmp(page, in, PAGE));
        close(fds[0]);
        WAIT_UNTIL(rig_counter(&rig, ISW_DEVICE_connections) == 1);
    }
    CHECK(rig_counter(&rig, ISW_DEVICE_protocol_errors) > 0);
    client_close(&good);
    rig_stop(&rig);
    rig_end(&rig);
}

/* Reads what the device asks, then says something that is nearly an answer to it. */
static size_t make_answer(struct chance *c, int fd, uint8_t *out)
{
    uint8_t asked[NBD_REQUEST_BYTES] = {0};
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, 1) == 1)
        (void)!recv(fd, asked, sizeof asked, MSG_DONTWAIT);
    size_t bytes = NBD_SIMPLE_REPLY_BYTES + chance_below(c, 2 * PAGE);
    nbd_put32(out, chance_in(c, 8) ? NBD_STRUCTURED_REPLY_MAGIC : NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(out + 4, chance_in(c, 3) ? (uint32_t)chance_next(c) : 0);
    memcpy(out + 8, asked + 8, 8);
    for (size_t i = NBD_SIMPLE_REPLY_BYTES; i < bytes; i++)
        out[i] = (uint8_t)chance_next(c);
    if (chance_in(c, 3))
        out[chance_below(c, NBD_SIMPLE_REPLY_BYTES)] ^= (uint8_t)(1u << chance_below(c, 8));
    return bytes;
}

TEST(peer_answers)
{
    static uint8_t answer[4 * PAGE], page[PAGE], in[PAGE];
    struct rig rig;
    struct client client;
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &client, true);
    for (uint64_t i = 0; i < scaled(600); i++) {
        struct chance chance = chance_start(i);
        int read_fds[2], write_fds[2];
        stream_pair(read_fds, false, false);
        stream_pair(write_fds, false, false);
        CHECK_EQUAL(isw_device_peer_attach(rig.device, 0, read_fds[0], write_fds[0]), 0);
        CHECK_EQUAL(isw_device_slab_map(rig.device, 1, 0, 0), 0);
        memset(page, (int)i, PAGE);
        CHECK(client_send(&client, NBD_CMD_WRITE, 0, (1 << 20) + i % 16 * PAGE, PAGE, page, NULL));
        CHECK(client_send(&client, NBD_CMD_READ, 0, (1 << 20) + (i + 7) % 16 * PAGE, PAGE, NULL, in));
        client_pump(&client);
        for (uint64_t turns = 1 + chance_below(&chance, 4); turns; turns--) {
            int fd = chance_in(&chance, 2) ? read_fds[1] : write_fds[1];
            (void)!send(fd, answer, make_answer(&chance, fd, answer), MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        close(read_fds[1]);
        close(write_fds[1]);
        client_settle(&client); /* both are answered, without an error: from the backup */
        CHECK_EQUAL(rig_await(&rig, ISW_EVENT_PEER_LOST).peer, 0);
        CHECK_EQUAL(client_call(&client, NBD_CMD_READ, 0, (1 << 20) + i % 16 * PAGE, PAGE, NULL, in), 0);
        CHECK(!memcmp(in, page, PAGE));
    }
    client_close(&client);
    rig_stop(&rig);
    rig_end(&rig);
}
