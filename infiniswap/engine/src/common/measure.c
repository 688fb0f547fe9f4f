/* How long reads of 4 KiB take, through a negotiated NBD connection or from a file: for tools, not for the data path.  In C,
 * because a loop in Python would add more to a page than a fast disk takes for it. */
#include "histogram.h"
#include "infiniswap_engine.h"
#include "nbd_wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    REPLY_BYTES = NBD_SIMPLE_REPLY_BYTES + ISW_PAGE_BYTES,
    SILENCE_MS = 10000, /* a server that says nothing for so long has failed */
    TURN_MS = 100,      /* how soon a stop is seen */
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool stopped(const int32_t *stop)
{
    return __atomic_load_n(stop, __ATOMIC_RELAXED);
}

/* ---- NBD ---- */

struct asking {
    int fd;
    const uint64_t *offsets;
    uint32_t count, depth, out;
    uint64_t asked, begun_ns, ends_ns;
    const int32_t *stop;
    struct isw_measured *found;
    uint64_t sent_ns[ISW_MEASURE_DEPTH_MAX];
    uint8_t requests[ISW_MEASURE_DEPTH_MAX * NBD_REQUEST_BYTES];
    uint8_t replies[ISW_MEASURE_DEPTH_MAX * REPLY_BYTES];
};

static int wait_for(int fd, short events, uint64_t silent_since_ns)
{
    struct pollfd one = {.fd = fd, .events = events};
    int ready = poll(&one, 1, TURN_MS);
    if (ready < 0 && errno != EINTR)
        return -errno;
    return ready <= 0 && now_ns() - silent_since_ns > SILENCE_MS * 1000000ull ? -ETIMEDOUT : 0;
}

static int send_all(int fd, const uint8_t *at, size_t left)
{
    uint64_t since_ns = now_ns();
    while (left) {
        ssize_t sent = send(fd, at, left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (sent > 0) {
            at += sent;
            left -= (size_t)sent;
            continue;
        }
        int result = wait_for(fd, POLLOUT, since_ns);
        if (result)
            return result;
    }
    return 0;
}

static void put_request(struct asking *a, uint8_t *at, uint32_t slot)
{
    nbd_put32(at, NBD_REQUEST_MAGIC);
    nbd_put16(at + 4, 0);
    nbd_put16(at + 6, NBD_CMD_READ);
    nbd_put64(at + 8, slot);
    nbd_put64(at + 16, a->offsets[a->asked % a->count]);
    nbd_put32(at + 24, ISW_PAGE_BYTES);
    a->asked++;
    a->out++;
}

/* One whole reply: its place becomes free, and is used again while there is time. */
static int take_reply(struct asking *a, const uint8_t *at, uint64_t at_ns, size_t *more)
{
    uint64_t slot = nbd_get64(at + 8);
    if (nbd_get32(at) != NBD_SIMPLE_REPLY_MAGIC || slot >= a->depth || !a->sent_ns[slot])
        return -EPROTO;
    if (nbd_get32(at + 4))
        return -EIO;
    histogram_count(a->found->histogram, at_ns - a->sent_ns[slot]);
    a->found->reads++;
    a->sent_ns[slot] = 0;
    a->out--;
    if (at_ns < a->ends_ns && !stopped(a->stop)) {
        put_request(a, a->requests + *more, (uint32_t)slot);
        *more += NBD_REQUEST_BYTES;
    }
    return 0;
}

static int send_requests(struct asking *a, size_t bytes)
{
    uint64_t at_ns = now_ns();
    for (size_t i = 0; i < bytes; i += NBD_REQUEST_BYTES)
        a->sent_ns[nbd_get64(a->requests + i + 8)] = at_ns;
    return bytes ? send_all(a->fd, a->requests, bytes) : 0;
}

/* The connection is left without anything out, unless it failed. */
static int ask(struct asking *a)
{
    size_t have = 0, more = 0;
    for (uint32_t slot = 0; slot < a->depth; slot++, more += NBD_REQUEST_BYTES)
        put_request(a, a->requests + more, slot);
    int result = send_requests(a, more);
    uint64_t heard_ns = now_ns();
    while (!result && a->out) {
        /* Asked for before it is waited for: the first try usually waits in the kernel, as a page fault does. */
        ssize_t got = recv(a->fd, a->replies + have, sizeof a->replies - have, 0);
        if (!got)
            return -ECONNRESET;
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        uint64_t at_ns = now_ns();
        if (got < 0) {
            if (at_ns - heard_ns > SILENCE_MS * 1000000ull)
                return -ETIMEDOUT;
            continue;
        }
        heard_ns = at_ns;
        have += (size_t)got;
        size_t used = 0;
        more = 0;
        /* An error has no payload, and ends all. */
        while (!result && have - used >= NBD_SIMPLE_REPLY_BYTES && (have - used >= REPLY_BYTES || nbd_get32(a->replies + used + 4))) {
            result = take_reply(a, a->replies + used, at_ns, &more);
            used += REPLY_BYTES;
        }
        if (result)
            return result;
        have -= used;
        memmove(a->replies, a->replies + used, have);
        a->found->elapsed_ns = at_ns - a->begun_ns;
        result = send_requests(a, more);
    }
    return result;
}

int isw_measure_nbd(int fd, const uint64_t *offsets, uint32_t count, uint32_t depth, uint32_t limit_ms, const int32_t *stop,
                    struct isw_measured *found)
{
    struct timeval turn = {.tv_usec = TURN_MS * 1000};
    if (!count || !depth || depth > ISW_MEASURE_DEPTH_MAX)
        return -EINVAL;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &turn, sizeof turn))
        return -errno;
    struct asking *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    *a = (struct asking){.fd = fd, .offsets = offsets, .count = count, .depth = depth, .stop = stop, .found = found};
    *found = (struct isw_measured){0};
    a->begun_ns = now_ns();
    a->ends_ns = a->begun_ns + limit_ms * 1000000ull;
    int result = ask(a);
    free(a);
    return result;
}

/* ---- files: a thread for each read that is out ---- */

struct reading {
    int fd, result;
    const uint64_t *offsets;
    uint32_t count;
    uint64_t *next, ends_ns;
    const int32_t *stop;
    pthread_t thread;
    struct isw_measured found;
};

static void *read_pages(void *context)
{
    struct reading *r = context;
    void *page = NULL;
    if (posix_memalign(&page, ISW_PAGE_BYTES, ISW_PAGE_BYTES)) {
        r->result = -ENOMEM;
        return NULL;
    }
    uint64_t from_ns = now_ns();
    while (from_ns < r->ends_ns && !stopped(r->stop)) {
        uint64_t turn = __atomic_fetch_add(r->next, 1, __ATOMIC_RELAXED);
        ssize_t got = pread(r->fd, page, ISW_PAGE_BYTES, (off_t)r->offsets[turn % r->count]);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != ISW_PAGE_BYTES) {
            r->result = got < 0 ? -errno : -EIO;
            break;
        }
        uint64_t to_ns = now_ns();
        histogram_count(r->found.histogram, to_ns - from_ns);
        r->found.reads++;
        from_ns = to_ns;
    }
    free(page);
    return NULL;
}

static int add_up(struct reading *readers, uint32_t count, struct isw_measured *found)
{
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        found->reads += readers[i].found.reads;
        for (uint32_t b = 0; b < ISW_HISTOGRAM_BUCKETS; b++)
            found->histogram[b] += readers[i].found.histogram[b];
        if (!result)
            result = readers[i].result;
    }
    return result;
}

int isw_measure_file(int fd, const uint64_t *offsets, uint32_t count, uint32_t depth, uint32_t limit_ms, const int32_t *stop,
                     struct isw_measured *found)
{
    if (!count || !depth || depth > ISW_MEASURE_DEPTH_MAX)
        return -EINVAL;
    struct reading *readers = calloc(depth, sizeof *readers);
    if (!readers)
        return -ENOMEM;
    uint64_t next = 0, begun_ns = now_ns();
    uint32_t begun = 0;
    int result = 0;
    *found = (struct isw_measured){0};
    for (; begun < depth && !result; begun += !result) {
        readers[begun] = (struct reading){.fd = fd, .offsets = offsets, .count = count, .next = &next, .stop = stop};
        readers[begun].ends_ns = begun_ns + limit_ms * 1000000ull;
        result = -pthread_create(&readers[begun].thread, NULL, read_pages, &readers[begun]);
    }
    for (uint32_t i = 0; i < begun; i++)
        pthread_join(readers[i].thread, NULL);
    found->elapsed_ns = now_ns() - begun_ns;
    int failed = add_up(readers, begun, found);
    free(readers);
    return result ? result : failed;
}
