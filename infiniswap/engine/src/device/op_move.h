/* Promotion. */
#ifndef ISW_OP_MOVE_H
#define ISW_OP_MOVE_H

#include "op.h"

struct slab;

struct slab_move { /* of a slab */
    uint32_t at; /* page at which it goes on; past the end: nothing to do */
    bool listed;
    struct slab *next;
};

struct movers {
    struct slab *first, **end;
    uint32_t in_flight;
};

void movers_start(struct device *d);
void movers_add(struct device *d, uint64_t page);
void op_move_run(struct device *d, struct op *op);
void op_move_transferred(struct device *d, struct transfer *transfer, int error);
void op_move_overdue(struct device *d, struct op *op);

#endif
