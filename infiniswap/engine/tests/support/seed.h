/* What the checksums of the tests' pages are made with: the same in all of their states. */
#ifndef SEED_H
#define SEED_H

#include <stdint.h>

/* Puts it into a new state. */
void seed_state(void *state);
/* Of a page. */
uint32_t checksum_of(const void *page);

#endif
