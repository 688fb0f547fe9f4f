/* TRIMs that a peer is owed. */
#ifndef ISW_TRIMS_H
#define ISW_TRIMS_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct slab;

struct slab_trim { /* its peer was not told of some pages that it need not keep: it is gone through once more */
    uint32_t at;
    bool listed;
    struct slab *next;
};

struct trims {
    struct slab *first, **end;
    uint32_t slabs;
};

/* The peer may free what it has of these pages of one slab, none of which is REMOTE; now, or when it can be told. */
void trims_send(struct device *d, uint64_t first, uint32_t pages);
void trims_owe(struct device *d, uint32_t slab);
void trims_run(struct device *d); /* with the tick */

#endif
