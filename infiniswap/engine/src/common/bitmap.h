/* A set of numbers in which the next one is found at once: a bit for each, and above them one for each 64 below. */
#ifndef ISW_BITMAP_H
#define ISW_BITMAP_H

#include "cutter.h"

#include <stdbool.h>
#include <stdint.h>

enum { BITMAP_LEVELS = 9 }; /* 64 to the 9th: more than a device has pages */
#define BITMAP_NONE UINT64_MAX

struct bitmap {
    uint64_t *word[BITMAP_LEVELS];
    uint64_t words[BITMAP_LEVELS];
    uint32_t levels;
};

void bitmap_cut(struct bitmap *map, struct cutter *cutter, uint64_t numbers); /* from 0 on; all clear */
void bitmap_set(struct bitmap *map, uint64_t number);
void bitmap_clear(struct bitmap *map, uint64_t number);
uint64_t bitmap_next(const struct bitmap *map, uint64_t from); /* the first from there on, or BITMAP_NONE */

static inline bool bitmap_has(const struct bitmap *map, uint64_t number)
{
    return map->word[0][number / 64] >> (number % 64) & 1;
}

#endif
