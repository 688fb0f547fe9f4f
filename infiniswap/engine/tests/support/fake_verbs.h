/* libibverbs with one RDMA device in software, put in place of the real one (the linker wraps verbs_load).
 *
 * A thread of its own, the port, moves pages between the engine's buffers and the donors' memory, while the engine goes on.
 * It holds the engine to what a real port would not forgive: order and limits of all calls, keys that cover every piece
 * of memory, queues that never overflow, nothing left at the end, and above all that a buffer stays untouched until the
 * port is done with it.  What it finds wrong ends the test. */
#ifndef FAKE_VERBS_H
#define FAKE_VERBS_H

#include "rig.h"

#include "verbs.h"

#include <stdatomic.h>

enum { FAKE_PORTS = 2, DONOR_SLABS_MAX = 64 };

struct fake_verbs;

struct fake_limits { /* of the device; to be changed before it is opened */
    int max_sge, max_sge_rd, max_qp_wr, max_cqe, reads_max;
    uint32_t inline_bytes;
};

struct fake_faults {
    atomic_bool poll_fails, notify_fails;
    atomic_uint post_error;       /* not 0: handing over fails with it, after part of the chain is taken */
    atomic_uint wake_late_us;     /* who sleeps for a completion is woken so much later */
    atomic_uint modify_us;        /* each step of connecting takes so long */
    atomic_bool notify_late;      /* all that is out completes while the program asks to be told: just too early for that */
    atomic_bool late_completions; /* what is out when its queue pair is destroyed has just been completed, with success */
};

struct fake_counts {
    atomic_ullong posts, requests, signaled, inlined, completions, polls;
    atomic_ullong reads_peak;  /* READs that one queue pair had out */
    atomic_ullong gathered;    /* pieces of memory in the request that had most */
};

/* The engine finds it from here on, with device "fake0". */
struct fake_verbs *fake_verbs_open(uint64_t chance_number);
/* The device is freed.  Fails the test when it left anything behind. */
void fake_verbs_close(struct fake_verbs *verbs);
/* Nothing of what the library makes exists now. */
void fake_verbs_expect_nothing(struct fake_verbs *verbs);
struct fake_limits *fake_verbs_limits(struct fake_verbs *verbs);
struct fake_faults *fake_verbs_faults(struct fake_verbs *verbs);
struct fake_counts *fake_verbs_counts(struct fake_verbs *verbs);
struct ibv_port_attr *fake_verbs_port(struct fake_verbs *verbs, uint32_t port);
/* function ("create_cq"; NULL: none) fails with error from the call on that comes after so many. */
void fake_verbs_refuse(struct fake_verbs *verbs, const char *function, int error, uint32_t after);
uint32_t fake_verbs_queue_pairs(struct fake_verbs *verbs);
/* What modify_qp was told about a queue pair on its way to RTS. */
struct ibv_qp_attr fake_verbs_attributes(struct fake_verbs *verbs, uint32_t number);
/* An asynchronous event; number: queue pair or port.  None comes when there is no such thing. */
void fake_verbs_event(struct fake_verbs *verbs, enum ibv_event_type type, uint32_t number);
/* Ids of the requests that are out on a queue pair; returns their number. */
uint32_t fake_verbs_outstanding(struct fake_verbs *verbs, uint32_t number, uint64_t *ids, uint32_t ids_max);
/* A completion out of nowhere. */
void fake_verbs_complete(struct fake_verbs *verbs, uint64_t id);

/* ---- donors: memory at the other end of the device's queue pairs ---- */

struct rdma_manners {
    atomic_uint delay_us_min, delay_us_max; /* each request takes between the two; those of a queue pair stay in order */
    atomic_uint fail_one_in, status;        /* status: enum ibv_wc_status; what fails may have been done, or half done */
    atomic_uint corrupt_read_one_in, corrupt_write_one_in;
    atomic_uint hang; /* nothing is done; 1: of page-ins, 2: of page-outs, 3: at all */
    atomic_bool mute; /* all is done, nothing completes */
};

struct rdma_donor;

struct rdma_donor *rdma_donor_open(struct fake_verbs *verbs, uint64_t size_bytes, uint64_t slab_bytes, uint64_t chance_number);
void rdma_donor_close(struct rdma_donor *donor);
struct rdma_manners *rdma_donor_manners(struct rdma_donor *donor);
/* All the steps up to the attached peer, which waits for its probes. */
void rdma_donor_begin(struct rdma_donor *donor, struct rig *rig, uint32_t peer);
/* The steps one by one; numbers: of the device's queue pairs. */
struct isw_rdma_path rdma_donor_path(struct rdma_donor *donor, const uint32_t *numbers);
/* The same, and waits for ISW_EVENT_PEER_READY. */
void rdma_donor_attach(struct rdma_donor *donor, struct rig *rig, uint32_t peer);
int rdma_donor_map(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer);
int rdma_donor_move(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer, uint32_t limit_ms);
/* The key of a slab is withdrawn and its memory overwritten; later maps use a new one. */
void rdma_donor_revoke(struct rdma_donor *donor, uint32_t slab);
/* As kill -9 and a new start: keys and queue pairs are no more, memory is overwritten. */
void rdma_donor_kill(struct rdma_donor *donor);
/* As a restart that keeps its memory: queue pairs break, and what was lent is registered under new keys. */
void rdma_donor_restart(struct rdma_donor *donor);
/* Where a slab is now. */
int rdma_donor_tell(struct rdma_donor *donor, struct rig *rig, uint32_t slab, uint32_t peer);
/* The device's queue pairs to it break: everything that is out is flushed. */
void rdma_donor_drop(struct rdma_donor *donor);
/* Numbers of the device's queue pairs to it: page-ins, page-outs. */
uint32_t rdma_donor_queue_pair(struct rdma_donor *donor, uint32_t which);
uint8_t rdma_donor_byte(struct rdma_donor *donor, uint64_t at);

/* The device's own way to "fake0". */
void rdma_open(struct rig *rig, uint32_t poll_us);

#endif
