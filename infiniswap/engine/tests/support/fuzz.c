#include "fuzz.h"

#include "echo.h"
#include "rig.h"

#include <sys/socket.h>
#include <unistd.h>

size_t fuzz_make_stream(struct chance *c, uint8_t *out, size_t room)
{
    static const uint32_t lengths[] = {0, 1, 511, 512, 4096, 65536, ECHO_BYTES, ISW_REQUEST_BYTES_MAX, UINT32_MAX};
    static const uint64_t offsets[] = {0, 1, 4096, ECHO_BYTES - 1, ECHO_BYTES, 1ull << 63, UINT64_MAX};
    size_t bytes = 2;
    out[0] = (uint8_t)chance_next(c);
    out[1] = (uint8_t)chance_next(c);
    for (uint64_t count = 1 + chance_below(c, 12); count && bytes + NBD_REQUEST_BYTES < room; count--) {
        uint16_t command = (uint16_t)(chance_in(c, 12) ? chance_next(c) : chance_below(c, 8));
        uint16_t flags = (uint16_t)(chance_in(c, 4) ? chance_next(c) & 0x1f : 0);
        uint32_t length = (uint32_t)(chance_in(c, 4) ? lengths[chance_below(c, 9)] : chance_below(c, 5000));
        uint64_t offset = chance_in(c, 4) ? offsets[chance_below(c, 7)] : chance_below(c, ECHO_BYTES);
        nbd_put_request(out + bytes, command, flags, chance_next(c), offset, length);
        if (chance_in(c, 30))
            out[bytes + chance_below(c, NBD_REQUEST_BYTES)] ^= (uint8_t)(1u << chance_below(c, 8));
        bytes += NBD_REQUEST_BYTES;
        size_t payload = command == NBD_CMD_WRITE && !chance_in(c, 20) ? length : 0;
        if (payload > room - bytes)
            payload = room - bytes;
        memset(out + bytes, (int)count, payload);
        bytes += payload;
    }
    return bytes;
}

void fuzz_connection(const uint8_t *data, size_t bytes)
{
    static struct echo echo;
    static uint8_t sink[1 << 16];
    int fds[2];
    if (bytes < 2)
        return;
    uint32_t flags = data[0] & (ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION | ISW_CONNECTION_READ_ONLY);
    if (flags & ISW_CONNECTION_ALLOCATION)
        flags |= ISW_CONNECTION_STRUCTURED;
    struct chance chance = {data[1]};
    size_t piece = (size_t)1 << (data[0] >> 4), early = data[1] & 1 ? bytes - 2 : 0;
    data += 2;
    bytes -= 2;
    if (early > 1000)
        early = 1000;
    if (bytes / piece > 4096)
        piece = bytes / 4096 + 1; /* each is a turn of several system calls */
    stream_pair(fds, false, data[-2] & 8);
    echo_open(&echo, fds[1], flags, data, early);
    if (data[-1] & 2)
        echo.chance = &chance;
    for (size_t at = early; at < bytes && !echo.connection.dead;) {
        size_t now = bytes - at < piece ? bytes - at : piece;
        ssize_t sent = send(fds[0], data + at, now, MSG_DONTWAIT | MSG_NOSIGNAL);
        at += sent > 0 ? (size_t)sent : 0;
        echo_turn(&echo);
        while (recv(fds[0], sink, sizeof sink, MSG_DONTWAIT) > 0)
            ;
        if (sent < 0 && echo.connection.finishing)
            break; /* it reads no more */
    }
    shutdown(fds[0], SHUT_WR);
    for (int i = 0; i < 10000 && !(echo.connection.finishing && !nbd_connection_has_output(&echo.connection)); i++) {
        echo_turn(&echo);
        while (recv(fds[0], sink, sizeof sink, MSG_DONTWAIT) > 0)
            ;
    }
    CHECK(echo.connection.finishing && !nbd_connection_has_output(&echo.connection)); /* it always comes to an end */
    close(fds[0]);
    echo_close(&echo);
}
