/* Negotiation, blocking and with a deadline: it is over before anything is measured. */
#ifndef FLOOR_HANDSHAKE_H
#define FLOOR_HANDSHAKE_H

#include <stdint.h>

enum { HANDSHAKE_TIMEOUT_S = 5, HANDSHAKE_OPTIONS_MAX = 32, HANDSHAKE_OPTION_BYTES_MAX = 4096 };

/* Largest READ or WRITE that the floor programs take. */
enum { REQUEST_BYTES_MAX = 2 << 20 };

/* Both return 0, or -1 if the other side is no fit partner; the socket stays open. */
int handshake_serve(int fd, uint64_t size_bytes);
int handshake_connect(int fd, uint64_t *size_bytes);

#endif
