/* The memory daemon's data path, seen from inside: NBD exports over slab memory, served by a few threads with an epoll loop each.
 *
 * A slab's base pointer is the only thing that threads share.  Whoever takes a slab away stores NULL and then visits every
 * loop through its mailbox: a loop answers between requests, so afterwards none can hold the old pointer, except in replies
 * that are not sent yet; a connection that still has one then is ended (its owner was told to drain before). */
#ifndef ISW_MEMORY_H
#define ISW_MEMORY_H

#include "counters.h"
#include "infiniswap_engine.h"
#include "mailbox.h"
#include "nbd_connection.h"

#include <stdatomic.h>

enum {
    THREADS_MAX = 64,
    SLAB_BYTES_MIN = 1 << 17, /* the answer to the largest READ then fits the ring of replies */
};

struct lent_slab {
    _Atomic(uint8_t *) base; /* NULL: not mapped */
    int fd;
    uint64_t fd_offset;
};

struct export {
    atomic_bool open;
    uint64_t slab_bytes;
    uint32_t slabs;
    struct lent_slab *slab;
    atomic_uint connections;
    uint32_t loop; /* that serves them; under free_lock */
    _Atomic(int64_t) requests; /* READ and WRITE of mapped slabs: they show that the lease's device lives */
};

struct link { /* one client */
    struct nbd_connection connection;
    struct isw_memory *memory;
    struct export *export;
    struct link *next; /* of its loop, or of the free list */
    struct link **back;
    struct link *ready_next;
    bool in_ready;
    uint64_t write_cookie, write_at;
    int write_error;
    uint32_t write_left;
    uint32_t clear_done; /* of the TRIM or WRITE_ZEROES at the head of what was received: it is done in pieces */
    bool clearing;       /* it has more: at the next turn */
    void *buffers; /* freed with the engine, reused by the next client */
};

struct loop {
    struct isw_memory *memory;
    struct mailbox mailbox;
    int epoll_fd;
    pthread_t thread;
    bool started, ending;
    struct link *links;
    struct link *ready; /* had more to read when its turn ended */
    uint64_t now_ns;
};

struct isw_memory {
    struct isw_memory_config config;
    struct export *exports;
    struct loop loops[THREADS_MAX];
    uint32_t next_loop;
    pthread_mutex_t free_lock; /* guards free_links: loops give back, the control thread takes; and which loop is next */
    struct link *free_links;
    struct link *all_links;
    uint64_t counters[ISW_MEMORY_COUNTER_COUNT];
};

static inline void memory_tally(struct isw_memory *memory, enum isw_memory_counter counter, uint64_t by)
{
    __atomic_fetch_add(&memory->counters[counter], by, __ATOMIC_RELAXED);
}

/* memory_request.c */
extern const struct nbd_handler memory_handler;

/* memory_loop.c */
void *memory_loop_run(void *loop);
int memory_call_end(void *loop, void *ignored);
int memory_call_add(void *loop, void *link);
int memory_call_end_export(void *loop, void *export);
struct taken_slab {
    struct export *export;
    const uint8_t *base;
};
int memory_call_take_slab(void *loop, void *taken);

#endif
