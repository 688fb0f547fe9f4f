/* The software RDMA device, seen from inside: fake_verbs.c is its library, fake_queue_pair.c that
 * part of it, fake_port.c what moves the data, rdma_donor.c the other ends. */
#ifndef FAKE_PORT_H
#define FAKE_PORT_H

#include "fake_verbs.h"

#include <pthread.h>

enum { QUEUE_PAIRS_MAX = 256, DONORS_MAX = 8, REGIONS_MAX = 8, CHANNELS_MAX = 4, SGES_MAX = 32, ASYNC_MAX = 16 };

struct work { /* a work request that was handed over */
    uint64_t id, due_ns, remote;
    uint32_t rkey, sges, bytes;
    uint32_t crc; /* of our memory, which nobody but the port may change meanwhile */
    bool read, signaled, executed;
    uint8_t *inlined; /* NULL: gathered when it is sent */
    struct ibv_sge sge[SGES_MAX];
};

struct fake_qp {
    struct ibv_qp base; /* first: the engine's pointer */
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attr;
    struct rdma_donor *donor; /* NULL: nobody answers */
    uint32_t which;           /* of its queue pairs */
    struct work *ring;
    uint64_t head, tail; /* first that is not completed; next to be handed over */
    uint64_t retired;    /* up to here the program has seen the completion, and the queue has room again */
    uint32_t reads;
    bool busy; /* the port is moving its data, without the lock */
};

struct fake_completion {
    struct ibv_wc wc;
    uint64_t retires;
};

struct fake_channel {
    struct ibv_comp_channel base; /* first */
    struct fake_cq *cq;
};

struct fake_cq {
    struct ibv_cq base; /* first */
    struct fake_completion *ring;
    uint32_t room, first;
    atomic_uint count;
    bool armed;
    uint32_t events, unacknowledged;
};

struct fake_context {
    struct ibv_context base; /* first */
    struct fake_verbs *verbs;
    struct ibv_async_event async[ASYNC_MAX];
    uint32_t async_count, unacknowledged;
};

struct fake_verbs {
    struct ibv_device device;
    struct fake_limits limits;
    struct fake_faults faults;
    struct fake_counts counts;
    struct ibv_port_attr port[FAKE_PORTS];
    pthread_mutex_t lock; /* guards all that follows */
    pthread_cond_t work, idle;
    pthread_t thread;
    bool ending;
    struct chance chance;
    const char *refused;
    int refused_error;
    uint32_t refused_after;
    struct fake_context *context; /* the first that is open */
    struct fake_cq *cq;           /* likewise */
    struct ibv_mr *mr[REGIONS_MAX];
    struct fake_qp *qp[QUEUE_PAIRS_MAX];
    struct rdma_donor *donor[DONORS_MAX];
    uint32_t lists, contexts, domains, channels, queues; /* that exist */
    uint32_t next_number, next_key;
};

struct region {
    uint32_t key; /* 0: withdrawn */
    uint64_t address, bytes;
    uint8_t *memory;
};

struct rdma_donor {
    struct fake_verbs *verbs;
    struct rdma_manners manners;
    uint64_t size_bytes, slab_bytes;
    uint32_t slabs;
    uint8_t *memory; /* size_bytes, and a page for probes */
    pthread_mutex_t memory_lock; /* guards the bytes; taken while verbs->lock is held */
    /* under verbs->lock: */
    struct chance chance;
    struct region region[DONOR_SLABS_MAX + 1];
    struct {
        uint32_t number, psn, remote_number, remote_psn; /* number 0: no queue pair */
    } end[ISW_RDMA_QUEUE_PAIRS];
};

/* fake_verbs.c: 0, or the error with which this call fails */
int fake_refusal(struct fake_verbs *v, const char *function);

/* fake_queue_pair.c */
struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *want);
int fake_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
int fake_destroy_qp(struct ibv_qp *qp);
struct fake_qp *fake_qp_find(struct fake_verbs *v, uint32_t number); /* with the lock held */

/* fake_port.c: */
int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fake_poll_cq(struct ibv_cq *cq, int count, struct ibv_wc *wc);
int fake_req_notify_cq(struct ibv_cq *cq, int solicited_only);
void *fake_port_run(void *verbs);
/* With the lock held: */
void fake_complete(struct fake_cq *cq, uint64_t id, uint32_t number, uint64_t retires, enum ibv_wc_status status);
void fake_qp_forget(struct fake_verbs *v, struct fake_qp *qp);

/* rdma_donor.c, with the lock held: NULL unless both ends know each other */
struct rdma_donor *donor_of(struct fake_verbs *v, struct fake_qp *qp);
const struct region *donor_region(const struct rdma_donor *donor, uint64_t address, uint64_t bytes, uint32_t key);

static inline struct fake_verbs *verbs_of(struct ibv_context *context)
{
    return ((struct fake_context *)context)->verbs;
}

#endif
