/* Peers that answer, and too late. */
#ifndef ISW_PEER_SLOW_H
#define ISW_PEER_SLOW_H

#include "transfer.h"

struct hedging {
    uint64_t due_ns; /* when a page-in will have taken too long, at the earliest */
    uint32_t credit; /* each answer of a peer gives some, each hedge takes HEDGE_COST */
};

void peers_hedge(struct device *d);
void peer_note_pace(struct device *d, struct peer_link *link, const struct transfer *t); /* it has just been answered */
void peer_check_pace(struct device *d, struct peer *peer);

#endif
