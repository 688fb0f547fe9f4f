/* Proves that a bitmap finds the next number, whatever was set and cleared, against one byte a number. */
#include "check.h"

#include "bitmap.h"

#include <stdlib.h>

enum { PAGES_MAX = 300000 };

static uint8_t plain[PAGES_MAX];

static uint64_t plain_next(uint64_t pages, uint64_t from)
{
    while (from < pages && !plain[from])
        from++;
    return from < pages ? from : BITMAP_NONE;
}

static void live(struct chance *chance, uint64_t pages)
{
    struct bitmap map;
    struct cutter cutter = {0};
    bitmap_cut(&map, &cutter, pages);
    cutter = (struct cutter){.base = calloc(1, cutter.used)};
    CHECK(cutter.base);
    uint8_t *memory = cutter.base;
    bitmap_cut(&map, &cutter, pages);
    memset(plain, 0, pages);
    for (uint32_t i = 0; i < 3000; i++) {
        uint64_t page = chance_below(chance, pages), most = pages - page < 200 ? pages - page : 200, few = chance_below(chance, most + 1);
        bool set = chance_in(chance, 2);
        if (chance_in(chance, 20)) { /* to where somebody is, or was */
            uint64_t next = bitmap_next(&map, page);
            page = next == BITMAP_NONE ? page : next;
            few = 1;
        }
        for (uint64_t p = page; p < page + few; p++) {
            plain[p] = set;
            (set ? bitmap_set : bitmap_clear)(&map, p);
            CHECK_EQUAL(bitmap_has(&map, p), set);
        }
        uint64_t from = chance_below(chance, pages + 2);
        CHECK_EQUAL(bitmap_next(&map, from), plain_next(pages, from));
    }
    for (uint64_t page = 0; page < pages; page++)
        if (plain[page])
            bitmap_clear(&map, page);
    CHECK_EQUAL(bitmap_next(&map, 0), BITMAP_NONE);
    free(memory);
}

TEST(next_is_the_next)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 4095, 4096, 4097, 262143, 262144, 262145, PAGES_MAX};
    struct chance chance = chance_start(1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        live(&chance, sizes[i]);
}
