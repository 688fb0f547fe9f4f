/* Page I/O over TCP. */
#ifndef ISW_PEER_TCP_H
#define ISW_PEER_TCP_H

#include "transfer.h"
#include "transport.h"

extern const struct transport transport_tcp;

void peer_open_tcp(struct peer *peer, int read_fd, int write_fd);
void peer_tcp_receive(struct device *d, struct peer_link *link);

#endif
