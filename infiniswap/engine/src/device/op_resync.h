/* Resync. */
#ifndef ISW_OP_RESYNC_H
#define ISW_OP_RESYNC_H

#include "op.h"

struct slab;

struct slab_resync { /* of a slab */
    uint32_t at;
    bool listed;
    struct slab *next;
};

struct resync {
    struct slab *first, **end;
    uint32_t slabs, in_flight;
    uint32_t buffers; /* with its operations, or waiting for the backup */
    bool more;        /* there is more to look at, now */
    bool held;        /* pages wait for resync, so this epoch is not over: */
    uint64_t epoch;
};

void resync_start(struct device *d);
void resync_add(struct device *d, uint32_t slab);
void op_resync_transferred(struct device *d, struct transfer *transfer, int error);
void op_resync_overdue(struct device *d, struct op *op);

#endif
