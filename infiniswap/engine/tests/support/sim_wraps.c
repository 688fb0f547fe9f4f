/* What the engine asks of the operating system, answered by the simulation (the linker wraps these; tests/run). */
#include "log_disk.h"
#include "sim_system.h"

#include "device.h"
#include "loop.h"

#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUND_NS_MAX = 8000, IDLE_ROUNDS_MAX = 20000 };

#define WRAPPED(type, name, ...)     \
    type __real_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__)

void *__real_mmap(void *, size_t, int, int, int, off_t);
int __real_munmap(void *, size_t);

static struct sim_system *simulated(int fd)
{
    return fd >= SIM_FD_FIRST ? sim_system_active() : NULL;
}

WRAPPED(int, clock_gettime, clockid_t clock, struct timespec *t)
{
    const struct sim_system *s = sim_system_active();
    const struct log_disk *disk = log_disk_present(); /* a log's own world */
    if (!s && !disk)
        return __real_clock_gettime(clock, t);
    uint64_t now_ns = s ? s->now_ns : disk->now_ns;
    *t = (struct timespec){(time_t)(now_ns / 1000000000), (long)(now_ns % 1000000000)};
    return 0;
}

/* ---- the thread: turns of its loop are taken where somebody waits for it ---- */

WRAPPED(int, pthread_create, pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument)
{
    struct sim_system *s = sim_system_active();
    if (!s)
        return __real_pthread_create(thread, attributes, function, argument);
    CHECK(function == loop_run);
    s->thread = argument;
    return 0;
}

WRAPPED(int, pthread_join, pthread_t thread, void **result)
{
    return sim_system_active() ? 0 : __real_pthread_join(thread, result);
}

static void turn(struct sim_system *s, pthread_mutex_t *mutex)
{
    pthread_mutex_unlock(mutex);
    loop_round(s->thread);
    pthread_mutex_lock(mutex);
}

WRAPPED(int, pthread_cond_wait, pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    struct sim_system *s = sim_system_active();
    if (!s)
        return __real_pthread_cond_wait(condition, mutex);
    turn(s, mutex);
    return 0;
}

WRAPPED(int, pthread_cond_timedwait, pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    struct sim_system *s = sim_system_active();
    if (!s)
        return __real_pthread_cond_timedwait(condition, mutex, until);
    if ((uint64_t)until->tv_sec * 1000000000u + (uint64_t)until->tv_nsec <= s->now_ns)
        return ETIMEDOUT;
    turn(s, mutex);
    return 0;
}

/* ---- descriptors ---- */

WRAPPED(int, close, int fd)
{
    struct sim_system *s = simulated(fd);
    if (!s)
        return __real_close(fd);
    sim_descriptor_close(s, sim_descriptor(s, fd));
    return 0;
}

WRAPPED(int, eventfd, unsigned int count, int flags)
{
    struct sim_system *s = sim_system_active();
    int fd;
    if (!s)
        return __real_eventfd(count, flags);
    struct sim_descriptor *d = sim_descriptor_new(s, &fd);
    d->kind = SIM_COUNTER;
    d->count = count;
    return fd;
}

WRAPPED(int, eventfd_write, int fd, eventfd_t value)
{
    struct sim_system *s = simulated(fd);
    if (!s)
        return __real_eventfd_write(fd, value);
    sim_descriptor(s, fd)->count += value;
    sim_descriptor(s, fd)->edge = true;
    return 0;
}

WRAPPED(int, eventfd_read, int fd, eventfd_t *value)
{
    struct sim_system *s = simulated(fd);
    if (!s)
        return __real_eventfd_read(fd, value);
    struct sim_descriptor *d = sim_descriptor(s, fd);
    *value = d->count;
    d->count = 0;
    errno = EAGAIN;
    return *value ? 0 : -1;
}

WRAPPED(int, setsockopt, int fd, int level, int name, const void *value, socklen_t bytes)
{
    return simulated(fd) ? 0 : __real_setsockopt(fd, level, name, value, bytes);
}

/* ---- the device's memory: taken once and cleared for the next one, for page faults would take most of the time ---- */

static struct {
    uint8_t *memory;
    size_t bytes;
    bool in_use;
} arena;

WRAPPED(void *, mmap, void *wanted, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (!sim_system_active() || !(flags & MAP_ANONYMOUS) || sim_system_active()->aside)
        return __real_mmap(wanted, bytes, protection, flags, fd, offset);
    CHECK(!arena.in_use);
    if (arena.memory && arena.bytes < bytes) {
        __real_munmap(arena.memory, arena.bytes);
        arena.memory = NULL;
    }
    if (!arena.memory) {
        arena.memory = __real_mmap(wanted, bytes, protection, flags, fd, offset);
        arena.bytes = bytes;
    }
    arena.in_use = true;
    return arena.memory;
}

WRAPPED(int, munmap, void *memory, size_t bytes)
{
    const struct sim_system *s = sim_system_active();
    if (!s || memory != arena.memory)
        return __real_munmap(memory, bytes);
    /* All but the read buffers, which need not be clear and lie at the same place in every device. */
    const struct device *d = s->thread;
    size_t large_bytes = (size_t)LARGE_BUFFERS * ISW_OP_PAGES_MAX * ISW_PAGE_BYTES;
    size_t pages_begin = (size_t)(d->small_buffers - arena.memory), pages_end = (size_t)(d->large_buffers - arena.memory) + large_bytes;
    memset(arena.memory, 0, pages_begin);
    memset(arena.memory + pages_end, 0, bytes - pages_end);
    arena.in_use = false;
    return 0;
}

/* ---- epoll ---- */

WRAPPED(int, epoll_create1, int flags)
{
    struct sim_system *s = sim_system_active();
    int fd;
    if (!s)
        return __real_epoll_create1(flags);
    sim_descriptor_new(s, &fd)->kind = SIM_EPOLL;
    return fd;
}

WRAPPED(int, epoll_ctl, int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    struct sim_system *s = simulated(fd);
    if (!s)
        return __real_epoll_ctl(epoll_fd, operation, fd, event);
    struct sim_descriptor *d = sim_descriptor(s, fd);
    d->watched = operation != EPOLL_CTL_DEL;
    d->once = event->events & EPOLLET;
    d->wanted = event->events;
    d->data = event->data.u64;
    d->edge = true;
    return 0;
}

static uint32_t ready_for(const struct sim_descriptor *d)
{
    if (d->kind == SIM_COUNTER)
        return d->count ? EPOLLIN : 0;
    uint32_t events = 0;
    if (d->in.end > d->in.start || d->in_ended)
        events |= EPOLLIN;
    if (d->out.end - d->out.start < d->out_most)
        events |= EPOLLOUT;
    if (d->in_ended)
        events |= EPOLLRDHUP;
    if (d->reset)
        events |= EPOLLERR | EPOLLHUP;
    return events & (d->wanted | EPOLLERR | EPOLLHUP);
}

static int collect(struct sim_system *s, struct epoll_event *events, int most)
{
    int count = 0;
    uint32_t begin = (uint32_t)chance_below(&s->chance, s->descriptors + 1); /* which comes first is nobody's promise */
    for (uint32_t i = 0; i < s->descriptors && count < most; i++) {
        struct sim_descriptor *d = &s->descriptor[(begin + i) % s->descriptors];
        if (!d->watched || (d->once && !d->edge))
            continue;
        uint32_t ready = ready_for(d);
        d->edge = false;
        if (ready)
            events[count++] = (struct epoll_event){.events = ready, .data.u64 = d->data};
    }
    return count;
}

WRAPPED(int, epoll_wait, int epoll_fd, struct epoll_event *events, int most, int timeout_ms)
{
    struct sim_system *s = simulated(epoll_fd);
    if (!s)
        return __real_epoll_wait(epoll_fd, events, most, timeout_ms);
    sim_point(s);
    s->rounds++;
    uint64_t until_ns = s->now_ns + 1 + chance_below(&s->chance, ROUND_NS_MAX);
    bool moved = false;
    while (sim_step(s, until_ns)) /* what has happened while the engine was at work */
        moved = true;
    until_ns = s->now_ns + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        int count = collect(s, events, most);
        s->idle_rounds = count || timeout_ms || moved ? 0 : s->idle_rounds + 1;
        if (s->idle_rounds > IDLE_ROUNDS_MAX)
            FAIL("the loop spins: %d rounds in which nothing happens", IDLE_ROUNDS_MAX);
        if (count || !timeout_ms || s->poked) {
            s->poked = false;
            return count;
        }
        if (!sim_step(s, until_ns))
            return 0;
    }
}

/* ---- sockets ---- */

static ssize_t receive(struct sim_system *s, int fd, const struct iovec *iov, size_t vectors)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    size_t got = 0;
    sim_point(s);
    CHECK(!d->closed);
    if (d->reset) {
        errno = ECONNRESET;
        return -1;
    }
    for (size_t i = 0; i < vectors; i++) {
        size_t here = d->in.end - d->in.start < iov[i].iov_len ? d->in.end - d->in.start : iov[i].iov_len;
        if (here)
            memcpy(iov[i].iov_base, d->in.data + d->in.start, here);
        d->in.start += here;
        got += here;
    }
    if (got || d->in_ended)
        return (ssize_t)got;
    errno = EAGAIN;
    return -1;
}

WRAPPED(ssize_t, recv, int fd, void *into, size_t bytes, int flags)
{
    struct sim_system *s = simulated(fd);
    struct iovec iov = {into, bytes};
    return s ? receive(s, fd, &iov, 1) : __real_recv(fd, into, bytes, flags);
}

WRAPPED(ssize_t, recvmsg, int fd, struct msghdr *message, int flags)
{
    struct sim_system *s = simulated(fd);
    return s ? receive(s, fd, message->msg_iov, message->msg_iovlen) : __real_recvmsg(fd, message, flags);
}

WRAPPED(ssize_t, sendmsg, int fd, const struct msghdr *message, int flags)
{
    struct sim_system *s = simulated(fd);
    if (!s)
        return __real_sendmsg(fd, message, flags);
    struct sim_descriptor *d = sim_descriptor(s, fd);
    size_t sent = 0;
    sim_point(s);
    CHECK(!d->closed);
    if (d->reset || d->forgotten) {
        errno = EPIPE;
        return -1;
    }
    for (size_t i = 0; i < message->msg_iovlen; i++) {
        const struct iovec *v = &message->msg_iov[i];
        size_t room = d->out_most - (d->out.end - d->out.start), here = v->iov_len < room ? v->iov_len : room;
        if (here)
            sim_bytes_add(&d->out, v->iov_base, here);
        sent += here;
        if (here < v->iov_len) {
            d->blocked = true;
            break;
        }
    }
    if (!sent) {
        errno = EAGAIN;
        return -1;
    }
    if (d->moved)
        d->moved(d->owner, d->number);
    return (ssize_t)sent;
}

/* ---- places where the engine may be killed: the page table is changed in several steps ---- */

static void page_changes(const struct device *d, uint64_t page, uint32_t meta)
{
    struct sim_system *s = sim_system_active();
    if (!s)
        return;
    sim_point(s);
    if (page == s->watched)
        fprintf(stderr, "%10.6f         page %llu: %08x -> %08x, slab is %u\n", (double)(s->now_ns - 1000000000) / 1e9,
                (unsigned long long)page, d->page[page].meta, meta, d->slab_views[slab_of(d, page)].state);
}

/* A seal is stored in more than one step: a kill may leave half of it. */
WRAPPED(void, seal_commit, struct device *d, struct op *op, uint32_t at)
{
    struct sim_system *s = sim_system_active();
    if (s && d->seals.sealer && s->kill_in) {
        sim_point(s);
        memcpy(&d->seals.page[op->first + at], &d->seals.intent[op->tag][at], sizeof(struct isw_seal) / 2);
        sim_point(s);
    }
    __real_seal_commit(d, op, at);
}

/* No serial may be taken twice for one key, whatever the process was killed at. */
WRAPPED(int, isw_sealer_seal, isw_sealer *sealer, uint64_t page, uint64_t serial, const uint8_t *plain, uint8_t *sealed, uint8_t *tag)
{
    struct sim_system *s = sim_system_active();
    if (s) {
        sim_point(s);
        if (serial <= s->last_serial)
            FAIL("serial %llu is taken again, the last one was %llu", (unsigned long long)serial, (unsigned long long)s->last_serial);
        s->last_serial = serial;
    }
    int result = __real_isw_sealer_seal(sealer, page, serial, plain, sealed, tag);
    if (s)
        sim_point(s);
    return result;
}

WRAPPED(void, page_set_flags, struct device *d, uint64_t page, uint32_t set, uint32_t clear)
{
    page_changes(d, page, (d->page[page].meta & ~clear) | set);
    __real_page_set_flags(d, page, set, clear);
}

WRAPPED(void, page_set_remote, struct device *d, uint64_t page, uint32_t sum, uint32_t clear)
{
    page_changes(d, page, (d->page[page].meta & ~clear) | ISW_PAGE_REMOTE);
    __real_page_set_remote(d, page, sum, clear);
}
