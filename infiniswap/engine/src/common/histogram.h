/* Latency histogram: eight buckets an octave, so a bucket's edges lie at most 12.5 % apart. */
#ifndef ISW_HISTOGRAM_H
#define ISW_HISTOGRAM_H

#include "counters.h"
#include "infiniswap_engine.h"

static inline uint32_t histogram_bucket(uint64_t ns)
{
    if (ns < 8)
        return (uint32_t)ns;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(ns); /* >= 3 */
    uint32_t bucket = (octave - 2) * 8 + (uint32_t)((ns >> (octave - 3)) & 7);
    return bucket < ISW_HISTOGRAM_BUCKETS ? bucket : ISW_HISTOGRAM_BUCKETS - 1;
}

static inline void histogram_count(uint64_t *counts, uint64_t ns)
{
    count64(&counts[histogram_bucket(ns)], 1);
}

static inline void histogram_add(struct isw_histogram *histogram, uint64_t ns)
{
    histogram_count(histogram->counts, ns);
    count64(&histogram->total_ns, ns);
}

#endif
