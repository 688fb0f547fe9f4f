/* A closed-loop load on memcached over its UNIX socket: keys drawn evenly, 95 of 100 requests GET, the others SET (the mix that the
 * literature calls ETC: Atikoglu et al., SIGMETRICS 2012). Every value that comes is compared with what its key must hold.
 *
 * usage: memcached_load SOCKET KEYS VALUE_BYTES CLIENTS fill|SECONDS
 * Prints a JSON object on one line: operations, seconds, p50_us, p99_us. Exit code 1 when a value is missing or wrong. */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    CLIENTS_MAX = 64,
    VALUE_BYTES_MAX = 64 << 10,
    KEY_BYTES = 16, /* "key:" and twelve digits */
    LINE_BYTES = 128,
    SAMPLES_MAX = 1 << 24,
    SET_PERCENT = 5,
    WAIT_MS_MAX = 60000,
};

struct client {
    int fd;
    bool get;
    uint64_t key, began_ns;
    size_t have, out, sent;
    char in[LINE_BYTES + VALUE_BYTES_MAX], request[LINE_BYTES + VALUE_BYTES_MAX];
};

struct load {
    uint64_t keys, random, done, next_fill;
    size_t value_bytes;
    bool fill;
    uint32_t *samples_ns;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "memcached_load: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

/* xorshift64*: Vigna, ACM TOMS 42(4), 2016. */
static uint64_t draw(struct load *l)
{
    l->random ^= l->random >> 12;
    l->random ^= l->random << 25;
    l->random ^= l->random >> 27;
    return l->random * 0x2545F4914F6CDD1Dull;
}

/* A key's value: its own name over and over, so that one value cannot pass for another. */
static void make_value(char *to, size_t bytes, uint64_t key)
{
    char name[LINE_BYTES];
    snprintf(name, sizeof name, "key:%012" PRIu64, key);
    for (size_t i = 0; i < bytes; i++)
        to[i] = name[i % KEY_BYTES];
}

static void prepare(struct load *l, struct client *c)
{
    c->key = l->fill ? l->next_fill++ : draw(l) % l->keys;
    c->get = !l->fill && draw(l) % 100 >= SET_PERCENT;
    int head = c->get ? snprintf(c->request, LINE_BYTES, "get key:%012" PRIu64 "\r\n", c->key)
                      : snprintf(c->request, LINE_BYTES, "set key:%012" PRIu64 " 0 0 %zu\r\n", c->key, l->value_bytes);
    c->out = (size_t)head;
    if (!c->get) {
        make_value(c->request + head, l->value_bytes, c->key);
        memcpy(c->request + head + l->value_bytes, "\r\n", 2);
        c->out += l->value_bytes + 2;
    }
    c->sent = c->have = 0;
    c->began_ns = now_ns();
}

static void send_rest(struct client *c)
{
    while (c->sent < c->out) {
        ssize_t n = send(c->fd, c->request + c->sent, c->out - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            fail("memcached took no request");
        c->sent += (size_t)n;
    }
}

/* Whether the answer is whole; ends the program when it is not the right one. */
static bool answered(const struct load *l, const struct client *c)
{
    if (!c->get) {
        if (c->have >= 8 && memcmp(c->in, "STORED\r\n", 8))
            fail("memcached did not store a value");
        return c->have >= 8;
    }
    char head[LINE_BYTES];
    int head_bytes = snprintf(head, sizeof head, "VALUE key:%012" PRIu64 " 0 %zu\r\n", c->key, l->value_bytes);
    size_t whole = (size_t)head_bytes + l->value_bytes + 7;
    if (c->have >= 5 && !memcmp(c->in, "END\r\n", 5))
        fail("a value is missing: memcached has evicted it");
    if (c->have < whole)
        return false;
    const char *value = c->in + head_bytes;
    bool right = c->have == whole && !memcmp(c->in, head, (size_t)head_bytes) && !memcmp(value + l->value_bytes, "\r\nEND\r\n", 7);
    char expected[VALUE_BYTES_MAX];
    make_value(expected, l->value_bytes, c->key);
    if (!right || memcmp(value, expected, l->value_bytes))
        fail("a value is wrong");
    return true;
}

static bool receive(struct load *l, struct client *c)
{
    ssize_t n = recv(c->fd, c->in + c->have, sizeof c->in - c->have, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0)
        fail("memcached closed the connection");
    c->have += (size_t)n;
    errno = 0;
    if (!answered(l, c))
        return false;
    uint64_t took_ns = now_ns() - c->began_ns;
    l->samples_ns[l->done++ % SAMPLES_MAX] = took_ns > UINT32_MAX ? UINT32_MAX : (uint32_t)took_ns;
    return true;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        fail("the socket's path is too long");
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail(path);
    return fd;
}

/* Runs until the deadline, or until every key was set; returns the seconds that took. */
static double run(struct load *l, struct client *clients, uint32_t count, double seconds)
{
    struct epoll_event events[CLIENTS_MAX];
    int epoll = epoll_create1(0);
    uint64_t begun_ns = now_ns(), end_ns = begun_ns + (uint64_t)(seconds * 1e9);
    uint32_t busy = 0;
    if (epoll < 0)
        fail("epoll");
    for (uint32_t i = 0; i < count && (!l->fill || l->next_fill < l->keys); i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = i};
        prepare(l, &clients[i]);
        busy++;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, clients[i].fd, &event) < 0)
            fail("epoll");
    }
    while (busy) {
        int ready = epoll_wait(epoll, events, CLIENTS_MAX, WAIT_MS_MAX);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            fail("memcached does not answer");
        for (int i = 0; i < ready; i++) {
            struct client *c = &clients[events[i].data.u32];
            send_rest(c);
            while (receive(l, c)) {
                if (l->fill ? l->next_fill >= l->keys : now_ns() >= end_ns) {
                    busy--;
                    break;
                }
                prepare(l, c);
                send_rest(c);
            }
        }
    }
    close(epoll);
    return (double)(now_ns() - begun_ns) / 1e9;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        fail("usage: memcached_load SOCKET KEYS VALUE_BYTES CLIENTS fill|SECONDS");
    struct load l = {.keys = strtoull(argv[2], NULL, 10), .random = 0x9E3779B97F4A7C15ull, .value_bytes = strtoull(argv[3], NULL, 10)};
    uint32_t count = (uint32_t)strtoul(argv[4], NULL, 10);
    l.fill = !strcmp(argv[5], "fill");
    double seconds = l.fill ? 0 : strtod(argv[5], NULL);
    if (!l.keys || l.keys >= 1000000000000ull || !l.value_bytes || l.value_bytes > VALUE_BYTES_MAX || !count || count > CLIENTS_MAX)
        fail("a number is out of range");
    struct client *clients = calloc(count, sizeof *clients);
    l.samples_ns = malloc(sizeof *l.samples_ns * SAMPLES_MAX);
    if (!clients || !l.samples_ns)
        fail("no memory");
    for (uint32_t i = 0; i < count; i++)
        clients[i].fd = connect_to(argv[1]);
    double took_s = run(&l, clients, count, seconds);
    size_t samples = l.done < SAMPLES_MAX ? (size_t)l.done : SAMPLES_MAX;
    qsort(l.samples_ns, samples, sizeof *l.samples_ns, by_size);
    printf("{\"operations\": %" PRIu64 ", \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", l.done, took_s,
           l.samples_ns[samples / 2] / 1e3, l.samples_ns[samples * 99 / 100] / 1e3);
    free(l.samples_ns);
    free(clients);
    return 0;
}
