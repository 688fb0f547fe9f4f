/* A memory daemon of the simulation: the NBD server's side of a peer's two connections, and every way in which it may
 * misbehave.  Its memory is the device's size, as a lease's export is. */
#ifndef SIM_PEER_H
#define SIM_PEER_H

#include "sim_system.h"

#include "infiniswap_engine.h"
#include "nbd_wire.h"

enum { SIM_PEERS = 3, SIM_SLABS_MAX = 8, SIM_REPLIES = 4096 };

struct sim_peer_manners { /* one_in: 0 is never */
    uint32_t request_ns_max;
    uint32_t late_one_in, late_ns; /* an answer that takes so much longer, and with it those behind it */
    uint32_t silent_one_in;  /* nothing is answered on this connection any more */
    uint32_t restarts_one_in; /* it ends and comes back with its memory, or its connections break */
    uint32_t dies_one_in, refuses_one_in, flips_one_in, garbage_one_in;
    bool chopped;            /* answers come in pieces */
    uint64_t fail_nth, fail_kind; /* this request, counted from 1, fails: SIM_FAIL_* */
    const uint8_t **script, *script_end; /* where garbage comes from, while there is any; NULL: from chance */
};
enum { SIM_FAIL_REFUSE, SIM_FAIL_DIE, SIM_FAIL_SILENT, SIM_FAIL_FLIP, SIM_FAIL_GARBAGE, SIM_FAIL_KINDS };

struct sim_reply {
    uint64_t due_ns;
    size_t bytes, given; /* given: to the socket already */
    uint8_t *data;
};

struct sim_peer;
struct sim_link {
    struct sim_peer *peer;
    int fd; /* -1: none */
    uint32_t generation;
    bool looking, silent;
    uint64_t busy_ns;  /* answers leave in order: when the last one does */
    struct sim_reply reply[SIM_REPLIES];
    uint32_t first, last;
    /* the WRITE whose payload is coming in */
    bool writing;
    uint64_t cookie; /* of the last request */
    uint64_t write_cookie, write_at;
    uint32_t write_left, write_error;
};

struct sim_peer {
    struct sim_system *system;
    uint32_t number;
    struct chance chance;
    struct sim_peer_manners manners;
    uint64_t size_bytes, slab_bytes;
    uint8_t *memory;
    bool alive;       /* the daemon's process runs */
    bool leased;      /* the lease is the one the device has on record */
    bool used;        /* its memory has been written */
    bool attached;    /* the device has connections to it */
    bool held;        /* they broke, and the device waits for it */
    bool lent[SIM_SLABS_MAX];
    struct sim_link link[2]; /* page-ins, page-outs */
    uint64_t requests;
    /* Something was done that may cost the device what it has here: one slab (or all, at SIM_SLABS_MAX). */
    void (*harmed)(void *owner, uint32_t peer, uint32_t slab, const char *what);
    void *owner;
};

void sim_peer_open(struct sim_peer *peer, struct sim_system *system, uint32_t number, uint64_t size_bytes,
                   uint64_t slab_bytes, struct chance chance);
void sim_peer_close(struct sim_peer *peer);
/* Two new connections. */
void sim_peer_connect(struct sim_peer *peer, int fds[2]);
/* The lease's end: connections end, memory is somebody else's. */
void sim_peer_end_lease(struct sim_peer *peer);
void sim_peer_die(struct sim_peer *peer);
/* Connections end, memory stays; alive: its process, too. */
void sim_peer_restart(struct sim_peer *peer, bool alive);
/* Connections of a device that is no more: has all been taken in that it had sent? */
bool sim_peer_drained(struct sim_peer *peer);
/* Some answer is still to come, or never will: what it has done before now may yet cost a slab that it is given now. */
bool sim_peer_owes(const struct sim_peer *peer);
void sim_peer_drop_links(struct sim_peer *peer);
/* A slab is given back and may be lent to somebody else. */
void sim_peer_take_back(struct sim_peer *peer, uint32_t slab);

#endif
