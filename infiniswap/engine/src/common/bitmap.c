#include "bitmap.h"

void bitmap_cut(struct bitmap *map, struct cutter *cutter, uint64_t numbers)
{
    map->levels = 0;
    do {
        numbers = (numbers + 63) / 64;
        map->words[map->levels] = numbers;
        map->word[map->levels++] = cut(cutter, numbers * sizeof(uint64_t));
    } while (numbers > 1);
}

void bitmap_set(struct bitmap *map, uint64_t number)
{
    for (uint32_t level = 0; level < map->levels; level++, number /= 64) {
        uint64_t was = map->word[level][number / 64];
        map->word[level][number / 64] = was | 1ull << (number % 64);
        if (was)
            return; /* known above */
    }
}

void bitmap_clear(struct bitmap *map, uint64_t number)
{
    for (uint32_t level = 0; level < map->levels; level++, number /= 64)
        if (map->word[level][number / 64] &= ~(1ull << (number % 64)))
            return;
}

uint64_t bitmap_next(const struct bitmap *map, uint64_t from)
{
    for (uint32_t level = 0; level < map->levels && from / 64 < map->words[level]; level++) {
        uint64_t at = from / 64, bits = map->word[level][at] & ~0ull << (from % 64);
        if (!bits) {
            from = at + 1;
            continue;
        }
        for (;;) {
            at = at * 64 + (uint64_t)__builtin_ctzll(bits);
            if (!level)
                return at;
            bits = map->word[--level][at];
        }
    }
    return BITMAP_NONE;
}
