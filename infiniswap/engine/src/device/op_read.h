/* READ and BLOCK_STATUS. */
#ifndef ISW_OP_READ_H
#define ISW_OP_READ_H

#include "op.h"

void op_read_run(struct device *d, struct op *op);
uint32_t op_status_run(struct device *d, struct op *op, uint32_t pages_max); /* how many pages it looked at */

#endif
