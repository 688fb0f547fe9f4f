/* The memory daemon's data path: NBD exports over slab memory, served by a few threads with an epoll loop each.
 *
 * A slab's base pointer is the only thing that threads share.  Whoever takes a slab away stores NULL and then visits every
 * loop through its mailbox: a loop answers between requests, so afterwards none can hold the old pointer, except in replies
 * that are not sent yet; a connection that still has one then is ended (its owner was told to drain before). */
#include "counters.h"
#include "infiniswap_engine.h"
#include "mailbox.h"
#include "nbd_connection.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    THREADS_MAX = 64,
    EPOLL_EVENTS = 64,
    TICK_MS = 1000, /* how often stalled clients are looked for */
    ROUNDS_MAX = 8, /* receive buffers that one connection may use up before others have their turn */
};

struct slab {
    _Atomic(uint8_t *) base; /* NULL: not mapped */
    int fd;
    uint64_t fd_offset;
};

struct export {
    atomic_bool open;
    uint64_t slab_bytes;
    uint32_t slabs;
    struct slab *slab;
    atomic_uint connections;
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
    pthread_mutex_t free_lock; /* guards free_links: loops give back, the control thread takes */
    struct link *free_links;
    struct link *all_links;
    uint64_t counters[ISW_MEMORY_COUNTER_COUNT];
};

static const char *const counter_names[] = {
#define ISW_X(name) #name,
    ISW_MEMORY_COUNTERS(ISW_X)
#undef ISW_X
};

static void tally(struct isw_memory *memory, enum isw_memory_counter counter, uint64_t by)
{
    __atomic_fetch_add(&memory->counters[counter], by, __ATOMIC_RELAXED);
}

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct link *link_of(struct nbd_connection *c)
{
    return (struct link *)((char *)c - offsetof(struct link, connection));
}

/* ---- requests ---- */

/* Where offset lies now and how many of the bytes lie in the same slab; NULL: not mapped. */
static uint8_t *locate(struct export *e, uint64_t offset, uint64_t bytes, uint64_t *here, struct slab **which)
{
    uint64_t index = offset / e->slab_bytes, inside = offset % e->slab_bytes;
    uint64_t left = e->slab_bytes - inside;
    *here = bytes < left ? bytes : left;
    *which = &e->slab[index];
    uint8_t *base = atomic_load_explicit(&(*which)->base, memory_order_acquire);
    return base ? base + inside : NULL;
}

static bool all_mapped(struct export *e, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        uint64_t here;
        struct slab *slab;
        if (!locate(e, offset, bytes, &here, &slab))
            return false;
        offset += here;
        bytes -= here;
    }
    return true;
}

static void reply_read(struct link *l, const struct nbd_request *r)
{
    uint64_t offset = r->offset, left = r->length;
    bool structured = l->connection.flags & ISW_CONNECTION_STRUCTURED;
    if (!left) {
        nbd_reply(&l->connection, r->cookie, r->command, 0);
        return;
    }
    while (left) {
        uint64_t here;
        struct slab *slab;
        uint8_t *at = locate(l->export, offset, left, &here, &slab);
        if (!at) { /* taken away between the check and now */
            nbd_connection_abort(&l->connection);
            return;
        }
        if (structured || offset == r->offset)
            nbd_reply_data(&l->connection, r->cookie, offset, here == left, at, (uint32_t)here, NBD_NO_TAG);
        else
            nbd_reply_more(&l->connection, at, (uint32_t)here, NBD_NO_TAG);
        offset += here;
        left -= here;
    }
}

/* Free whole pages of the memfd where that is wanted and possible; zero the rest by hand. */
static int clear_range(struct link *l, const struct nbd_request *r)
{
    uint64_t offset = r->offset, left = r->length;
    bool punch = !(r->flags & NBD_CMD_FLAG_NO_HOLE);
    while (left) {
        uint64_t here;
        struct slab *slab;
        uint8_t *at = locate(l->export, offset, left, &here, &slab);
        if (!at)
            return ESHUTDOWN;
        uint64_t inside = offset % l->export->slab_bytes;
        uint64_t first = (inside + ISW_PAGE_BYTES - 1) & ~(uint64_t)(ISW_PAGE_BYTES - 1);
        uint64_t last = (inside + here) & ~(uint64_t)(ISW_PAGE_BYTES - 1);
        if (punch && slab->fd >= 0 && last > first &&
            fallocate(slab->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(slab->fd_offset + first),
                      (off_t)(last - first)) == 0) {
            memset(at, 0, first - inside);
            memset(at + (last - inside), 0, inside + here - last);
        } else {
            memset(at, 0, here);
        }
        offset += here;
        left -= here;
    }
    return 0;
}

static void reply_status(struct link *l, const struct nbd_request *r)
{
    uint8_t extents[NBD_INLINE_EXTENTS * 8];
    uint32_t count = 0, flags[NBD_INLINE_EXTENTS] = {0};
    uint64_t length[NBD_INLINE_EXTENTS] = {0}, offset = r->offset, left = r->length;
    uint32_t most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_INLINE_EXTENTS;
    while (left) {
        uint64_t here;
        struct slab *slab;
        uint32_t now = locate(l->export, offset, left, &here, &slab) ? 0 : NBD_STATE_HOLE;
        if (count && flags[count - 1] == now) {
            length[count - 1] += here;
        } else if (count == most) {
            break;
        } else {
            flags[count] = now;
            length[count++] = here;
        }
        offset += here;
        left -= here;
    }
    for (uint32_t i = 0; i < count; i++) {
        nbd_put32(extents + 8 * i, (uint32_t)length[i]);
        nbd_put32(extents + 8 * i + 4, flags[i]);
    }
    nbd_reply_extents(&l->connection, r->cookie, ISW_CONTEXT_ALLOCATION, extents, count, NBD_NO_TAG);
}

static enum nbd_verdict on_request(void *owner, struct nbd_connection *c, const struct nbd_request *r)
{
    struct isw_memory *memory = owner;
    struct link *l = link_of(c);
    bool touches = r->command == NBD_CMD_READ || r->command == NBD_CMD_WRITE || r->command == NBD_CMD_TRIM ||
                   r->command == NBD_CMD_WRITE_ZEROES;
    if (touches && !all_mapped(l->export, r->offset, r->length)) {
        tally(memory, ISW_MEMORY_refused_requests, 1);
        if (r->command != NBD_CMD_WRITE || !r->length) {
            nbd_reply(c, r->cookie, r->command, ESHUTDOWN);
            return NBD_TAKEN;
        }
        /* A WRITE is refused by on_payload, once all of it is here: the device takes an earlier answer for a wrong one. */
    }
    switch (r->command) {
    case NBD_CMD_READ:
        tally(memory, ISW_MEMORY_read_requests, 1);
        tally(memory, ISW_MEMORY_read_pages, (r->length + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES);
        reply_read(l, r);
        break;
    case NBD_CMD_WRITE:
        tally(memory, ISW_MEMORY_write_requests, 1);
        tally(memory, ISW_MEMORY_write_pages, (r->length + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES);
        l->write_cookie = r->cookie;
        l->write_at = r->offset;
        l->write_left = r->length;
        l->write_error = 0;
        if (!r->length)
            nbd_reply(c, r->cookie, r->command, 0);
        break;
    case NBD_CMD_TRIM:
    case NBD_CMD_WRITE_ZEROES:
        tally(memory, ISW_MEMORY_trim_requests, 1);
        nbd_reply(c, r->cookie, r->command, clear_range(l, r));
        break;
    case NBD_CMD_BLOCK_STATUS:
        tally(memory, ISW_MEMORY_other_requests, 1);
        reply_status(l, r);
        break;
    default: /* FLUSH: memory is all there is; CACHE: it is here already */
        tally(memory, ISW_MEMORY_other_requests, 1);
        nbd_reply(c, r->cookie, r->command, 0);
    }
    return NBD_TAKEN;
}

/* Copies whole pages only (or the last piece): a device that dies in the middle of a request leaves no torn page. */
static size_t on_payload(void *owner, struct nbd_connection *c, const uint8_t *data, size_t bytes)
{
    struct link *l = link_of(c);
    size_t taken = 0;
    (void)owner;
    while (taken < bytes) {
        uint64_t here;
        struct slab *slab;
        uint32_t to_page_end = ISW_PAGE_BYTES - (uint32_t)(l->write_at % ISW_PAGE_BYTES);
        uint32_t piece = l->write_left < to_page_end ? l->write_left : to_page_end;
        if (bytes - taken < piece)
            break;
        uint8_t *at = locate(l->export, l->write_at, piece, &here, &slab);
        if (at)
            memcpy(at, data + taken, piece);
        else
            l->write_error = ESHUTDOWN;
        taken += piece;
        l->write_at += piece;
        l->write_left -= piece;
    }
    if (!l->write_left)
        nbd_reply(c, l->write_cookie, NBD_CMD_WRITE, l->write_error);
    return taken;
}

static void on_sent(void *owner, struct nbd_connection *c, uint32_t tag)
{
    (void)owner;
    (void)c;
    (void)tag;
}

static const struct nbd_handler handler = {on_request, on_payload, on_sent};

/* ---- loops ---- */

static void end_link(struct loop *loop, struct link *l)
{
    struct isw_memory *memory = loop->memory;
    tally(memory, ISW_MEMORY_protocol_errors, l->connection.errors);
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
        again = blocked ? c->writable : c->readable;
    }
    if (c->dead || (c->finishing && !nbd_connection_has_output(c)))
        end_link(loop, l);
    else if (again)
        make_ready(loop, l);
}

static void end_stalled(struct loop *loop)
{
    uint64_t limit_ns = (uint64_t)loop->memory->config.client_stall_timeout_ms * 1000000u;
    for (struct link *l = loop->links, *next; l; l = next) {
        next = l->next;
        if (l->connection.tx_stalled_ns && loop->now_ns - l->connection.tx_stalled_ns > limit_ns)
            end_link(loop, l);
    }
}

static void *run_loop(void *argument)
{
    struct loop *loop = argument;
    struct epoll_event events[EPOLL_EVENTS];
    uint64_t last_tick_ns = clock_ns();
    while (!loop->ending) {
        int count = epoll_wait(loop->epoll_fd, events, EPOLL_EVENTS, loop->ready ? 0 : TICK_MS);
        tally(loop->memory, ISW_MEMORY_loops, 1);
        loop->now_ns = clock_ns();
        bool called = false;
        for (int i = 0; i < count; i++) {
            struct link *l = events[i].data.ptr;
            if (!l) {
                called = true;
                continue;
            }
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
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
            last_tick_ns = loop->now_ns;
            end_stalled(loop);
        }
    }
    while (loop->links)
        end_link(loop, loop->links);
    mailbox_close(&loop->mailbox);
    return NULL;
}

/* ---- calls into a loop ---- */

static int call_end(void *owner, void *argument)
{
    (void)argument;
    ((struct loop *)owner)->ending = true;
    return 0;
}

static int call_add(void *owner, void *argument)
{
    struct loop *loop = owner;
    struct link *l = argument;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = l};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, l->connection.fd, &event) < 0)
        return -errno;
    l->next = loop->links;
    l->back = &loop->links;
    if (l->next)
        l->next->back = &l->next;
    loop->links = l;
    make_ready(loop, l);
    return 0;
}

static int call_end_export(void *owner, void *argument)
{
    struct loop *loop = owner;
    for (struct link *l = loop->links, *next; l; l = next) {
        next = l->next;
        if (l->export == argument)
            end_link(loop, l);
    }
    return 0;
}

struct taken_slab {
    struct export *export;
    const uint8_t *base;
};

static bool refers_to(const struct nbd_connection *c, const uint8_t *base, uint64_t bytes)
{
    for (uint32_t at = c->tx_head; at != c->tx_tail; at++) {
        const uint8_t *body = c->tx[at & (NBD_TX_SEGMENTS - 1)].body;
        if (body >= base && body < base + bytes)
            return true;
    }
    return false;
}

static int call_take_slab(void *owner, void *argument)
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

static void visit_loops(struct isw_memory *memory, mailbox_function *function, void *argument)
{
    for (uint32_t i = 0; i < memory->config.threads; i++)
        mailbox_call(&memory->loops[i].mailbox, function, argument);
}

/* ---- public ---- */

isw_memory *isw_memory_start(const struct isw_memory_config *config, char *error, size_t error_bytes)
{
    if (config->threads < 1 || config->threads > THREADS_MAX || !config->exports_max || !config->connections_max) {
        snprintf(error, error_bytes, "threads must be 1 to %d, exports and connections at least 1", THREADS_MAX);
        return NULL;
    }
    struct isw_memory *memory = calloc(1, sizeof *memory);
    struct export *exports = calloc(config->exports_max, sizeof *exports);
    struct link *links = calloc(config->connections_max, sizeof *links);
    size_t buffer_bytes = nbd_connection_memory_bytes();
    void *buffers = mmap(NULL, buffer_bytes * config->connections_max, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!memory || !exports || !links || buffers == MAP_FAILED) {
        snprintf(error, error_bytes, "out of memory");
        goto failed;
    }
    memory->config = *config;
    memory->exports = exports;
    memory->all_links = links;
    pthread_mutex_init(&memory->free_lock, NULL);
    for (uint32_t i = 0; i < config->connections_max; i++) {
        links[i].buffers = (uint8_t *)buffers + i * buffer_bytes;
        nbd_connection_memory(&links[i].connection, links[i].buffers);
        links[i].connection.handler = &handler;
        links[i].connection.owner = memory;
        links[i].next = memory->free_links;
        memory->free_links = &links[i];
    }
    for (uint32_t i = 0; i < config->threads; i++) {
        struct loop *loop = &memory->loops[i];
        loop->memory = memory;
        loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        if (loop->epoll_fd < 0 || mailbox_open(&loop->mailbox) < 0 ||
            epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->mailbox.event_fd, &event) < 0 ||
            pthread_create(&loop->thread, NULL, run_loop, loop) != 0) {
            snprintf(error, error_bytes, "cannot start a thread: too many files or threads?");
            memory->config.threads = i;
            isw_memory_stop(memory);
            return NULL;
        }
        loop->started = true;
    }
    return memory;

failed:
    if (buffers != MAP_FAILED)
        munmap(buffers, buffer_bytes * config->connections_max);
    free(links);
    free(exports);
    free(memory);
    return NULL;
}

static struct export *export_at(struct isw_memory *memory, uint32_t number)
{
    if (number >= memory->config.exports_max || !atomic_load(&memory->exports[number].open))
        return NULL;
    return &memory->exports[number];
}

int isw_memory_export_open(isw_memory *memory, uint64_t slab_bytes, uint32_t slabs)
{
    if (!slabs || slab_bytes < ISW_PAGE_BYTES || (slab_bytes & (slab_bytes - 1)))
        return -EINVAL;
    for (uint32_t i = 0; i < memory->config.exports_max; i++) {
        struct export *e = &memory->exports[i];
        if (atomic_load(&e->open))
            continue;
        e->slab = calloc(slabs, sizeof *e->slab);
        if (!e->slab)
            return -ENOMEM;
        e->slab_bytes = slab_bytes;
        e->slabs = slabs;
        atomic_store(&e->open, true);
        return (int)i;
    }
    return -ENFILE;
}

int isw_memory_export_close(isw_memory *memory, uint32_t export_number)
{
    struct export *e = export_at(memory, export_number);
    if (!e)
        return -ENOENT;
    visit_loops(memory, call_end_export, e);
    free(e->slab);
    e->slab = NULL;
    atomic_store(&e->open, false);
    return 0;
}

int isw_memory_slab_map(isw_memory *memory, uint32_t export_number, uint32_t slab, void *base, int fd, uint64_t fd_offset)
{
    struct export *e = export_at(memory, export_number);
    if (!e)
        return -ENOENT;
    if (slab >= e->slabs || !base)
        return -EINVAL;
    if (atomic_load(&e->slab[slab].base))
        return -EEXIST;
    e->slab[slab].fd = fd;
    e->slab[slab].fd_offset = fd_offset;
    atomic_store_explicit(&e->slab[slab].base, base, memory_order_release);
    return 0;
}

int isw_memory_slab_unmap(isw_memory *memory, uint32_t export_number, uint32_t slab)
{
    struct export *e = export_at(memory, export_number);
    if (!e)
        return -ENOENT;
    if (slab >= e->slabs)
        return -EINVAL;
    struct taken_slab taken = {e, atomic_exchange(&e->slab[slab].base, NULL)};
    if (!taken.base)
        return -ENOENT;
    visit_loops(memory, call_take_slab, &taken);
    return 0;
}

int isw_memory_connection_add(isw_memory *memory, uint32_t export_number, int fd, uint32_t flags, const void *early,
                              size_t early_bytes)
{
    struct export *e = export_at(memory, export_number);
    if (!e || early_bytes > ISW_EARLY_BYTES_MAX) {
        close(fd);
        return e ? -EINVAL : -ENOENT;
    }
    pthread_mutex_lock(&memory->free_lock);
    struct link *l = memory->free_links;
    if (l)
        memory->free_links = l->next;
    pthread_mutex_unlock(&memory->free_lock);
    if (!l) {
        close(fd);
        return -EMFILE;
    }
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on UNIX sockets, which need it not */
    nbd_connection_open(&l->connection, fd, flags, e->slab_bytes * e->slabs, early, early_bytes);
    l->memory = memory;
    l->export = e;
    atomic_fetch_add(&e->connections, 1);
    tally(memory, ISW_MEMORY_connections, 1);
    tally(memory, ISW_MEMORY_connections_total, 1);
    struct loop *loop = &memory->loops[memory->next_loop++ % memory->config.threads];
    int result = mailbox_call(&loop->mailbox, call_add, l);
    if (result < 0) {
        nbd_connection_close(&l->connection);
        atomic_fetch_sub(&e->connections, 1);
        __atomic_fetch_sub(&memory->counters[ISW_MEMORY_connections], 1, __ATOMIC_RELAXED);
        pthread_mutex_lock(&memory->free_lock);
        l->next = memory->free_links;
        memory->free_links = l;
        pthread_mutex_unlock(&memory->free_lock);
    }
    return result;
}

int isw_memory_export_connections(isw_memory *memory, uint32_t export_number)
{
    struct export *e = export_at(memory, export_number);
    return e ? (int)atomic_load(&e->connections) : -ENOENT;
}

const uint64_t *isw_memory_counters(isw_memory *memory, uint32_t *count)
{
    *count = ISW_MEMORY_COUNTER_COUNT;
    return memory->counters;
}

const char *isw_memory_counter_name(uint32_t counter)
{
    return counter < ISW_MEMORY_COUNTER_COUNT ? counter_names[counter] : "";
}

void isw_memory_stop(isw_memory *memory)
{
    for (uint32_t i = 0; i < THREADS_MAX; i++) {
        struct loop *loop = &memory->loops[i];
        if (!loop->started)
            continue;
        mailbox_call(&loop->mailbox, call_end, NULL);
        pthread_join(loop->thread, NULL);
        close(loop->epoll_fd);
        mailbox_destroy(&loop->mailbox);
    }
    for (uint32_t i = 0; i < memory->config.exports_max; i++)
        free(memory->exports[i].slab);
    munmap(memory->all_links[0].buffers, nbd_connection_memory_bytes() * memory->config.connections_max);
    pthread_mutex_destroy(&memory->free_lock);
    free(memory->all_links);
    free(memory->exports);
    free(memory);
}
