/* The memory daemon's public face: start, exports and slabs, connections, stop. */
#include "memory.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *const counter_names[] = {
#define ISW_X(name) #name,
    ISW_MEMORY_COUNTERS(ISW_X)
#undef ISW_X
};

static void visit_loops(struct isw_memory *memory, mailbox_function *function, void *argument)
{
    for (uint32_t i = 0; i < memory->config.threads; i++)
        mailbox_call(&memory->loops[i].mailbox, function, argument);
}

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
        links[i].connection.handler = &memory_handler;
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
            pthread_create(&loop->thread, NULL, memory_loop_run, loop) != 0) {
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
    if (!slabs || slab_bytes < SLAB_BYTES_MIN || (slab_bytes & (slab_bytes - 1)))
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
        atomic_store(&e->requests, 0);
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
    visit_loops(memory, memory_call_end_export, e);
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
    visit_loops(memory, memory_call_take_slab, &taken);
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
    /* All of a device's connections on one thread: what comes on both is one wake-up.  Devices have different ones. */
    if (!atomic_load(&e->connections))
        e->loop = memory->next_loop++ % memory->config.threads;
    struct loop *loop = &memory->loops[e->loop];
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
    memory_tally(memory, ISW_MEMORY_connections, 1);
    memory_tally(memory, ISW_MEMORY_connections_total, 1);
    int result = mailbox_call(&loop->mailbox, memory_call_add, l);
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

int64_t isw_memory_export_requests(isw_memory *memory, uint32_t export_number)
{
    struct export *e = export_at(memory, export_number);
    return e ? atomic_load_explicit(&e->requests, memory_order_relaxed) : -ENOENT;
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
        mailbox_call(&loop->mailbox, memory_call_end, NULL);
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
