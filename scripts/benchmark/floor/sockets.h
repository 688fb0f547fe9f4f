/* Sockets of the floor programs; each call returns a file descriptor or -1. */
#ifndef FLOOR_SOCKETS_H
#define FLOOR_SOCKETS_H

#include <stdint.h>

/* On 127.0.0.1; port 0: any free one, *port becomes it. */
int socket_listen_tcp(uint16_t *port);
int socket_connect_tcp(uint16_t port);
int socket_listen_unix(const char *path);
void socket_no_delay(int fd);

/* "1073741824" to a number; exits with a line on anything else. */
uint64_t parse_number(const char *text, const char *what);

#endif
