/* Peers whose connections broke, while they may still come back with what they held. */
#ifndef ISW_PEER_HELD_H
#define ISW_PEER_HELD_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct op;
struct peer;

struct peer_hold {
    uint64_t until_ns;  /* 0: it is not held */
    int error;          /* what broke it */
    uint64_t waited_ns; /* since when the first of waiters waits */
    struct op *waiters, **waiters_end; /* for pages that it alone has */
};

bool peer_may_be_held(const struct device *d, const struct peer *peer, int error);
void peer_hold(struct device *d, struct peer *peer, int error);
int peer_resume(struct device *d, struct peer *peer); /* 0 or -errno */
void peer_hold_ended(struct device *d, struct peer *peer); /* well or badly */
void op_wait_for_held(struct device *d, struct op *op, uint32_t peer);
void peers_check_holds(struct device *d, bool anew); /* anew: this process stood still */

#endif
