#include "sim_system.h"

#include <sys/epoll.h>

static struct sim_system *active;

struct sim_system *sim_system_active(void)
{
    return active;
}

void sim_system_open(struct sim_system *s, struct chance chance)
{
    CHECK(!active);
    s->now_ns = 1000000000;
    s->order = s->rounds = s->idle_rounds = s->kill_in = 0;
    s->events = s->descriptors = 0;
    s->poked = false;
    s->watched = UINT64_MAX;
    s->chance = chance;
    active = s;
}

void sim_system_close(struct sim_system *s)
{
    for (uint32_t i = 0; i < SIM_DESCRIPTORS; i++) {
        free(s->descriptor[i].in.data);
        free(s->descriptor[i].out.data);
        s->descriptor[i] = (struct sim_descriptor){0};
    }
    active = NULL;
}

void sim_point(struct sim_system *s)
{
    if (s->kill_in && --s->kill_in == 0)
        longjmp(s->killed, 1);
}

/* ---- what is to happen ---- */

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void swap(struct sim_event *a, struct sim_event *b)
{
    struct sim_event was = *a;
    *a = *b;
    *b = was;
}

void sim_at(struct sim_system *s, uint64_t at_ns, sim_function *function, void *owner, uint64_t number)
{
    CHECK(s->events < SIM_EVENTS);
    uint32_t i = s->events++;
    s->event[i] = (struct sim_event){at_ns > s->now_ns ? at_ns : s->now_ns, s->order++, function, owner, number};
    while (i && before(&s->event[i], &s->event[(i - 1) / 2])) {
        swap(&s->event[i], &s->event[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
}

static struct sim_event take_first(struct sim_system *s)
{
    struct sim_event first = s->event[0];
    s->event[0] = s->event[--s->events];
    for (uint32_t i = 0, child; (child = 2 * i + 1) < s->events; i = child) {
        if (child + 1 < s->events && before(&s->event[child + 1], &s->event[child]))
            child++;
        if (!before(&s->event[child], &s->event[i]))
            break;
        swap(&s->event[i], &s->event[child]);
    }
    return first;
}

bool sim_step(struct sim_system *s, uint64_t until_ns)
{
    if (!s->events || s->event[0].at_ns > until_ns) {
        s->now_ns = until_ns > s->now_ns ? until_ns : s->now_ns;
        return false;
    }
    struct sim_event event = take_first(s);
    s->now_ns = event.at_ns > s->now_ns ? event.at_ns : s->now_ns;
    event.function(event.owner, event.number);
    return true;
}

/* ---- descriptors ---- */

struct sim_descriptor *sim_descriptor_new(struct sim_system *s, int *fd)
{
    for (int i = 0; i < SIM_DESCRIPTORS; i++) {
        struct sim_descriptor *d = &s->descriptor[i];
        if (d->kind != SIM_FREE)
            continue;
        struct sim_bytes in = d->in, out = d->out; /* their memory is used again */
        in.start = in.end = out.start = out.end = 0;
        *d = (struct sim_descriptor){.in = in, .out = out};
        *fd = SIM_FD_FIRST + i;
        if (s->descriptors <= (uint32_t)i)
            s->descriptors = (uint32_t)i + 1;
        return d;
    }
    FAIL("the engine leaks descriptors");
}

struct sim_descriptor *sim_descriptor(struct sim_system *s, int fd)
{
    CHECK(fd >= SIM_FD_FIRST && fd < SIM_FD_FIRST + SIM_DESCRIPTORS);
    struct sim_descriptor *d = &s->descriptor[fd - SIM_FD_FIRST];
    CHECK(d->kind != SIM_FREE);
    return d;
}

static void free_if_done(struct sim_descriptor *d)
{
    if (d->closed && (d->kind != SIM_SOCKET || d->forgotten))
        d->kind = SIM_FREE;
}

void sim_descriptor_close(struct sim_system *s, struct sim_descriptor *d)
{
    CHECK(!d->closed);
    d->closed = true;
    d->watched = false;
    if (d->kind == SIM_SOCKET && !d->forgotten && d->moved)
        d->moved(d->owner, d->number);
    free_if_done(d);
    (void)s;
}

void sim_close_all(struct sim_system *s)
{
    for (int i = 0; i < SIM_DESCRIPTORS; i++)
        if (s->descriptor[i].kind != SIM_FREE && !s->descriptor[i].closed)
            sim_descriptor_close(s, &s->descriptor[i]);
}

void sim_bytes_add(struct sim_bytes *b, const void *data, size_t bytes)
{
    if (b->start == b->end)
        b->start = b->end = 0;
    if (b->end + bytes > b->room && b->start) {
        memmove(b->data, b->data + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + bytes > b->room) {
        b->room = 2 * (b->end + bytes);
        b->data = realloc(b->data, b->room);
        CHECK(b->data);
    }
    if (bytes)
        memcpy(b->data + b->end, data, bytes);
    b->end += bytes;
}

int sim_socket(struct sim_system *s, size_t out_most, sim_function *moved, void *owner, uint64_t number)
{
    int fd;
    struct sim_descriptor *d = sim_descriptor_new(s, &fd);
    d->kind = SIM_SOCKET;
    d->out_most = out_most;
    d->moved = moved;
    d->owner = owner;
    d->number = number;
    return fd;
}

void sim_deliver(struct sim_system *s, int fd, const uint8_t *data, size_t bytes)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    if (d->closed || !bytes)
        return;
    CHECK(!d->in_ended && !d->reset);
    sim_bytes_add(&d->in, data, bytes);
    d->edge = true;
}

void sim_deliver_end(struct sim_system *s, int fd, bool reset)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    d->in_ended = true;
    d->reset = d->reset || reset;
    d->edge = true;
}

size_t sim_sent(struct sim_system *s, int fd, const uint8_t **data)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    *data = d->out.data ? d->out.data + d->out.start : NULL;
    return d->out.end - d->out.start;
}

void sim_take(struct sim_system *s, int fd, size_t taken)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    d->out.start += taken;
    if (taken && d->blocked) {
        d->blocked = false;
        d->edge = true;
    }
}

bool sim_closed(struct sim_system *s, int fd)
{
    return sim_descriptor(s, fd)->closed;
}

void sim_forget(struct sim_system *s, int fd)
{
    struct sim_descriptor *d = sim_descriptor(s, fd);
    if (!d->closed)
        sim_deliver_end(s, fd, true);
    d->forgotten = true;
    free_if_done(d);
}
