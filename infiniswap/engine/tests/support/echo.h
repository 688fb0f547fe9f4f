/* A handler for nbd_connection that is a plain disk in memory, answers late if asked to, and blocks at random. */
#ifndef ECHO_H
#define ECHO_H

#include "check.h"

#include "infiniswap_engine.h"
#include "nbd_connection.h"

enum { ECHO_BYTES = 1 << 20 };

struct echo {
    struct nbd_connection connection;
    void *memory; /* of the connection */
    uint8_t disk[ECHO_BYTES];
    struct chance *chance; /* not NULL: blocks now and then */
    uint64_t requests, payload_bytes, blocked, tags_out;
    uint64_t write_at, write_cookie;
    uint32_t write_left;
};

void echo_open(struct echo *echo, int fd, uint32_t flags, const void *early, size_t early_bytes);
/* One turn as the engine's loops take it. */
void echo_turn(struct echo *echo);
/* Closes; every tag must have come back. */
void echo_close(struct echo *echo);

#endif
