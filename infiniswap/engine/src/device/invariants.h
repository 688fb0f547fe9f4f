/* What must hold, whatever happens.  Where it does not, a test build ends at once; any other counts it, tells it once, and
 * goes on: a device that holds somebody's pages is not stopped for an error of its own accounts. */
#ifndef ISW_INVARIANTS_H
#define ISW_INVARIANTS_H

#include "infiniswap_engine.h"

#include <stdbool.h>

struct device;

struct invariants {
    uint64_t page;   /* where the next round's look begins */
    uint32_t buffer; /* the same, among pending buffers */
    bool told;
};

/* where: the page, slab, buffer or epoch that it is about. */
void invariant_broken(struct device *d, enum isw_invariant which, uint64_t where) __attribute__((cold, noinline));

/* Returns what it is given, for who can go on without. */
static inline bool must_hold(struct device *d, bool holds, enum isw_invariant which, uint64_t where)
{
    if (__builtin_expect(!holds, 0))
        invariant_broken(d, which, where);
    return holds;
}

/* Between two rounds of the loop: what is wrong with the page or the pending buffer, or NULL. */
const char *page_wrong(const struct device *d, uint64_t page);
const char *buffer_wrong(const struct device *d, uint32_t buffer);

#ifdef ISW_CHECKED
/* After each round, at some of the pages and buffers. */
void invariants_check(struct device *d);
#endif

#endif
