/* The device's RDMA port: what its peers' queue pairs share. */
#ifndef ISW_RDMA_H
#define ISW_RDMA_H

#include "device.h"
#include "transport.h"
#include "verbs.h"

enum {
    RDMA_LINKS = 2,       /* queue pairs of a peer: page-ins, page-outs */
    RDMA_DEPTH = 128,     /* work requests out on one queue pair, where the port allows as many */
    RDMA_DEPTH_MIN = 16,
    RDMA_SGES_MAX = 16,   /* pieces of our memory that one work request gathers or scatters */
    RDMA_CHAIN = 64,      /* work requests handed to the port with one call */
    RDMA_SIGNAL_EVERY = 4, /* transfers of a chain that share one completion; the last of a chain always has one */
    RDMA_INLINE_BYTES = 512, /* writes of a sector travel in the work request itself */
    RDMA_POLL_US_MAX = 10000,
};

struct rdma_path { /* made, and not attached yet */
    struct ibv_qp *qp[RDMA_LINKS];
    uint64_t probe_address;
    uint32_t probe_rkey;
};

struct rdma {
    struct verbs verbs;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_mr *mr; /* of everything that pages are sent from or received into */
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    uint8_t port;
    uint8_t reads_max; /* READs outstanding on one queue pair */
    uint32_t depth, sges_max, inline_bytes;
    struct rdma_path path[ISW_PEERS_MAX]; /* touched only by the control thread that prepares it */

    /* the loop's */
    uint64_t poll_ns;       /* how long a completion is waited for by asking again and again */
    uint64_t spin_until_ns;
    uint64_t usual_ns;      /* how long completions take of late */
    uint32_t in_flight;     /* transfers and probes posted */
    uint32_t generation;    /* of the next link; part of every work request's id */
    uint32_t sleeps;
    bool armed;             /* the next completion raises an event */
    bool lost;              /* RDMA_LOST was told */
    bool leftover;          /* completions of queue pairs that are no more may be in the queue */
};

extern const struct transport transport_rdma;

/* On the loop: */
int rdma_watch(struct device *d, struct rdma *rdma);
void rdma_unwatch(struct device *d);
int peer_open_rdma(struct peer *peer);

/* Frees what rdma holds; no peer uses it any more. */
void rdma_release(struct rdma *rdma);

#endif
