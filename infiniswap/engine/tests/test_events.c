/* Proves: the event ring keeps order, never grows, and says once that it had to drop news. */
#include "check.h"

#include "events.h"

#include <poll.h>
#include <pthread.h>

static bool readable(const struct event_ring *ring)
{
    struct pollfd wait = {.fd = ring->fd, .events = POLLIN};
    return poll(&wait, 1, 0) == 1;
}

static struct event_ring ring;

TEST(order_and_readiness)
{
    struct isw_event out[8];
    CHECK_EQUAL(event_ring_open(&ring), 0);
    CHECK(!readable(&ring));
    CHECK_EQUAL(event_take(&ring, out, 8), 0);
    for (uint64_t i = 0; i < 5; i++)
        event_post(&ring, (struct isw_event){.kind = ISW_EVENT_SLAB_TOUCHED, .peer = 1, .slab = 2, .value = i});
    CHECK(readable(&ring));
    CHECK_EQUAL(event_take(&ring, out, 3), 3);
    CHECK(readable(&ring)); /* there is more */
    CHECK_EQUAL(out[0].value, 0);
    CHECK(out[2].value == 2 && out[2].kind == ISW_EVENT_SLAB_TOUCHED && out[2].peer == 1 && out[2].slab == 2);
    CHECK_EQUAL(event_take(&ring, out, 8), 2);
    CHECK_EQUAL(out[1].value, 4);
    CHECK(!readable(&ring));
    event_ring_close(&ring);
}

TEST(overflow_is_told_once)
{
    static struct isw_event out[ISW_EVENTS + 8];
    CHECK_EQUAL(event_ring_open(&ring), 0);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint64_t i = 0; i < ISW_EVENTS + 100; i++)
            event_post(&ring, (struct isw_event){.kind = ISW_EVENT_MISMATCH, .value = i});
        CHECK_EQUAL(event_take(&ring, out, ISW_EVENTS + 8), ISW_EVENTS + 1);
        CHECK_EQUAL(out[0].kind, ISW_EVENT_OVERFLOW);
        for (uint32_t i = 0; i < ISW_EVENTS; i++)
            CHECK_EQUAL(out[i + 1].value, i);
        CHECK_EQUAL(event_take(&ring, out, 8), 0);
        CHECK(!readable(&ring));
    }
    event_ring_close(&ring);
}

static void *post_many(void *ignored)
{
    (void)ignored;
    for (uint64_t i = 1; i <= 20000; i++)
        event_post(&ring, (struct isw_event){.kind = ISW_EVENT_FLUSHED, .value = i});
    return NULL;
}

/* A reader that is told by the eventfd alone misses nothing that was not dropped, and never waits for what is there. */
TEST(reader_beside_writer)
{
    struct isw_event out[64];
    uint64_t last = 0;
    pthread_t writer;
    CHECK_EQUAL(event_ring_open(&ring), 0);
    CHECK(pthread_create(&writer, NULL, post_many, NULL) == 0);
    bool dropped = false;
    while (last < 20000) {
        struct pollfd wait = {.fd = ring.fd, .events = POLLIN};
        if (poll(&wait, 1, dropped ? 200 : 10000) != 1) {
            CHECK(dropped); /* the last ones may be among those dropped */
            break;
        }
        int count = event_take(&ring, out, 64);
        for (int i = 0; i < count; i++) {
            dropped = dropped || out[i].kind == ISW_EVENT_OVERFLOW;
            if (out[i].kind == ISW_EVENT_OVERFLOW)
                continue;
            CHECK(out[i].value > last && (dropped || out[i].value == last + 1));
            last = out[i].value;
        }
    }
    pthread_join(writer, NULL);
    event_ring_close(&ring);
}
