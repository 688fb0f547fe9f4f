/* News for Python: a bounded ring with an eventfd.  At the bound news are dropped and the reader is told so. */
#ifndef ISW_EVENTS_H
#define ISW_EVENTS_H

#include "infiniswap_engine.h"

#include <pthread.h>
#include <stdbool.h>

struct event_ring {
    pthread_mutex_t lock; /* guards the ring: news are rare */
    struct isw_event ring[ISW_EVENTS];
    uint32_t head, tail;
    bool overflowed;
    int fd;
};

int event_ring_open(struct event_ring *events);
void event_ring_close(struct event_ring *events);
void event_post(struct event_ring *events, struct isw_event event);
int event_take(struct event_ring *events, struct isw_event *out, uint32_t most);

#endif
