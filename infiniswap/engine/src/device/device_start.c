/* The device's beginning and end: its memory, its pools, its threads. */
#include "backup.h"
#include "client.h"
#include "cutter.h"
#include "device.h"
#include "events.h"
#include "log.h"
#include "loop.h"
#include "pages.h"
#include "pool.h"
#include "prefetch.h"
#include "rdma.h"
#include "slab.h"
#include "state_sync.h"
#include "transport.h"
#include "unsynced.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int isw_state_layout(uint64_t size_bytes, uint64_t *intents_offset, uint64_t *pages_offset, uint64_t *total_bytes)
{
    if (!size_bytes || size_bytes % ISW_PAGE_BYTES || size_bytes > 1ull << 56)
        return -EINVAL;
    uint64_t mask = ISW_PAGE_BYTES - 1;
    *intents_offset = ISW_PAGE_BYTES;
    *pages_offset = (*intents_offset + ISW_OPS * sizeof(struct isw_intent) + mask) & ~mask;
    *total_bytes = (*pages_offset + size_bytes / ISW_PAGE_BYTES * sizeof(struct isw_page) + mask) & ~mask;
    return 0;
}

/* ---- memory: one mapping, cut up once ---- */

/* Twice: to measure, and to hand out. */
static void cut_arena(struct device *d, struct cutter *c)
{
    size_t large = (size_t)ISW_OP_PAGES_MAX * ISW_PAGE_BYTES;
    d->slab_views = cut(c, d->slabs * sizeof *d->slab_views);
    d->slab = cut(c, d->slabs * sizeof *d->slab);
    d->moves.slots = d->slab_pages * MOVING_MAX <= MOVING_SLAB_PAGES_MAX ? MOVING_MAX
                     : d->slab_pages * 2 >= MOVING_SLAB_PAGES_MAX       ? 2
                                                                        : MOVING_SLAB_PAGES_MAX / d->slab_pages;
    d->moves.slot = cut(c, d->moves.slots * sizeof *d->moves.slot);
    d->moves.marks = cut(c, (size_t)d->moves.slots * d->slab_pages / 8);
    d->peer_views = cut(c, d->config.peers_max * sizeof *d->peer_views);
    d->peer_histograms = cut(c, d->config.peers_max * sizeof *d->peer_histograms);
    d->trace.entry = cut(c, ISW_TRACES * sizeof *d->trace.entry);
    d->peers = cut(c, d->config.peers_max * sizeof *d->peers);
    d->clients = cut(c, d->config.connections_max * sizeof *d->clients);
    d->requests = cut(c, (ISW_OPS + d->config.connections_max) * sizeof *d->requests);
    d->ops = cut(c, ISW_OPS * sizeof *d->ops);
    d->transfers = cut(c, TRANSFERS * sizeof *d->transfers);
    d->sequence = cut(c, SEQUENCES * sizeof *d->sequence);
    d->checksum_key = cut(c, sizeof *d->checksum_key);
    /* From here to the end of buffer_data is what RDMA devices are let into. */
    d->probe_pages = cut(c, (size_t)d->config.peers_max * 2 * ISW_PAGE_BYTES);
    d->small_buffers = cut(c, ((size_t)SMALL_BUFFERS + d->config.connections_max) * ISW_PAGE_BYTES);
    d->large_buffers = cut(c, LARGE_BUFFERS * large);
    if (d->config.prefetch_floor_us)
        d->prefetch.data = cut(c, (size_t)PREFETCH_PAGES * ISW_PAGE_BYTES);
    if (d->config.seals) {
        d->seals.scratch = cut(c, ISW_PAGE_BYTES);
        d->seals.data = cut(c, (size_t)d->buffers * ISW_PAGE_BYTES);
    }
    d->buffer_data = cut(c, (size_t)d->buffers * ISW_PAGE_BYTES);
    d->buffer = cut(c, d->buffers * sizeof *d->buffer);
    bitmap_cut(&d->pool.buffers_left, c, d->buffers);
    bitmap_cut(&d->dirty.map, c, d->pages);
    d->writeback.runs = cut(c, d->config.backup_depth * sizeof *d->writeback.runs);
    move_order_cut(d, c);
    d->unsynced.run = cut(c, UNSYNCED_RUNS * sizeof *d->unsynced.run);
    if (d->config.prefetch_floor_us) {
        d->prefetch.trends = cut(c, sizeof *d->prefetch.trends);
        d->prefetch.guess = cut(c, PREFETCH_PAGES * sizeof *d->prefetch.guess);
        d->prefetch.bucket = cut(c, PREFETCH_BUCKETS * sizeof *d->prefetch.bucket);
    }
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        void *read_rx = cut(c, PEER_RX_BYTES), *write_rx = cut(c, PEER_RX_BYTES);
        if (!c->base)
            continue;
        d->peers[i] = (struct peer){.device = d, .number = i};
        d->peers[i].read = (struct peer_link){.peer = &d->peers[i], .tcp = {.fd = -1, .rx = read_rx}};
        d->peers[i].write = (struct peer_link){.peer = &d->peers[i], .tcp = {.fd = -1, .rx = write_rx}};
    }
    for (uint32_t i = 0; i < d->config.connections_max; i++) {
        void *memory = cut(c, nbd_connection_memory_bytes());
        if (!c->base)
            continue;
        nbd_connection_memory(&d->clients[i].connection, memory);
        d->clients[i].connection.handler = &device_handler;
        d->clients[i].connection.owner = d;
        d->clients[i].device = d;
    }
}

static void begin_empty(struct device *d)
{
    for (uint32_t i = 0; i < d->slabs; i++)
        d->slab_views[i].peer = -1;
    for (uint32_t i = 0; i < d->config.peers_max; i++)
        d->peer_views[i].attached = 0;
    d->hedging.due_ns = NEVER;
    d->schedule.runnable_end = &d->schedule.runnable;
    d->schedule.scanning_end = &d->schedule.scanning;
    d->schedule.transfer_waiters_end = &d->schedule.transfer_waiters;
    d->schedule.page_in_waiters_end = &d->schedule.page_in_waiters;
    d->turns.ready_end = &d->turns.ready;
    d->turns.line_end = &d->turns.line_first;
    d->late.end = &d->late.first;
    d->flush.waiting.end = &d->flush.waiting.first;
    d->flush.syncing.end = &d->flush.syncing.first;
    d->punches.end = &d->punches.first;
    d->movers.end = &d->movers.first;
    for (uint32_t i = d->moves.slots; i-- > 0;) {
        d->moves.slot[i] = (struct moving){.mark = d->moves.marks + (size_t)i * d->slab_pages / 64, .next = d->moves.free};
        d->moves.free = &d->moves.slot[i];
    }
    d->resync.end = &d->resync.first;
    d->forgetting.end = &d->forgetting.first;
    d->trims.end = &d->trims.first;
    d->page_ins.limit = d->config.backup_depth;
    d->watch.lowest = d->pages;
    set64(&d->counters[ISW_DEVICE_pending_limit_pages], d->buffers);
}

/* ---- start ---- */

static const char *wrong(const struct isw_device_config *c)
{
    uint64_t intents, pages, total;
    if (isw_state_layout(c->size_bytes, &intents, &pages, &total) < 0)
        return "size is no multiple of the page";
    if (c->slab_bytes < 1 << 20 || c->slab_bytes > 1 << 30 || (c->slab_bytes & (c->slab_bytes - 1)))
        return "slab size is no power of two between 1 MiB and 1 GiB";
    if ((c->size_bytes + c->slab_bytes - 1) / c->slab_bytes > 1u << 30)
        return "more than 2^30 slabs: take larger ones";
    if (c->pending_limit_bytes < 1 << 20 || c->pending_limit_bytes >= 1ull << 36)
        return "pending limit must be between 1 MiB and 64 GiB";
    if (!c->state || c->state_bytes < total)
        return "state file is too small";
    if (c->backup_depth < 1 || c->backup_depth > 256)
        return "backup depth must be 1 to 256";
    if (c->connections_max < 1 || c->connections_max > 1024 || c->peers_max < 1 || c->peers_max > ISW_PEERS_MAX)
        return "connections must be 1 to 1024, peers 1 to 64";
    if (!c->peer_timeout_ms || !c->client_stall_timeout_ms)
        return "time-outs must be above zero";
    if (c->backup_log && c->backup_log->geometry.pages != c->size_bytes / ISW_PAGE_BYTES)
        return "the backup's log is of another size";
    if (c->request_deadline_ms > c->peer_timeout_ms)
        return "the deadline of a request must not exceed the peer time-out";
    return NULL;
}

static struct backup *open_backup(const struct isw_device_config *c)
{
    uint32_t capacity = c->backup_log ? (uint32_t)LOG_INNER_CAPACITY : BACKUP_READS_MAX + c->backup_depth + 1;
    bool sparse = c->backup_sparse != 0;
    struct backup *backup = NULL;
    if (c->backup_engine != ISW_BACKUP_THREADS)
        backup = backup_uring_create(c->backup_fd, sparse, capacity);
    if (!backup && c->backup_engine != ISW_BACKUP_URING)
        backup = backup_threads_create(c->backup_fd, sparse, capacity);
    return backup && c->backup_log ? log_backup_create(c->backup_log, backup) : backup;
}

static void release(struct device *d)
{
    seals_close(d);
    if (d->backup)
        d->backup->methods->destroy(d->backup);
    if (d->epoll_fd >= 0)
        close(d->epoll_fd);
    if (d->events.fd >= 0)
        event_ring_close(&d->events);
    if (d->mailbox.event_fd >= 0)
        mailbox_destroy(&d->mailbox);
    if (d->arena)
        munmap(d->arena, d->arena_bytes);
    free(d);
}

isw_device *isw_device_start(const struct isw_device_config *config, char *error, size_t error_bytes)
{
    const char *problem = wrong(config);
    if (problem) {
        snprintf(error, error_bytes, "%s", problem);
        return NULL;
    }
    struct device *d = calloc(1, sizeof *d);
    if (!d) {
        snprintf(error, error_bytes, "out of memory");
        return NULL;
    }
    d->config = *config;
    if (config->backup_log)
        d->config.backup_depth = LOG_RUNS;
    d->epoll_fd = d->mailbox.event_fd = d->events.fd = -1;
    d->pages = config->size_bytes / ISW_PAGE_BYTES;
    d->slab_pages = (uint32_t)(config->slab_bytes / ISW_PAGE_BYTES);
    d->slab_shift = (uint32_t)__builtin_ctz(d->slab_pages);
    d->slabs = (uint32_t)((config->size_bytes + config->slab_bytes - 1) / config->slab_bytes);
    d->buffers = (uint32_t)(config->pending_limit_bytes / ISW_PAGE_BYTES);
    uint64_t intents_offset, pages_offset, total;
    isw_state_layout(config->size_bytes, &intents_offset, &pages_offset, &total);
    d->intents = (struct isw_intent *)(void *)((uint8_t *)config->state + intents_offset);
    d->page = (struct isw_page *)(void *)((uint8_t *)config->state + pages_offset);

    struct cutter cutter = {0};
    cut_arena(d, &cutter);
    d->arena_bytes = cutter.used;
    d->arena = mmap(NULL, d->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (d->arena == MAP_FAILED) {
        d->arena = NULL;
        snprintf(error, error_bytes, "cannot take %zu MiB of memory", d->arena_bytes >> 20);
        release(d);
        return NULL;
    }
    cutter = (struct cutter){.base = d->arena};
    cut_arena(d, &cutter);
    /* A page table walk less for each page that is written, and for the disk's driver one for 512; where that is not to be had, it is slower. */
    madvise(d->buffer_data, (size_t)d->buffers * ISW_PAGE_BYTES, MADV_HUGEPAGE);
    if (config->lock_memory && mlock(d->arena, d->arena_bytes) < 0) {
        snprintf(error, error_bytes, "cannot lock %zu MiB of memory: %s (raise the memlock limit)", d->arena_bytes >> 20,
                 strerror(errno));
        release(d);
        return NULL;
    }
    if (config->lock_memory && config->backup_log && mlock(config->backup_log->arena, config->backup_log->arena_bytes) < 0) {
        snprintf(error, error_bytes, "cannot lock the %zu MiB of the backup's map: %s (raise the memlock limit)",
                 config->backup_log->arena_bytes >> 20, strerror(errno));
        release(d);
        return NULL;
    }
    const struct isw_state_header *header = config->state;
    problem = isw_checksum_expand(header->checksum_seed, d->checksum_key) ? "libcrypto has no SHAKE256" : seals_open(d);
    if (problem) {
        snprintf(error, error_bytes, "%s", problem);
        release(d);
        return NULL;
    }
    pools_fill(d);
    prefetch_open(d);
    begin_empty(d);
    pages_recount(d);
    unsynced_open(d);
    state_sync_open(d);
    pthread_mutex_init(&d->stop.lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&d->stop.signal, &monotonic);
    pthread_condattr_destroy(&monotonic);
    d->backup = open_backup(config);
    if (!d->backup) {
        snprintf(error, error_bytes, "cannot start the backup's I/O: %s", strerror(errno));
        release(d);
        return NULL;
    }
    loans_open(d);
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (d->epoll_fd < 0 || mailbox_open(&d->mailbox) < 0 || event_ring_open(&d->events) < 0 ||
        loop_watch(d, d->mailbox.event_fd, LOOP_MAILBOX, 0) < 0 || loop_watch(d, d->backup->event_fd, LOOP_BACKUP, 0) < 0 ||
        pthread_create(&d->thread, NULL, loop_run, d) != 0) {
        snprintf(error, error_bytes, "cannot start the loop: too many files or threads?");
        release(d);
        return NULL;
    }
    return (isw_device *)d;
}

/* ---- stop ---- */

static int call_stop(void *owner, void *argument)
{
    struct device *d = owner;
    (void)argument;
    d->stop.begun = true;
    slabs_adoption_end(d);
    for (uint32_t i = 0; i < d->config.connections_max; i++)
        if (d->clients[i].used)
            client_make_ready(d, &d->clients[i]);
    return 0;
}

static int call_end(void *owner, void *argument)
{
    (void)argument;
    ((struct device *)owner)->stop.ending = true;
    return 0;
}

static struct device *inside(isw_device *device)
{
    return (struct device *)device;
}

int isw_device_stop(isw_device *device, uint32_t timeout_ms)
{
    struct device *d = inside(device);
    struct timespec until;
    int waited = 0;
    mailbox_call(&d->mailbox, call_stop, NULL);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&d->stop.lock);
    while (!d->stop.done && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&d->stop.signal, &d->stop.lock, &until);
    bool stopped = d->stop.done;
    pthread_mutex_unlock(&d->stop.lock);
    return stopped ? 0 : -ETIMEDOUT;
}

void isw_device_free(isw_device *device)
{
    struct device *d = inside(device);
    mailbox_call(&d->mailbox, call_end, NULL);
    pthread_join(d->thread, NULL);
    for (uint32_t i = 0; i < d->config.connections_max; i++)
        if (d->clients[i].used)
            close(d->clients[i].connection.fd);
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (peer->attached) {
            peer->transport->close(d, &peer->read);
            peer->transport->close(d, &peer->write);
        }
    }
    rdma_release(d->rdma);
    pthread_cond_destroy(&d->stop.signal);
    pthread_mutex_destroy(&d->stop.lock);
    release(d);
}
