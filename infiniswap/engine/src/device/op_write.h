/* WRITE. */
#ifndef ISW_OP_WRITE_H
#define ISW_OP_WRITE_H

#include "op.h"

void op_write_run(struct device *d, struct op *op);
void op_write_transferred(struct device *d, struct transfer *transfer, int error);
void op_write_disk_idle(struct device *d, struct op *op);
void op_write_overdue(struct device *d, struct transfer *transfer);
void op_write_orphan_ended(struct device *d, struct transfer *transfer);

#endif
