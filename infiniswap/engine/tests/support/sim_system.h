/* The operating system of a simulation: a clock that stands unless it is moved, descriptors that exist only here, and one
 * thread.  The linker wraps what the engine asks of the real one (sim_wraps.c); while no simulation runs, and for real
 * descriptors, the calls pass through.
 *
 * Time goes on only in epoll_wait: what was to happen until then happens there, in its order. */
#ifndef SIM_SYSTEM_H
#define SIM_SYSTEM_H

#include "check.h"

#include <setjmp.h>

enum {
    SIM_FD_FIRST = 1 << 24, /* no real descriptor is as large */
    SIM_DESCRIPTORS = 128,
    SIM_EVENTS = 1 << 14,
};

typedef void sim_function(void *owner, uint64_t number);

struct sim_bytes {
    uint8_t *data;
    size_t start, end, room;
};

struct sim_descriptor {
    enum { SIM_FREE, SIM_EPOLL, SIM_COUNTER, SIM_SOCKET } kind;
    bool watched, edge;    /* edge: something has come since epoll_wait told of it */
    bool once;             /* EPOLLET */
    uint32_t wanted;
    uint64_t data;
    uint64_t count;        /* eventfd */
    struct sim_bytes in, out; /* as the engine sees them */
    size_t out_most;       /* bytes that the other end leaves unread before the engine has to wait */
    bool in_ended, reset;  /* the other end sends no more; is gone */
    bool closed, forgotten; /* by the engine; by the other end */
    bool blocked;          /* the engine found out full */
    sim_function *moved;   /* the engine has sent or closed */
    void *owner;
    uint64_t number;
};

struct sim_event {
    uint64_t at_ns, order;
    sim_function *function;
    void *owner;
    uint64_t number;
};

struct sim_system {
    bool aside; /* memory that is asked for is not the device's */
    uint64_t now_ns, order, rounds, idle_rounds;
    struct chance chance;
    struct sim_descriptor descriptor[SIM_DESCRIPTORS];
    uint32_t descriptors; /* the most that were ever open */
    struct sim_event event[SIM_EVENTS]; /* heap: the earliest first */
    uint32_t events;
    bool poked;       /* epoll_wait returns at once: the simulation's own thread of control wants its turn */
    void *thread;     /* argument of the thread that the engine believes to have */
    uint64_t last_serial; /* that a page was sealed with, of the present file of seals */
    uint64_t watched; /* page whose changes are told; UINT64_MAX: none */
    uint64_t kill_in; /* points of the engine's code until it is killed; 0: it is not */
    jmp_buf killed;
};

void sim_system_open(struct sim_system *s, struct chance chance);
void sim_system_close(struct sim_system *s);
struct sim_system *sim_system_active(void);

void sim_at(struct sim_system *s, uint64_t at_ns, sim_function *function, void *owner, uint64_t number);
/* Lets the next thing happen that is due until then, and moves the clock there; false: nothing is, the clock is at until. */
bool sim_step(struct sim_system *s, uint64_t until_ns);
/* The engine may be killed here. */
void sim_point(struct sim_system *s);
/* As the kernel does with a dead process' descriptors. */
void sim_close_all(struct sim_system *s);

/* The other end of a socket. */
int sim_socket(struct sim_system *s, size_t out_most, sim_function *moved, void *owner, uint64_t number);
void sim_deliver(struct sim_system *s, int fd, const uint8_t *data, size_t bytes);
void sim_deliver_end(struct sim_system *s, int fd, bool reset);
/* What the engine has sent and nobody has taken; taken: bytes of it to be dropped. */
size_t sim_sent(struct sim_system *s, int fd, const uint8_t **data);
void sim_take(struct sim_system *s, int fd, size_t taken);
bool sim_closed(struct sim_system *s, int fd);
void sim_forget(struct sim_system *s, int fd);

/* For sim_wraps.c */
struct sim_descriptor *sim_descriptor_new(struct sim_system *s, int *fd);
struct sim_descriptor *sim_descriptor(struct sim_system *s, int fd);
void sim_descriptor_close(struct sim_system *s, struct sim_descriptor *d);
void sim_bytes_add(struct sim_bytes *b, const void *data, size_t bytes);

#endif
