/* Which pending page goes to the backup next, and which may wait. */
#ifndef ISW_SWEEP_H
#define ISW_SWEEP_H

#include <stdbool.h>
#include <stdint.h>

struct device;

struct sweep {
    bool on, wrapped; /* a pass is under way; it has come to the end of the device and goes on from its beginning */
    bool full;        /* half of the buffers were in use, and three eighths are still */
    bool hurrying;    /* somebody waits for what was queued up to ... */
    uint32_t hurry_ms; /* stands when that is over */
    uint32_t before_ms; /* the pass takes what was queued up to then */
    uint64_t from, at;  /* pages: where it began, where it is */
    uint32_t looks;     /* left in this round */
};

void sweep_hurry(struct device *d); /* all that is pending now is to go at once */
bool sweep_hurries(const struct device *d);
bool sweep_hurried(const struct device *d, uint32_t buffer); /* since it began to wait */
/* A pending buffer (index + 1) that is to go; 0: none, for now.  One that it returns is taken. */
uint32_t sweep_next(struct device *d);

#endif
