/* How pages travel to a peer.  All of it runs on the loop. */
#ifndef ISW_TRANSPORT_H
#define ISW_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct peer_link;

struct transport {
    bool trims;         /* a TRIM gives the peer's memory back */
    bool takes_regions; /* a slab is named by an address and a key, else by its offset */
    /* unsent -> in_flight, as much as goes now; called at the end of each round */
    void (*send)(struct device *d, struct peer_link *link);
    /* Afterwards nothing that the peer does can touch our memory. */
    void (*close)(struct device *d, struct peer_link *link);
    /* The rest only where the transport has something of the kind, else NULL. */
    void (*link_event)(struct device *d, struct peer_link *link, uint32_t events); /* of a descriptor of the link's */
    void (*port_event)(struct device *d, uint32_t which); /* of a descriptor that all links share */
    void (*poll)(struct device *d);       /* each round: takes what raised no event */
    bool (*awaits)(struct device *d);     /* before the loop sleeps; true: something comes so soon that it must not */
    bool (*busy)(const struct device *d); /* something is out, and its clock runs */
};

enum { TRANSPORT_TCP, TRANSPORT_RDMA, TRANSPORTS };

/* What the loop asks of all transports. */
void transports_event(struct device *d, uint32_t number);
void transports_poll(struct device *d);
bool transports_await(struct device *d);
bool transports_busy(const struct device *d);
/* The number of a transport's descriptor in epoll's events (LOOP_TRANSPORT). */
static inline uint32_t transport_event_number(uint32_t transport, uint32_t which)
{
    return transport << 16 | which;
}

#endif
