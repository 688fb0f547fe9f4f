/* TRIM and WRITE_ZEROES. */
#ifndef ISW_OP_ZERO_H
#define ISW_OP_ZERO_H

#include "op.h"

struct zeroing {
    struct op *newest; /* TRIM that has begun ... */
    uint64_t begun;    /* ... and how many have ever */
};

void op_zero_begin(struct device *d, struct op *op);
uint32_t op_zero_run(struct device *d, struct op *op, uint32_t pages_max); /* how many pages it looked at */
bool op_zero_is_ahead(struct device *d, struct op *op); /* of that WRITE, which is parked at it */

#endif
