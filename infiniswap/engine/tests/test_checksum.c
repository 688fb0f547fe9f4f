/* Proves: the checksum of a page is the same however the processor makes it, hangs on every bit of page and key, and is not
 * met by what keeps a CRC32C. */
#include "check.h"

#include "infiniswap_engine.h"

enum { PAGE = ISW_PAGE_BYTES, WAYS = ISW_CHECKSUM_AVX2 + 1 };

static struct isw_checksum_key key_of(uint64_t number)
{
    struct isw_checksum_key key;
    uint8_t seed[ISW_CHECKSUM_SEED_BYTES] = {0};
    memcpy(seed, &number, sizeof number);
    CHECK_EQUAL(isw_checksum_expand(seed, &key), 0);
    return key;
}

static void fill(struct chance *chance, uint8_t *page, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        page[i] = (uint8_t)chance_next(chance);
}

/* From an implementation in Python, with hashlib and numpy alone (tests/unit/engine/test_checksum.py). */
TEST(vectors)
{
    static uint8_t page[PAGE];
    uint8_t seed[ISW_CHECKSUM_SEED_BYTES] = {0};
    struct isw_checksum_key key;
    CHECK_EQUAL(isw_checksum_expand(seed, &key), 0);
    CHECK_EQUAL(isw_checksum(&key, page), 0xb87a7fa8);
    for (uint8_t i = 0; i < sizeof seed; i++)
        seed[i] = i;
    CHECK_EQUAL(isw_checksum_expand(seed, &key), 0);
    memset(page, 0xff, PAGE);
    CHECK_EQUAL(isw_checksum(&key, page), 0xd0d0429e);
    for (size_t i = 0; i < PAGE; i++)
        page[i] = (uint8_t)(i * 7 % 251);
    CHECK_EQUAL(isw_checksum(&key, page), 0x77a89f16);
}

/* Every way, every alignment; what does not exist here is what does. */
TEST(all_ways_are_the_same)
{
    static uint8_t data[2 * PAGE];
    struct chance chance = chance_start(0);
    for (uint32_t round = 0; round < 200; round++) {
        struct isw_checksum_key key = key_of(chance_next(&chance));
        fill(&chance, data, sizeof data);
        if (round % 3 == 0) /* sums that overflow everywhere, or nowhere */
            memset(data, round % 2 ? 0xff : 0, sizeof data);
        const uint8_t *page = data + chance_below(&chance, PAGE);
        uint32_t sum = isw_checksum(&key, page);
        for (int way = 0; way < WAYS; way++)
            CHECK_EQUAL(isw_checksum_by((enum isw_checksum_way)way, &key, page), sum);
    }
}

TEST(every_bit_counts)
{
    static uint8_t page[PAGE];
    struct chance chance = chance_start(0);
    struct isw_checksum_key key = key_of(1);
    for (int round = 0; round < 2; round++) {
        uint32_t sum = isw_checksum(&key, page);
        for (size_t bit = 0; bit < 8 * PAGE; bit++) {
            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK(isw_checksum(&key, page) != sum);
            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        fill(&chance, page, PAGE);
    }
}

static void swap(uint8_t *a, uint8_t *b, size_t bytes)
{
    uint8_t kept[PAGE];
    memcpy(kept, a, bytes);
    memcpy(a, b, bytes);
    memcpy(b, kept, bytes);
}

/* Pieces of every size a machine moves that stand in each other's place, that were not written, or that are shifted. */
TEST(accidents_are_found)
{
    static uint8_t page[PAGE], other[PAGE];
    struct chance chance = chance_start(0);
    struct isw_checksum_key key = key_of(2);
    fill(&chance, page, PAGE);
    uint32_t sum = isw_checksum(&key, page);
    for (size_t bytes = 2; bytes <= PAGE / 2; bytes *= 2)
        for (size_t at = 0; at + bytes < PAGE; at += bytes) {
            size_t with = chance_below(&chance, PAGE / (uint32_t)bytes) * bytes;
            memcpy(other, page, PAGE);
            swap(other + at, other + (with == at ? (at + bytes) % PAGE : with), bytes);
            CHECK(!memcmp(other, page, PAGE) || isw_checksum(&key, other) != sum);
            memcpy(other, page, PAGE);
            memset(other + at, 0, bytes);
            CHECK(!memcmp(other, page, PAGE) || isw_checksum(&key, other) != sum);
        }
    for (size_t by = 1; by < PAGE; by++) {
        memcpy(other, page + by, PAGE - by);
        memcpy(other + PAGE - by, page, by);
        CHECK(isw_checksum(&key, other) != sum);
    }
    memset(other, 0, PAGE);
    CHECK(isw_checksum(&key, other) != sum);
}

/* What is added is the polynomial itself, at every byte of a page. */
TEST(what_keeps_a_crc_is_found)
{
    static uint8_t page[PAGE];
    struct chance chance = chance_start(0);
    struct isw_checksum_key key = key_of(3);
    const uint64_t polynomial = 0x105ec76f1;
    fill(&chance, page, PAGE);
    uint32_t sum = isw_checksum(&key, page), crc = isw_crc32c(page, PAGE);
    for (size_t at = 0; at + 8 <= PAGE; at++) {
        for (int i = 0; i < 8; i++)
            page[at + (size_t)i] ^= (uint8_t)(polynomial >> 8 * i);
        CHECK_EQUAL(isw_crc32c(page, PAGE), crc);
        CHECK(isw_checksum(&key, page) != sum);
        for (int i = 0; i < 8; i++)
            page[at + (size_t)i] ^= (uint8_t)(polynomial >> 8 * i);
    }
}

/* Of any 8 bits of the checksums of two pages, one in 256 keys makes the same: 16 of 4,096, give or take. */
TEST(another_key_is_another_checksum)
{
    static uint8_t page[2][PAGE];
    uint32_t same[4] = {0};
    page[1][PAGE / 2] = 1;
    for (uint64_t number = 0; number < 4096; number++) {
        struct isw_checksum_key key = key_of(number);
        uint32_t difference = isw_checksum(&key, page[0]) ^ isw_checksum(&key, page[1]);
        for (uint32_t i = 0; i < 4; i++)
            same[i] += !(difference >> 8 * i & 0xff);
    }
    for (uint32_t i = 0; i < 4; i++)
        CHECK(same[i] > 2 && same[i] < 40);
}
