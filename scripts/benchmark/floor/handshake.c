#include "handshake.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "wire.h"

static void set_timeout(int fd, int timeout_s)
{
    struct timeval timeout = {.tv_sec = timeout_s};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

static int receive_all(int fd, uint8_t *to, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = recv(fd, to, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        to += got;
        bytes -= (size_t)got;
    }
    return 0;
}

static int send_all(int fd, const uint8_t *from, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(fd, from, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        from += sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

static int option_reply(int fd, uint32_t option, uint32_t type, const uint8_t *payload, uint32_t bytes)
{
    uint8_t message[20 + 16];
    put_u64(message, NBD_OPTION_REPLY_MAGIC);
    put_u32(message + 8, option);
    put_u32(message + 12, type);
    put_u32(message + 16, bytes);
    if (bytes > 0)
        memcpy(message + 20, payload, bytes);
    return send_all(fd, message, 20 + bytes);
}

enum { TRANSMISSION_FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN };

static int reply_export(int fd, uint32_t option, uint64_t size_bytes)
{
    uint8_t export_info[12];
    put_u16(export_info, NBD_INFO_EXPORT);
    put_u64(export_info + 2, size_bytes);
    put_u16(export_info + 10, TRANSMISSION_FLAGS);
    uint8_t block_info[14];
    put_u16(block_info, NBD_INFO_BLOCK_SIZE);
    put_u32(block_info + 2, 1);
    put_u32(block_info + 6, 4096);
    put_u32(block_info + 10, REQUEST_BYTES_MAX);
    if (option_reply(fd, option, NBD_REP_INFO, export_info, sizeof export_info) ||
        option_reply(fd, option, NBD_REP_INFO, block_info, sizeof block_info))
        return -1;
    return option_reply(fd, option, NBD_REP_ACK, NULL, 0);
}

static int reply_export_name(int fd, uint64_t size_bytes, bool no_zeroes)
{
    uint8_t answer[10 + 124] = {0};
    put_u64(answer, size_bytes);
    put_u16(answer + 8, TRANSMISSION_FLAGS);
    return send_all(fd, answer, no_zeroes ? 10 : sizeof answer);
}

int handshake_serve(int fd, uint64_t size_bytes)
{
    uint8_t greeting[NBD_GREETING_BYTES];
    uint8_t client_flags[4];
    set_timeout(fd, HANDSHAKE_TIMEOUT_S);
    put_u64(greeting, NBD_MAGIC);
    put_u64(greeting + 8, NBD_OPTION_MAGIC);
    put_u16(greeting + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    if (send_all(fd, greeting, sizeof greeting) || receive_all(fd, client_flags, sizeof client_flags))
        return -1;
    bool no_zeroes = get_u32(client_flags) & NBD_NO_ZEROES;
    for (int count = 0; count < HANDSHAKE_OPTIONS_MAX; count++) {
        uint8_t head[NBD_OPTION_BYTES];
        uint8_t payload[HANDSHAKE_OPTION_BYTES_MAX];
        if (receive_all(fd, head, sizeof head) || get_u64(head) != NBD_OPTION_MAGIC)
            return -1;
        uint32_t option = get_u32(head + 8);
        uint32_t bytes = get_u32(head + 12);
        if (bytes > sizeof payload || receive_all(fd, payload, bytes))
            return -1;
        if (option == NBD_OPT_EXPORT_NAME)
            return reply_export_name(fd, size_bytes, no_zeroes);
        if (option == NBD_OPT_GO)
            return reply_export(fd, option, size_bytes);
        if (option == NBD_OPT_INFO) {
            if (reply_export(fd, option, size_bytes))
                return -1;
        } else if (option == NBD_OPT_ABORT) {
            (void)option_reply(fd, option, NBD_REP_ACK, NULL, 0);
            return -1;
        } else if (option_reply(fd, option, NBD_REP_ERR_UNSUP, NULL, 0)) {
            return -1;
        }
    }
    return -1;
}

int handshake_connect(int fd, uint64_t *size_bytes)
{
    uint8_t greeting[NBD_GREETING_BYTES];
    set_timeout(fd, HANDSHAKE_TIMEOUT_S);
    if (receive_all(fd, greeting, sizeof greeting) || get_u64(greeting) != NBD_MAGIC ||
        get_u64(greeting + 8) != NBD_OPTION_MAGIC)
        return -1;
    uint8_t request[4 + NBD_OPTION_BYTES];
    put_u32(request, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    put_u64(request + 4, NBD_OPTION_MAGIC);
    put_u32(request + 12, NBD_OPT_EXPORT_NAME);
    put_u32(request + 16, 0);
    uint8_t answer[10];
    if (send_all(fd, request, sizeof request) || receive_all(fd, answer, sizeof answer))
        return -1;
    *size_bytes = get_u64(answer);
    return 0;
}
