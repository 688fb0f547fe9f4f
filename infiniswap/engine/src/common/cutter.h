/* Memory that is taken once, in one mapping, and cut up: the same function runs twice, to measure and to hand out. */
#ifndef ISW_CUTTER_H
#define ISW_CUTTER_H

#include "infiniswap_engine.h"

#include <stddef.h>
#include <stdint.h>

struct cutter {
    uint8_t *base; /* NULL: only measuring */
    size_t used;
};

/* The next bytes, from a page's beginning on. */
static inline void *cut(struct cutter *c, size_t bytes)
{
    void *at = c->base ? c->base + c->used : NULL;
    c->used += (bytes + ISW_PAGE_BYTES - 1) & ~(size_t)(ISW_PAGE_BYTES - 1);
    return at;
}

#endif
