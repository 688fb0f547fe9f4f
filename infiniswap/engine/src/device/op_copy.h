/* Copying pages of a slab that moves. */
#ifndef ISW_OP_COPY_H
#define ISW_OP_COPY_H

#include "moving.h"
#include "op.h"

/* Begins with a run of pages; false: not now. */
bool op_copy_start(struct device *d, struct moving *m, uint64_t first, uint32_t pages);
void op_copy_transferred(struct device *d, struct transfer *transfer, int error);
void op_copy_overdue(struct device *d, struct op *op);

#endif
