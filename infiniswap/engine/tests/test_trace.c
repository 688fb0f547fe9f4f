/* Proves: an entry of the ring that is written anew while it is read is never taken for a whole one. */
#include "trace.h"

#include "check.h"
#include "client.h"

#include <pthread.h>

static struct isw_trace traces[16];

struct writer {
    struct trace trace;
    bool stop;
};

/* As fast as it can, so that who reads the oldest entries has them rewritten under him. */
static void *write_all(void *given)
{
    struct writer *w = given;
    for (uint64_t n = 1; !__atomic_load_n(&w->stop, __ATOMIC_RELAXED); n++) {
        struct request request = {.started_ns = n, .locked_ns = n, .begun_ns = n, .answered_ns = n, .offset = n};
        trace_note(&w->trace, &request, ISW_SOURCE_REMOTE, 0, n);
    }
    return NULL;
}

TEST(entries_are_whole)
{
    static struct trace_entry entries[ISW_TRACES];
    struct writer writer = {.trace = {.entry = entries}};
    pthread_t thread;
    uint64_t seen = 0;
    CHECK_EQUAL(pthread_create(&thread, NULL, write_all, &writer), 0);
    while (seen < 20000000) {
        uint32_t count = trace_take(&writer.trace, 0, traces, 16); /* the oldest, which are the next to go */
        for (uint32_t i = 0; i < count; i++) {
            const struct isw_trace *t = &traces[i];
            uint64_t n = t->number;
            CHECK(t->arrived_ns == n && t->locked_ns == n && t->begun_ns == n && t->answered_ns == n);
            CHECK(t->done_ns == n && t->offset == n);
        }
        seen += count;
    }
    __atomic_store_n(&writer.stop, true, __ATOMIC_RELAXED);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
}
