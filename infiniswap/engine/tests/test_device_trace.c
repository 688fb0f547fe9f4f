/* Proves: each answered request that took long enough is remembered with what it was and when it was where, the last
 * ISW_TRACES of them; readers beside the loop get whole entries or none. */
#include "rig.h"

#include <errno.h>
#include <pthread.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES };

static struct isw_trace traces[ISW_TRACES];

static void check_order(const struct isw_trace *t)
{
    CHECK(t->arrived_ns && t->arrived_ns <= t->done_ns);
    CHECK(!t->locked_ns || (t->arrived_ns <= t->locked_ns && t->locked_ns <= t->done_ns));
    CHECK(!t->begun_ns || (t->arrived_ns <= t->begun_ns && t->begun_ns <= t->done_ns));
    CHECK(!t->answered_ns || (t->begun_ns && t->begun_ns <= t->answered_ns && t->answered_ns <= t->done_ns));
}

/* The last request, which is the number-th. */
static struct isw_trace last(struct rig *rig, uint64_t number)
{
    CHECK_EQUAL(isw_device_traces(rig->device, number - 1, traces, ISW_TRACES), 1);
    CHECK_EQUAL(traces[0].number, number);
    check_order(&traces[0]);
    return traces[0];
}

TEST_ON_BOTH(each_kind_of_request)
{
    struct rig rig;
    struct client c;
    struct donor donor;
    static uint8_t page[PAGE];
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    CHECK_EQUAL(isw_device_traces(rig.device, 0, traces, ISW_TRACES), 0);

    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, PAGE, PAGE, NULL, page), 0);
    struct isw_trace t = last(&rig, 1);
    CHECK_EQUAL(t.command, NBD_CMD_READ);
    CHECK_EQUAL(t.source, ISW_SOURCE_ZERO);
    CHECK_EQUAL(t.offset, PAGE);
    CHECK_EQUAL(t.length, PAGE);
    CHECK(!t.locked_ns && !t.begun_ns && !t.answered_ns && t.peer == -1 && !t.error);

    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 0, PAGE, page, NULL), 0); /* not mapped: the backup */
    t = last(&rig, 2);
    CHECK_EQUAL(t.source, ISW_SOURCE_WRITE_BACKUP);
    CHECK(t.locked_ns && t.begun_ns && t.answered_ns && t.peer == -1);

    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, 0, PAGE, NULL, page), 0);
    t = last(&rig, 3);
    CHECK_EQUAL(t.source, ISW_SOURCE_BACKUP);
    CHECK(t.begun_ns && t.answered_ns && t.peer == -1);

    donor_open(&donor, SIZE, rig.config.slab_bytes);
    donor_attach(&donor, &rig, 0);
    CHECK_EQUAL(isw_device_slab_map(rig.device, 1, 0, 0), 0);
    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, 0, 1 << 20, PAGE, page, NULL), 0);
    t = last(&rig, 4);
    CHECK_EQUAL(t.source, ISW_SOURCE_WRITE_REMOTE);
    CHECK(t.locked_ns && t.begun_ns && t.answered_ns);
    CHECK_EQUAL(t.peer, 0);

    CHECK_EQUAL(client_call(&c, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    t = last(&rig, 5);
    CHECK_EQUAL(t.source, ISW_SOURCE_FLUSH);
    rig_await_backup(&rig);

    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, 1 << 20, PAGE, NULL, page), 0);
    t = last(&rig, 6);
    CHECK_EQUAL(t.source, ISW_SOURCE_REMOTE);
    CHECK_EQUAL(t.peer, 0);
    CHECK(t.begun_ns && t.answered_ns && !t.locked_ns);

    CHECK_EQUAL(client_call(&c, NBD_CMD_TRIM, 0, 0, PAGE, NULL, NULL), 0);
    t = last(&rig, 7);
    CHECK_EQUAL(t.command, NBD_CMD_TRIM);
    CHECK_EQUAL(t.source, ISW_SOURCES);

    const struct isw_histogram *peer = isw_device_peer_histograms(rig.device);
    for (uint32_t way = 0; way < 2; way++) { /* a page-in and a page-out */
        uint64_t sum = 0;
        for (uint32_t b = 0; b < ISW_HISTOGRAM_BUCKETS; b++)
            sum += peer[way].counts[b];
        CHECK_EQUAL(sum, 1);
    }
    client_close(&c);
    rig_stop(&rig);
    donor_close(&donor);
    rig_end(&rig);
}

TEST(the_last_ones_are_kept)
{
    struct rig rig;
    struct client c;
    static uint8_t page[PAGE];
    uint64_t all = ISW_TRACES + 100;
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    for (uint64_t i = 0; i < all; i++)
        CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, i % (SIZE / PAGE) * PAGE, PAGE, NULL, page), 0);
    CHECK_EQUAL(isw_device_traces(rig.device, 0, traces, ISW_TRACES), ISW_TRACES);
    for (uint64_t i = 0; i < ISW_TRACES; i++) {
        CHECK_EQUAL(traces[i].number, 101 + i);
        CHECK_EQUAL(traces[i].offset, (100 + i) % (SIZE / PAGE) * PAGE);
    }
    CHECK_EQUAL(isw_device_traces(rig.device, 0, traces, 7), 7); /* no more than wanted */
    CHECK_EQUAL(traces[0].number, 101);
    CHECK_EQUAL(isw_device_traces(rig.device, all - 3, traces, ISW_TRACES), 3);
    CHECK_EQUAL(isw_device_traces(rig.device, all, traces, ISW_TRACES), 0);
    CHECK_EQUAL(isw_device_traces(rig.device, UINT64_MAX, traces, ISW_TRACES), 0);
    client_close(&c);
    rig_stop(&rig);
    rig_end(&rig);
}

TEST(quick_ones_are_passed_over)
{
    struct rig rig;
    struct client c;
    static uint8_t page[PAGE];
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    isw_device_trace_least(rig.device, UINT64_MAX);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, 0, PAGE, NULL, page), 0);
    CHECK_EQUAL(isw_device_traces(rig.device, 0, traces, ISW_TRACES), 0);
    isw_device_trace_least(rig.device, 0);
    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, PAGE, PAGE, NULL, page), 0);
    CHECK_EQUAL(last(&rig, 1).offset, PAGE);
    client_close(&c);
    rig_stop(&rig);
    rig_end(&rig);
}

struct reader {
    isw_device *device;
    bool stop;
    uint64_t seen;
};

/* Every entry tells by its offset and length which request it was. */
static void *read_all(void *given)
{
    static struct isw_trace taken[ISW_TRACES];
    struct reader *r = given;
    bool ending = false;
    while (!ending) {
        ending = __atomic_load_n(&r->stop, __ATOMIC_ACQUIRE); /* once more after the end */
        uint32_t count = isw_device_traces(r->device, 0, taken, ISW_TRACES);
        uint64_t before = 0;
        for (uint32_t i = 0; i < count; i++) {
            CHECK(taken[i].number > before);
            before = taken[i].number;
            CHECK_EQUAL(taken[i].offset / PAGE, (taken[i].number - 1) % (SIZE / PAGE));
            CHECK_EQUAL(taken[i].length, 512 * (1 + (taken[i].number - 1) % 8));
            check_order(&taken[i]);
        }
        r->seen += count;
    }
    return NULL;
}

TEST(read_beside_the_loop)
{
    struct rig rig;
    struct client c;
    pthread_t thread;
    static uint8_t page[PAGE];
    rig_prepare(&rig, SIZE);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    struct reader reader = {.device = rig.device};
    CHECK_EQUAL(pthread_create(&thread, NULL, read_all, &reader), 0);
    for (uint64_t i = 0; i < 3 * ISW_TRACES; i++) /* one by one: answers have the order of the requests */
        CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, i % (SIZE / PAGE) * PAGE, (uint32_t)(512 * (1 + i % 8)), NULL, page), 0);
    __atomic_store_n(&reader.stop, true, __ATOMIC_RELEASE);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    CHECK(reader.seen >= ISW_TRACES);
    client_close(&c);
    rig_stop(&rig);
    rig_end(&rig);
}
