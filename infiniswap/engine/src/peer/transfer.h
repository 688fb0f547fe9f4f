/* Transfers, and the peers they go to. */
#ifndef ISW_TRANSFER_H
#define ISW_TRANSFER_H

#include "backup.h"
#include "infiniswap_engine.h"
#include "nbd_wire.h"
#include "peer_held.h"

#include <stdbool.h>

#define NEVER UINT64_MAX /* as a time or a duration */

struct device;
struct op;
struct peer;
struct peer_link;

enum transfer_kind { TRANSFER_PEER_READ, TRANSFER_PEER_WRITE, TRANSFER_PEER_TRIM, TRANSFER_DISK_READ, TRANSFER_DISK_WRITE };

/* Contiguous pages of one operation on their way to or from one place. */
struct transfer {
    enum transfer_kind kind;
    struct op *op;         /* NULL: TRIM, which nobody waits for */
    uint32_t at, pages;    /* in the operation */
    uint64_t first;        /* page */
    uint32_t skip, bytes;  /* what of them travels: part of one page, or all */
    uint32_t slab, generation, place; /* place: which of the slab's */
    uint64_t sequence;     /* sum of the pages' write counters when it began */
    uint32_t sync_failures; /* d->flush.sync_failures, then */
    uint64_t asked_ns;     /* when it was taken ... */
    uint64_t started_ns;   /* ... and when it was posted, over RDMA */
    bool hedged;           /* READ: another copy was thought of */
    bool overdue;          /* it was counted as such */
    bool page_in;          /* DISK_READ that somebody waits for (page_ins.c) */
    bool orphan;           /* WRITE that nobody waits for any more, see op_write.c */
    uint32_t id;           /* own index | use count << 16: the cookie */
    struct transfer *next, *previous; /* free list, send queue, or in-flight list of a peer's connection */
    struct peer_link *link; /* that owes the answer; NULL: none does */
    struct backup_request backup;
    uint8_t head[NBD_REQUEST_BYTES];
    uint32_t pieces; /* RDMA: work requests it took */
    uint32_t vectors;
    struct iovec iov[ISW_OP_PAGES_MAX];
};

struct transfer_list {
    struct transfer *first, *last;
    uint32_t count;
};

/* How quickly a link answers (peer_slow.c). */
struct pace {
    uint64_t mean_ns, deviation_ns; /* of page-ins */
    uint32_t answers;
    uint64_t hedge_ns;  /* a page-in that takes longer is asked of another copy, too; NEVER: not enough is known yet */
    bool slow;          /* takes one transfer at a time, while there is another copy */
    uint32_t quick;     /* answers in time, in a row, since it is slow */
    uint64_t changed_ns; /* when it became slow, or ceased to be */
    uint64_t rest_ns;   /* how long it is slow at least; longer each time */
    uint64_t trip_ns, trip_before_ns; /* the quickest answer of this time and of the one before; 0: there was none */
    uint64_t trip_since_ns;
};

struct tcp_link { /* peer_tcp.c, peer_tcp_receive.c */
    int fd; /* -1: none */
    bool readable, writable, hung_up; /* as in nbd_connection */
    uint8_t *rx;
    uint32_t rx_start, rx_end;
    struct transfer *receiving; /* READ whose payload is coming in */
    uint32_t received;
};

struct ibv_qp;
struct rdma_link { /* peer_rdma.c */
    struct ibv_qp *qp; /* NULL: none */
    uint32_t generation; /* of this queue pair: a completion of an earlier one is not taken for one of it */
    uint32_t posted;     /* work requests out */
};

struct peer_link { /* one of a peer's two connections: page-ins travel on the first, page-outs on the second */
    struct peer *peer;
    struct transfer_list unsent, in_flight;
    uint32_t sent;        /* bytes of the first unsent */
    bool probing;         /* no page has passed yet */
    uint64_t progress_ns; /* when anything last came or, with nothing owed, went */
    struct pace pace;
    uint32_t oldest;      /* id of the request that has waited longest for its answer ... */
    uint64_t oldest_ns;   /* ... and since when it is the oldest */
    struct tcp_link tcp;
    struct rdma_link rdma;
};

struct transport;
struct peer {
    struct device *device;
    uint32_t number;
    const struct transport *transport;
    bool attached;
    int failed; /* errno: to be taken down at the end of the round */
    struct peer_hold hold;
    struct peer_link read, write;
};

/* A slow link takes one transfer at a time, to see whether it still is; what has another way goes there instead.  Page-outs
 * of clients do not try it: promotion does. */
static inline bool link_takes(const struct peer_link *link)
{
    return !link->pace.slow || !(link->in_flight.count || link->unsent.count);
}

#endif
