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

/* How long a page-in takes that waits for no other; 0: not known. */
static inline uint64_t pace_trip_ns(const struct pace *p)
{
    return p->trip_before_ns && (!p->trip_ns || p->trip_before_ns < p->trip_ns) ? p->trip_before_ns : p->trip_ns;
}

#endif
