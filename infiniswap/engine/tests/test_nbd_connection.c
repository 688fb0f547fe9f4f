/* Proves: the transmission phase keeps in step whatever arrives in whatever pieces, answers every request that the protocol
 * lets be answered with the error it names, and gives every buffer back. */
#include "echo.h"
#include "nbd_client.h"
#include "rig.h"

#include <sys/socket.h>
#include <unistd.h>

enum { BOTH = ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION };

static struct echo echo;

struct talk {
    struct client client;
    uint32_t answers, error;
};

static void note(void *owner, struct client *client, struct call *call)
{
    struct talk *talk = owner;
    (void)client;
    talk->answers++;
    talk->error = call->error;
}

static void open_talk(struct talk *talk, uint32_t flags, bool small)
{
    int fds[2];
    stream_pair(fds, false, small);
    echo_open(&echo, fds[1], flags, NULL, 0);
    client_open(&talk->client, fds[0], flags & ISW_CONNECTION_STRUCTURED);
    talk->answers = 0;
}

static void close_talk(struct talk *talk)
{
    client_close(&talk->client);
    echo_close(&echo);
}

static void turn(struct talk *talk)
{
    client_pump(&talk->client);
    echo_turn(&echo);
    client_pump(&talk->client);
}

/* Sends one request and returns the error it is answered with. */
static uint32_t ask(struct talk *talk, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length)
{
    static uint8_t data[ISW_REQUEST_BYTES_MAX + (1 << 20)];
    struct call *call = client_send(&talk->client, command, flags, offset, length, data, data);
    uint32_t before = talk->answers;
    call->done = note;
    call->owner = talk;
    for (int i = 0; talk->answers == before; i++) {
        CHECK(i < 2000);
        turn(talk);
    }
    return talk->error;
}

/* Everything that can be wrong with a request by itself.  After each the connection is in step: the next is answered. */
TEST(every_wrong_request)
{
    enum { F = NBD_CMD_FLAG_FUA, D = NBD_CMD_FLAG_DF, N = NBD_CMD_FLAG_NO_HOLE, R = NBD_CMD_FLAG_REQ_ONE, Z = NBD_CMD_FLAG_FAST_ZERO };
    enum { RO = ISW_CONNECTION_READ_ONLY };
    static const struct {
        uint32_t connection;
        uint16_t command, flags;
        uint64_t offset;
        uint32_t length, simple, structured;
    } rows[] = {
        {0, NBD_CMD_READ, 0, 0, 4096, 0, 0},
        {0, NBD_CMD_READ, 0, ECHO_BYTES - 1, 1, 0, 0},
        {0, NBD_CMD_READ, F, 0, 512, 0, 0}, /* means nothing, hurts nothing */
        {0, NBD_CMD_READ, D, 0, 512, NBD_EINVAL, 0},
        {0, NBD_CMD_READ, N, 0, 512, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_READ, 1 << 15, 0, 512, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, ECHO_BYTES, 0, 0, 0},
        {0, NBD_CMD_READ, 0, ECHO_BYTES, 1, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, ECHO_BYTES - 1, 2, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, UINT64_MAX, 1, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_READ, 0, UINT64_MAX - 4095, 8192, NBD_EINVAL, NBD_EINVAL}, /* wraps */
        {0, NBD_CMD_WRITE, 0, 0, 0, 0, 0},
        {0, NBD_CMD_WRITE, F, 5, 77777, 0, 0},
        {0, NBD_CMD_WRITE, D, 0, 512, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_WRITE, 0, ECHO_BYTES, 4096, NBD_ENOSPC, NBD_ENOSPC},
        {0, NBD_CMD_WRITE, 0, UINT64_MAX - 4095, 8192, NBD_ENOSPC, NBD_ENOSPC},
        {RO, NBD_CMD_WRITE, 0, 0, 4096, NBD_EPERM, NBD_EPERM},
        {RO, NBD_CMD_TRIM, 0, 0, 4096, NBD_EPERM, NBD_EPERM},
        {RO, NBD_CMD_WRITE_ZEROES, 0, 0, 4096, NBD_EPERM, NBD_EPERM},
        {RO, NBD_CMD_READ, 0, 0, 4096, 0, 0},
        {RO, NBD_CMD_FLUSH, 0, 0, 0, 0, 0},
        {0, NBD_CMD_FLUSH, 0, 0, 0, 0, 0},
        {0, NBD_CMD_FLUSH, F, 0, 0, 0, 0},
        {0, NBD_CMD_FLUSH, 0, 1, 0, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_TRIM, 0, 0, ECHO_BYTES, 0, 0},
        {0, NBD_CMD_TRIM, N, 0, 4096, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_TRIM, 0, 1, ECHO_BYTES, NBD_ENOSPC, NBD_ENOSPC},
        {0, NBD_CMD_WRITE_ZEROES, F | N | Z, 1, 4097, 0, 0},
        {0, NBD_CMD_WRITE_ZEROES, 0, 0, UINT32_MAX, NBD_ENOSPC, NBD_ENOSPC},
        {0, NBD_CMD_CACHE, 0, 0, ECHO_BYTES, 0, 0},
        {0, NBD_CMD_CACHE, 0, 1, ECHO_BYTES, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_BLOCK_STATUS, R, 0, 4096, NBD_EINVAL, 0},
        {0, NBD_CMD_BLOCK_STATUS, 0, 0, 0, NBD_EINVAL, NBD_EINVAL},
        {0, NBD_CMD_BLOCK_STATUS, 0, 0, UINT32_MAX, NBD_EINVAL, NBD_EINVAL},
        {0, 8, 0, 0, 0, NBD_EINVAL, NBD_EINVAL},
        {0, 0xffff, 0, 0, UINT32_MAX, NBD_EINVAL, NBD_EINVAL},
    };
    for (int structured = 0; structured < 2; structured++) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            struct talk talk;
            open_talk(&talk, rows[i].connection | (structured ? (uint32_t)BOTH : 0), false);
            uint32_t error = ask(&talk, rows[i].command, rows[i].flags, rows[i].offset, rows[i].length);
            uint32_t expected = structured ? rows[i].structured : rows[i].simple;
            if (error != expected)
                FAIL("row %zu (%s): error %u, not %u", i, structured ? "structured" : "simple", error, expected);
            CHECK_EQUAL(ask(&talk, NBD_CMD_READ, 0, 0, 512), 0);
            CHECK(!echo.connection.finishing);
            close_talk(&talk);
        }
    }
}

/* Longer than the limit: the payload is drained, the answer an error, the next request is served. */
TEST(too_long)
{
    struct talk talk;
    int fds[2];
    stream_pair(fds, false, false);
    echo_open(&echo, fds[1], 0, NULL, 0);
    echo.connection.size_bytes = 1ull << 40;
    client_open(&talk.client, fds[0], false);
    talk.answers = 0;
    CHECK_EQUAL(ask(&talk, NBD_CMD_WRITE, 0, 0, ISW_REQUEST_BYTES_MAX + 1), NBD_EINVAL);
    CHECK_EQUAL(ask(&talk, NBD_CMD_READ, 0, 0, ISW_REQUEST_BYTES_MAX + 1), NBD_EINVAL);
    echo.connection.size_bytes = ECHO_BYTES;
    CHECK_EQUAL(ask(&talk, NBD_CMD_READ, 0, 0, 512), 0);
    CHECK_EQUAL(echo.payload_bytes, 0);
    close_talk(&talk);
}

static size_t put(uint8_t *at, uint16_t command, uint64_t cookie, uint64_t offset, uint32_t length)
{
    nbd_put_request(at, command, 0, cookie, offset, length);
    if (command == NBD_CMD_WRITE)
        memset(at + NBD_REQUEST_BYTES, (int)cookie, length);
    return NBD_REQUEST_BYTES + (command == NBD_CMD_WRITE ? length : 0);
}

/* Cookies are the client's own business: the same one twice is answered twice. */
TEST(one_byte_at_a_time)
{
    uint8_t stream[8192], replies[8192];
    size_t bytes = 0, got = 0;
    int fds[2];
    bytes += put(stream + bytes, NBD_CMD_WRITE, 0x41, 100, 3000);
    bytes += put(stream + bytes, NBD_CMD_READ, 0x41, 100, 3000);
    bytes += put(stream + bytes, NBD_CMD_READ, 0x41, ECHO_BYTES, 1);
    bytes += put(stream + bytes, NBD_CMD_DISC, 0, 0, 0);
    stream_pair(fds, false, true);
    echo_open(&echo, fds[1], 0, NULL, 0);
    for (size_t i = 0; i < bytes; i++) {
        CHECK(!echo.connection.finishing);
        CHECK(send(fds[0], stream + i, 1, 0) == 1);
        echo_turn(&echo);
        ssize_t now = recv(fds[0], replies + got, 1, MSG_DONTWAIT); /* and read as slowly */
        got += now > 0 ? (size_t)now : 0;
    }
    CHECK(echo.connection.finishing);
    for (int i = 0; i < 100; i++) {
        echo_turn(&echo);
        ssize_t now = recv(fds[0], replies + got, sizeof replies - got, MSG_DONTWAIT);
        got += now > 0 ? (size_t)now : 0;
    }
    CHECK_EQUAL(got, 3 * NBD_SIMPLE_REPLY_BYTES + 3000);
    CHECK(replies[2 * NBD_SIMPLE_REPLY_BYTES] == 0x41 && replies[2 * NBD_SIMPLE_REPLY_BYTES + 2999] == 0x41);
    CHECK_EQUAL(nbd_get32(replies + 2 * NBD_SIMPLE_REPLY_BYTES + 3000 + 4), NBD_EINVAL);
    CHECK_EQUAL(echo.requests, 2);
    close(fds[0]);
    echo_close(&echo);
}

/* What came with the end of the negotiation is the beginning of the stream. */
TEST(early_bytes)
{
    static uint8_t early[ISW_EARLY_BYTES_MAX];
    struct talk talk;
    int fds[2];
    size_t bytes = put(early, NBD_CMD_WRITE, 5, 0, 60000);
    bytes += put(early + bytes, NBD_CMD_TRIM, 6, 4096, 4096);
    stream_pair(fds, false, false);
    echo_open(&echo, fds[1], 0, early, bytes - 9); /* the last nine bytes come by themselves */
    echo_turn(&echo);
    CHECK_EQUAL(echo.requests, 1);
    CHECK(send(fds[0], early + bytes - 9, 9, 0) == 9);
    echo_turn(&echo);
    CHECK_EQUAL(echo.requests, 2);
    CHECK(echo.disk[4095] == 5 && echo.disk[4096] == 0 && echo.disk[59999] == 5);
    client_open(&talk.client, fds[0], false);
    uint8_t replies[2 * NBD_SIMPLE_REPLY_BYTES];
    CHECK(recv(fds[0], replies, sizeof replies, MSG_WAITALL) == sizeof replies);
    close_talk(&talk);
}

/* A stream that is no stream of requests ends the connection; what was asked before is answered. */
TEST(wrong_magic_ends_it)
{
    uint8_t stream[256], replies[256];
    int fds[2];
    size_t bytes = put(stream, NBD_CMD_READ, 1, 0, 100);
    memset(stream + bytes, 0x25, 64);
    stream_pair(fds, false, false);
    echo_open(&echo, fds[1], 0, NULL, 0);
    CHECK(send(fds[0], stream, bytes + 64, 0) > 0);
    echo_turn(&echo);
    CHECK(echo.connection.finishing && echo.connection.errors == 1 && echo.requests == 1);
    CHECK_EQUAL(recv(fds[0], replies, sizeof replies, 0), NBD_SIMPLE_REPLY_BYTES + 100);
    echo_turn(&echo);
    CHECK_EQUAL(echo.requests, 1);
    close(fds[0]);
    echo_close(&echo);
}

/* The client leaves at every byte of a stream: nothing is left over, nothing half-done is answered. */
TEST(end_at_every_byte)
{
    uint8_t stream[512];
    size_t bytes = put(stream, NBD_CMD_READ, 1, 0, 64);
    bytes += put(stream + bytes, NBD_CMD_WRITE, 2, 0, 100);
    bytes += put(stream + bytes, NBD_CMD_WRITE, 3, ECHO_BYTES, 100); /* refused: drained */
    bytes += put(stream + bytes, NBD_CMD_FLUSH, 4, 0, 0);
    for (size_t end = 0; end <= bytes; end++) {
        int fds[2];
        stream_pair(fds, false, false);
        echo_open(&echo, fds[1], BOTH, NULL, 0);
        CHECK(send(fds[0], stream, end, 0) == (ssize_t)end);
        if (end % 2)
            shutdown(fds[0], SHUT_WR);
        else
            close(fds[0]);
        for (int i = 0; i < 4; i++)
            echo_turn(&echo);
        CHECK(echo.connection.finishing); /* ended, or dead where there was something to answer */
        CHECK_EQUAL(echo.requests, (end >= 28) + (end >= 56) + (end == bytes));
        if (end % 2)
            close(fds[0]);
        echo_close(&echo);
    }
}

/* Random requests of every kind from a client that reads little, over buffers that take little, to a handler that blocks. */
TEST(random_load_in_small_pieces)
{
    static uint8_t expected[ECHO_BYTES], data[8][1 << 17];
    struct chance chance = chance_start(3), blocking = chance_start(4);
    for (int structured = 0; structured < 2; structured++) {
        struct talk talk;
        open_talk(&talk, structured ? BOTH : 0, true);
        memset(expected, 0, sizeof expected);
        echo.chance = &blocking;
        talk.client.receive_most = 700;
        for (uint64_t i = 0; i < scaled(1500);) {
            uint32_t length = (uint32_t)chance_below(&chance, chance_in(&chance, 20) ? 1 << 17 : 3000), slot = (uint32_t)(i % 8);
            uint64_t offset = chance_below(&chance, ECHO_BYTES - length);
            if (talk.client.calls_out < 8 && chance_in(&chance, 3)) {
                /* One after the other on one connection, so that what they do is known; answers come in order too. */
                bool write = chance_in(&chance, 2);
                for (uint32_t k = 0; write && k < length; k++)
                    data[slot][k] = (uint8_t)chance_next(&chance);
                if (write)
                    memcpy(expected + offset, data[slot], length);
                CHECK(client_send(&talk.client, write ? NBD_CMD_WRITE : NBD_CMD_READ, 0, offset, length, data[slot], data[slot]));
                i++;
            }
            turn(&talk);
        }
        for (int i = 0; talk.client.calls_out; i++) {
            CHECK(i < 1000000);
            turn(&talk);
        }
        CHECK(!memcmp(expected, echo.disk, ECHO_BYTES));
        CHECK(echo.blocked > 0);
        close_talk(&talk);
    }
}

/* A client that asks and never reads: what waits for it stays within bounds. */
TEST(client_that_never_reads)
{
    uint8_t request[NBD_REQUEST_BYTES];
    int fds[2];
    stream_pair(fds, false, true);
    echo_open(&echo, fds[1], 0, NULL, 0);
    nbd_put_request(request, NBD_CMD_READ, 0, 1, 0, 4096);
    for (int i = 0; i < 20000; i++) {
        if (send(fds[0], request, sizeof request, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && i % 16)
            continue;
        echo_turn(&echo);
    }
    CHECK(echo.requests <= NBD_TX_SEGMENTS);
    CHECK(echo.connection.tx_stalled_ns);
    close(fds[0]);
    echo_turn(&echo);
    echo_turn(&echo);
    echo_close(&echo);
}
