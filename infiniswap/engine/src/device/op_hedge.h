/* Asking another copy, too. */
#ifndef ISW_OP_HEDGE_H
#define ISW_OP_HEDGE_H

#include "op.h"

bool op_hedge(struct device *d, struct transfer *transfer);
void op_hedge_run(struct device *d, struct op *op);
void op_hedge_transferred(struct device *d, struct transfer *transfer, int error);
void op_unhedge(struct op *op); /* it has all it wanted */

#endif
