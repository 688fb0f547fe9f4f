/* The memory daemon's loops, and the calls that reach into them. */
#include "memory.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>

enum {
    EPOLL_EVENTS = 64,
    TICK_MS = 1000, /* how often stalled clients are looked for */
    STOOD_STILL_MS = 3000, /* between two of them: it was us who did not run */
    ROUNDS_MAX = 2, /* receive buffers that one connection may use up before others have their turn */
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void end_link(struct loop *loop, struct link *l)
{
    struct isw_memory *memory = loop->memory;
    memory_tally(memory, ISW_MEMORY_protocol_errors, l->connection.errors);
    nbd_connection_close(&l->connection); /* close(2) also takes it out of epoll */
    *l->back = l->next;
    if (l->next)
        l->next->back = l->back;
    if (l->in_ready) {
        struct link **at = &loop->ready;
        while (*at != l)
            at = &(*at)->ready_next;
        *at = l->ready_next;
        l->in_ready = false;
    }
    atomic_fetch_sub(&l->export->connections, 1);
    __atomic_fetch_sub(&memory->counters[ISW_MEMORY_connections], 1, __ATOMIC_RELAXED);
    l->export = NULL;
    pthread_mutex_lock(&memory->free_lock);
    l->next = memory->free_links;
    memory->free_links = l;
    pthread_mutex_unlock(&memory->free_lock);
}

static void make_ready(struct loop *loop, struct link *l)
{
    if (!l->in_ready) {
        l->in_ready = true;
        l->ready_next = loop->ready;
        loop->ready = l;
    }
}

static void serve_link(struct loop *loop, struct link *l)
{
    struct nbd_connection *c = &l->connection;
    bool again = true;
    for (int round = 0; again && round < ROUNDS_MAX; round++) {
        nbd_connection_receive(c);
        bool blocked = nbd_connection_process(c);
        nbd_connection_send(c, loop->now_ns);
        /* Blocked means no room for replies: go on at once if sending made some, else when the socket is writable. */
        again = blocked ? c->writable || l->clearing : c->readable;
        if (l->clearing)
            break; /* that was its turn */
    }
    if (c->dead || (c->finishing && !nbd_connection_has_output(c)))
        end_link(loop, l);
    else if (again)
        make_ready(loop, l);
}

static void end_stalled(struct loop *loop, bool anew)
{
    uint64_t limit_ns = (uint64_t)loop->memory->config.client_stall_timeout_ms * 1000000u;
    for (struct link *l = loop->links, *next; l; l = next) {
        next = l->next;
        if (nbd_connection_stalled(&l->connection, loop->now_ns, limit_ns, false, anew))
            end_link(loop, l);
    }
}

void *memory_loop_run(void *argument)
{
    struct loop *loop = argument;
    struct epoll_event events[EPOLL_EVENTS];
    uint64_t last_tick_ns = clock_ns();
    while (!loop->ending) {
        int count = epoll_wait(loop->epoll_fd, events, EPOLL_EVENTS, loop->ready ? 0 : TICK_MS);
        memory_tally(loop->memory, ISW_MEMORY_loops, 1);
        loop->now_ns = clock_ns();
        bool called = false;
        for (int i = 0; i < count; i++) {
            struct link *l = events[i].data.ptr;
            if (!l) {
                called = true;
                continue;
            }
            if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                l->connection.hung_up = true;
            if (l->connection.hung_up || (events[i].events & EPOLLIN))
                l->connection.readable = true;
            if (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
                l->connection.writable = true;
            make_ready(loop, l);
        }
        struct link *turn = loop->ready;
        loop->ready = NULL;
        while (turn) {
            struct link *l = turn;
            turn = l->ready_next;
            l->in_ready = false;
            serve_link(loop, l);
        }
        if (called) /* last: a call may end connections, and events of this round name them */
            mailbox_serve(&loop->mailbox, loop);
        if (loop->now_ns - last_tick_ns > TICK_MS * 1000000ull) {
            bool anew = loop->now_ns - last_tick_ns > STOOD_STILL_MS * 1000000ull;
            last_tick_ns = loop->now_ns;
            end_stalled(loop, anew);
        }
    }
    while (loop->links)
        end_link(loop, loop->links);
    mailbox_close(&loop->mailbox);
    return NULL;
}

/* ---- calls into a loop ---- */

int memory_call_end(void *owner, void *argument)
{
    (void)argument;
    ((struct loop *)owner)->ending = true;
    return 0;
}

int memory_call_add(void *owner, void *argument)
{
    struct loop *loop = owner;
    struct link *l = argument;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = l};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, l->connection.fd, &event) < 0)
        return -errno;
    l->clearing = false;
    l->clear_done = 0;
    l->next = loop->links;
    l->back = &loop->links;
    if (l->next)
        l->next->back = &l->next;
    loop->links = l;
    make_ready(loop, l);
    return 0;
}

int memory_call_end_export(void *owner, void *argument)
{
    struct loop *loop = owner;
    for (struct link *l = loop->links, *next; l; l = next) {
        next = l->next;
        if (l->export == argument)
            end_link(loop, l);
    }
    return 0;
}

static bool refers_to(const struct nbd_connection *c, const uint8_t *base, uint64_t bytes)
{
    for (uint32_t at = c->tx_head; at != c->tx_tail; at++) {
        const uint8_t *body = c->tx[at & (NBD_TX_SEGMENTS - 1)].body;
        if (body >= base && body < base + bytes)
            return true;
    }
    return false;
}

int memory_call_take_slab(void *owner, void *argument)
{
    struct loop *loop = owner;
    struct taken_slab *taken = argument;
    for (struct link *l = loop->links, *next; l; l = next) {
        next = l->next;
        if (l->export == taken->export && refers_to(&l->connection, taken->base, l->export->slab_bytes))
            end_link(loop, l);
    }
    return 0;
}
