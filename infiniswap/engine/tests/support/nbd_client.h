/* A plain NBD client in its transmission phase: many requests at once, nothing blocks but client_call.
 * Every reply is checked: it must answer a request that is out, once, and with as many bytes as were asked for. */
#ifndef NBD_CLIENT_H
#define NBD_CLIENT_H

#include "check.h"

#include "nbd_wire.h"

enum { CLIENT_CALLS = 600 };

struct client;

struct call {
    bool used;
    uint16_t command, flags;
    uint64_t cookie, offset;
    uint32_t length;
    uint8_t *data;    /* READ: where it goes, length bytes; BLOCK_STATUS: extents, 8 bytes each as on the wire */
    uint32_t filled;  /* READ: bytes received; BLOCK_STATUS: bytes of extents */
    uint32_t error;   /* as on the wire */
    void (*done)(void *owner, struct client *client, struct call *call); /* the call's slot is free afterwards */
    void *owner;
};

struct client {
    int fd; /* -1: closed */
    bool structured;
    bool ended; /* the server closed the connection, or broke the protocol where that is allowed */
    uint8_t *tx, *rx;
    size_t tx_start, tx_end, tx_room, rx_end, rx_room;
    struct call calls[CLIENT_CALLS];
    uint32_t calls_out, generation;
    uint32_t receive_most; /* bytes of one recv; 0: as many as there are */
};

/* fd is the client's from here on. */
void client_open(struct client *client, int fd, bool structured);
void client_close(struct client *client);
/* Queues a request; payload is copied.  NULL: CLIENT_CALLS are out. */
struct call *client_send(struct client *client, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length,
                         const void *payload, void *read_into);
/* Sends what it can, receives what is there, calls done() for what is answered. */
void client_pump(struct client *client);
/* Waits up to timeout_ms until one of the clients can go on, then pumps all. */
void clients_pump(struct client *clients, uint32_t count, int timeout_ms);
/* One request, waited for.  Returns the error as on the wire; fails the test when the connection ends or nothing comes. */
uint32_t client_call(struct client *client, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length,
                     const void *payload, void *read_into);
/* Waits for the answers to all that is out. */
void client_settle(struct client *client);

#endif
