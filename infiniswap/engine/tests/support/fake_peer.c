#include "fake_peer.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINKS_MAX = 16, ANSWERS_MAX = 8192, RX_BYTES = 1 << 20 };

struct answer {
    uint32_t link, generation;
    uint64_t due_ns;
    uint8_t *bytes;
    size_t count, sent;
    bool then_close;
};

struct link {
    int fd; /* -1: free */
    uint32_t generation;
    uint8_t *rx;
    size_t have;
    bool early; /* the WRITE that is coming in has its answer already */
    struct answer sending; /* bytes NULL: none */
};

struct fake_peer {
    struct peer_manners manners;
    uint64_t size_bytes;
    uint8_t *memory;
    pthread_t thread;
    pthread_mutex_t lock; /* guards all that follows */
    struct chance chance;
    struct link link[LINKS_MAX];
    struct answer answer[ANSWERS_MAX];
    uint32_t answers;
    uint64_t requests;
    bool ending;
    int wake_fd;
};

static bool happens(struct fake_peer *p, atomic_uint *one_in)
{
    uint32_t n = atomic_load(one_in);
    return n && chance_in(&p->chance, n);
}

static void drop(struct answer *a)
{
    free(a->bytes);
    a->bytes = NULL;
}

static void shut(struct fake_peer *p, struct link *l)
{
    close(l->fd);
    l->fd = -1;
    l->generation++;
    l->have = 0;
    l->early = false;
    if (l->sending.bytes)
        drop(&l->sending);
    for (uint32_t i = 0; i < p->answers; i++) {
        if (&p->link[p->answer[i].link] != l)
            continue;
        drop(&p->answer[i]);
        p->answer[i--] = p->answer[--p->answers];
    }
}

static void queue_answer(struct fake_peer *p, struct link *l, uint64_t cookie, uint32_t error, const uint8_t *data,
                         uint32_t bytes)
{
    struct answer a = {.link = (uint32_t)(l - p->link), .generation = l->generation};
    uint32_t delay_us = atomic_load(&p->manners.delay_us_max);
    CHECK(p->answers < ANSWERS_MAX);
    a.due_ns = delay_us ? now_ns() + chance_below(&p->chance, delay_us) * 1000 : 0;
    if (happens(p, &p->manners.late_one_in))
        a.due_ns = (a.due_ns ? a.due_ns : now_ns()) + atomic_load(&p->manners.late_us) * 1000ull;
    a.count = NBD_SIMPLE_REPLY_BYTES + bytes;
    a.bytes = malloc(a.count);
    CHECK(a.bytes);
    if (happens(p, &p->manners.cookie_one_in))
        cookie ^= 1ull << chance_below(&p->chance, 64);
    nbd_put32(a.bytes, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(a.bytes + 4, error);
    memcpy(a.bytes + 8, &cookie, sizeof cookie);
    if (bytes)
        memcpy(a.bytes + NBD_SIMPLE_REPLY_BYTES, data, bytes);
    if (bytes && happens(p, &p->manners.corrupt_read_one_in))
        a.bytes[NBD_SIMPLE_REPLY_BYTES + chance_below(&p->chance, bytes)] ^= 0x10;
    if (happens(p, &p->manners.garbage_one_in))
        for (size_t i = 0; i < a.count && i < 64; i++)
            a.bytes[i] = (uint8_t)chance_next(&p->chance);
    if (happens(p, &p->manners.close_one_in)) {
        a.count = (size_t)chance_below(&p->chance, a.count);
        a.then_close = true;
    }
    p->answer[p->answers++] = a;
}

static void answer(struct fake_peer *p, struct link *l, uint64_t cookie, uint32_t error, const uint8_t *data, uint32_t bytes)
{
    if (happens(p, &p->manners.swallow_one_in))
        return;
    if (happens(p, &p->manners.duplicate_one_in))
        queue_answer(p, l, cookie, error, data, bytes);
    queue_answer(p, l, cookie, error, data, bytes);
}

/* Bytes of the request at the start of rx that were used up, 0: it is not all here. */
static size_t take(struct fake_peer *p, struct link *l)
{
    uint64_t cookie, offset = nbd_get64(l->rx + 16);
    uint32_t length = nbd_get32(l->rx + 24);
    uint16_t command = nbd_get16(l->rx + 6);
    bool write = command == NBD_CMD_WRITE;
    memcpy(&cookie, l->rx + 8, sizeof cookie);
    CHECK(nbd_get32(l->rx) == NBD_REQUEST_MAGIC && offset + length <= p->size_bytes && length <= 1 << 26);
    /* Only a write may be of part of a page, and only of one. */
    bool pages = offset % ISW_PAGE_BYTES == 0 && length % ISW_PAGE_BYTES == 0;
    CHECK(length && (pages || (write && offset / ISW_PAGE_BYTES == (offset + length - 1) / ISW_PAGE_BYTES)));
    if (write && !l->early && happens(p, &p->manners.early_one_in)) {
        l->early = true;
        queue_answer(p, l, cookie, 0, NULL, 0);
    }
    if (write && l->have < NBD_REQUEST_BYTES + (size_t)length)
        return 0;
    bool early = l->early;
    l->early = false;
    p->requests++;
    uint32_t error = happens(p, &p->manners.error_one_in) ? atomic_load(&p->manners.error) : 0;
    if (write && !error) {
        memcpy(p->memory + offset, l->rx + NBD_REQUEST_BYTES, length);
        if (happens(p, &p->manners.corrupt_write_one_in))
            p->memory[offset + chance_below(&p->chance, length)] ^= 0x20;
    } else if (command == NBD_CMD_TRIM && !error) {
        memset(p->memory + offset, 0, length);
    } else {
        CHECK(error || command == NBD_CMD_READ);
    }
    if (!early)
        answer(p, l, cookie, error, p->memory + offset, command == NBD_CMD_READ && !error ? length : 0);
    return NBD_REQUEST_BYTES + (write ? (size_t)length : 0);
}

static void receive(struct fake_peer *p, struct link *l)
{
    ssize_t got = recv(l->fd, l->rx + l->have, RX_BYTES - l->have, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return;
    if (got <= 0) {
        shut(p, l);
        return;
    }
    l->have += (size_t)got;
    size_t taken = 0;
    while (l->have >= NBD_REQUEST_BYTES && (taken = take(p, l))) {
        l->have -= taken;
        memmove(l->rx, l->rx + taken, l->have);
    }
}

static void send_due(struct fake_peer *p)
{
    uint64_t now = now_ns();
    if (atomic_load(&p->manners.mute))
        return;
    for (uint32_t i = 0; i < p->answers; i++) {
        struct link *l = &p->link[p->answer[i].link];
        if (l->sending.bytes || p->answer[i].due_ns > now)
            continue;
        l->sending = p->answer[i];
        memmove(&p->answer[i], &p->answer[i + 1], (--p->answers - i) * sizeof p->answer[0]);
        i--;
    }
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        struct link *l = &p->link[i];
        struct answer *a = &l->sending;
        if (l->fd < 0 || !a->bytes)
            continue;
        ssize_t sent = send(l->fd, a->bytes + a->sent, a->count - a->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            shut(p, l);
            continue;
        }
        a->sent += sent > 0 ? (size_t)sent : 0;
        if (a->sent < a->count)
            continue;
        bool then_close = a->then_close;
        drop(a);
        if (then_close)
            shut(p, l);
    }
}

static void *run(void *argument)
{
    struct fake_peer *p = argument;
    pthread_mutex_lock(&p->lock);
    while (!p->ending) {
        struct pollfd fds[LINKS_MAX + 1];
        bool deaf = atomic_load(&p->manners.deaf), busy = p->answers > 0 && !deaf;
        for (uint32_t i = 0; i < LINKS_MAX; i++) {
            bool sending = p->link[i].sending.bytes != NULL;
            busy = busy && !sending; /* then it is the socket that is waited for */
            fds[i] = (struct pollfd){.fd = deaf ? -1 : p->link[i].fd, .events = (short)(POLLIN | (sending ? POLLOUT : 0))};
        }
        fds[LINKS_MAX] = (struct pollfd){.fd = p->wake_fd, .events = POLLIN};
        pthread_mutex_unlock(&p->lock);
        poll(fds, LINKS_MAX + 1, busy && !atomic_load(&p->manners.delay_us_max) && !atomic_load(&p->manners.mute) ? 0 : 1);
        pthread_mutex_lock(&p->lock);
        eventfd_t ignored;
        if (fds[LINKS_MAX].revents)
            eventfd_read(p->wake_fd, &ignored);
        for (uint32_t i = 0; i < LINKS_MAX; i++)
            if (fds[i].revents && p->link[i].fd == fds[i].fd)
                receive(p, &p->link[i]);
        if (!deaf)
            send_due(p);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

struct fake_peer *fake_peer_open(uint64_t size_bytes, uint64_t chance_number)
{
    struct fake_peer *p = calloc(1, sizeof *p);
    CHECK(p);
    p->size_bytes = size_bytes;
    p->chance = chance_start(chance_number);
    p->memory = calloc(1, size_bytes);
    p->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(p->memory && p->wake_fd >= 0);
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        p->link[i].fd = -1;
        p->link[i].rx = malloc(RX_BYTES);
        CHECK(p->link[i].rx);
    }
    atomic_store(&p->manners.error, NBD_EIO);
    pthread_mutex_init(&p->lock, NULL);
    CHECK(pthread_create(&p->thread, NULL, run, p) == 0);
    return p;
}

void fake_peer_close(struct fake_peer *p)
{
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_mutex_unlock(&p->lock);
    eventfd_write(p->wake_fd, 1);
    pthread_join(p->thread, NULL);
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        if (p->link[i].fd >= 0)
            shut(p, &p->link[i]);
        free(p->link[i].rx);
    }
    close(p->wake_fd);
    pthread_mutex_destroy(&p->lock);
    free(p->memory);
    free(p);
}

struct peer_manners *fake_peer_manners(struct fake_peer *p)
{
    return &p->manners;
}

void fake_peer_attach(struct fake_peer *p, struct rig *rig, uint32_t number)
{
    int ends[2];
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < 2; i++) {
        int fds[2];
        uint32_t free_link = 0;
        while (free_link < LINKS_MAX && p->link[free_link].fd >= 0)
            free_link++;
        CHECK(free_link < LINKS_MAX);
        stream_pair(fds, i == 0, false);
        p->link[free_link].fd = fds[1];
        ends[i] = fds[0];
    }
    pthread_mutex_unlock(&p->lock);
    eventfd_write(p->wake_fd, 1);
    uint32_t count;
    const struct isw_peer_view *view = isw_device_peers(rig->device, &count);
    WAIT_UNTIL(__atomic_load_n(&view[number].attached, __ATOMIC_RELAXED) == 0); /* an end that hung up may not be noticed yet */
    CHECK_EQUAL(isw_device_peer_attach(rig->device, number, ends[0], ends[1]), 0);
}

uint64_t fake_peer_requests(struct fake_peer *p)
{
    pthread_mutex_lock(&p->lock);
    uint64_t requests = p->requests;
    pthread_mutex_unlock(&p->lock);
    return requests;
}

uint32_t fake_peer_waiting(struct fake_peer *p)
{
    pthread_mutex_lock(&p->lock);
    uint32_t answers = p->answers;
    pthread_mutex_unlock(&p->lock);
    return answers;
}

void fake_peer_hang_up(struct fake_peer *p)
{
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < LINKS_MAX; i++)
        if (p->link[i].fd >= 0)
            shut(p, &p->link[i]);
    pthread_mutex_unlock(&p->lock);
}

uint8_t fake_peer_byte(struct fake_peer *p, uint64_t at)
{
    pthread_mutex_lock(&p->lock);
    uint8_t byte = p->memory[at];
    pthread_mutex_unlock(&p->lock);
    return byte;
}
