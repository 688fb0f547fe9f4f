/* Ranges to zero on the backup. */
#ifndef ISW_PUNCH_H
#define ISW_PUNCH_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct run;
struct slab;

struct slab_punch { /* of a slab */
    bool listed;
    bool under_way; /* a pass is: from at to end ... */
    uint32_t runs;  /* ... with so many in flight */
    uint32_t at, end;
    uint32_t from, to; /* where the next pass has something to look for; empty: there will be none */
    uint64_t epoch, next_epoch; /* of the oldest that either is about */
    uint64_t rest_ns; /* after a failure, until then */
    struct slab *next;
};

struct punches {
    struct slab *first, **end;
    bool more; /* there is more to look at, now */
    uint64_t failed_ns;
};

/* epoch: as of the oldest write that the zeroes take the place of. */
void punch_wanted(struct device *d, uint64_t page, uint64_t epoch);
void punch_some(struct device *d);
void punch_run_done(struct device *d, struct run *run, int error);

#endif
