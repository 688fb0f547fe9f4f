/* Pages for a backup that wants to write them anew (backup.h). */
#ifndef ISW_OP_LEND_H
#define ISW_OP_LEND_H

#include "op.h"

struct loans {
    struct backup_loan *next; /* not looked at yet ... */
    uint32_t left;            /* ... so many */
    uint32_t in_flight, pages; /* operations, and pages of theirs */
    uint32_t overdue;          /* operations that a peer does not answer, and nobody waits for */
};

void loans_open(struct device *d);
void loans_run(struct device *d);
void op_lend_transferred(struct device *d, struct transfer *transfer, int error);
void op_lend_overdue(struct device *d, struct op *op);

static inline bool loans_out(const struct loans *l)
{
    return l->left || l->in_flight || l->overdue;
}

#endif
