/* Page I/O over TCP. */
#ifndef ISW_PEER_TCP_H
#define ISW_PEER_TCP_H

#include "transfer.h"

void peer_open_tcp(struct peer *peer, int read_fd, int write_fd);
void peer_event(struct device *d, struct peer_link *link, uint32_t events);
void peer_receive(struct device *d, struct peer_link *link);

#endif
