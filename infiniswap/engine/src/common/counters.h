/* Counters with one writer and any reader: relaxed atomics without a locked instruction. */
#ifndef ISW_COUNTERS_H
#define ISW_COUNTERS_H

#include <stdint.h>

static inline void count64(uint64_t *counter, uint64_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + by, __ATOMIC_RELAXED);
}

static inline void uncount64(uint64_t *counter, uint64_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) - by, __ATOMIC_RELAXED);
}

static inline void set64(uint64_t *counter, uint64_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

static inline void count32(uint32_t *counter, int32_t by)
{
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + (uint32_t)by, __ATOMIC_RELAXED);
}

static inline void set32(uint32_t *counter, uint32_t value)
{
    __atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

#endif
