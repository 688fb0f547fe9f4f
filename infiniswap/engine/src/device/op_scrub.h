/* Scrubbing. */
#ifndef ISW_OP_SCRUB_H
#define ISW_OP_SCRUB_H

#include "op.h"

struct scrub {
    bool running;
    bool verify;      /* nothing is changed */
    uint32_t told;    /* differences, in events */
    uint32_t pages_per_s, in_flight;
    uint64_t at;      /* page at which it goes on */
    uint64_t next_ns; /* when the rate allows more */
};

void scrub_begin(struct device *d, uint32_t pages_per_s, bool verify);
void scrub_run(struct device *d);
void op_scrub_transferred(struct device *d, struct transfer *transfer, int error);

#endif
