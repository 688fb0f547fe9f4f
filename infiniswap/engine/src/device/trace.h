/* The last requests that took long, for who wants to know where a slow one spent its time.  One writer, the loop; readers take no lock and
 * hold nobody up: an entry that is written while it is read is thrown away. */
#ifndef ISW_TRACE_H
#define ISW_TRACE_H

#include "infiniswap_engine.h"

#include <stdbool.h>

struct request;

enum { TRACE_ARRIVED, TRACE_LOCKED, TRACE_BEGUN, TRACE_ANSWERED, TRACE_DONE, TRACE_OFFSET, TRACE_REST, TRACE_WORDS };

struct trace_entry { /* a cache line */
    uint64_t number; /* 0: it is being written, or never was */
    uint64_t word[TRACE_WORDS];
};

struct trace {
    struct trace_entry *entry; /* [ISW_TRACES] */
    uint64_t count;            /* requests noted so far */
    uint64_t least_ns;         /* those that take less are not noted: see isw_device_trace_least */
};

static inline bool trace_wants(const struct trace *trace, uint64_t took_ns)
{
    return took_ns >= __atomic_load_n(&trace->least_ns, __ATOMIC_RELAXED);
}

void trace_note(struct trace *trace, const struct request *request, enum isw_source source, int error, uint64_t now_ns);
uint32_t trace_take(const struct trace *trace, uint64_t after, struct isw_trace *out, uint32_t most);

#endif
