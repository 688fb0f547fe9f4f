/* Promotion. */
#ifndef ISW_OP_MOVE_H
#define ISW_OP_MOVE_H

#include "move_order.h"
#include "op.h"

struct slab;

struct slab_move { /* of a slab */
    uint32_t at; /* page at which it goes on; past the end: nothing to do */
    uint32_t singly, singly_end; /* pages from here to there are read one by one: some of them cannot be */
    bool listed;
    struct slab *next;
};

enum { MOVE_RUNS_MAX = 8 };

struct movers {
    struct slab *first, **end; /* slabs whose pages are to be looked at */
    struct move_order order;   /* pages that are next */
    uint32_t in_flight, pages; /* operations, and their pages */
    uint32_t runs;             /* of pages that lie near each other; below: the operations of each */
    uint32_t run[MOVE_RUNS_MAX];
};

static inline bool movers_wait(const struct movers *m)
{
    return m->first || !move_order_ended(&m->order);
}
void movers_start(struct device *d);
void movers_add(struct device *d, uint64_t page);
void op_move_run(struct device *d, struct op *op);
void op_move_transferred(struct device *d, struct transfer *transfer, int error);
void op_move_overdue(struct device *d, struct op *op);

#endif
