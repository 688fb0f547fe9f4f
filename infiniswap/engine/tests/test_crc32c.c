/* Proves: CRC32C is the polynomial of RFC 3720 for every length and alignment, by each way that this processor has. */
#include "check.h"

#include "infiniswap_engine.h"

static uint32_t bitwise(const uint8_t *data, size_t bytes)
{
    uint32_t crc = ~0u;
    while (bytes--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* RFC 3720 B.4; bytes there are printed in the order sent. */
TEST(vectors_of_rfc_3720)
{
    uint8_t data[48];
    memset(data, 0, 32);
    CHECK_EQUAL(isw_crc32c(data, 32), 0x8a9136aa);
    memset(data, 0xff, 32);
    CHECK_EQUAL(isw_crc32c(data, 32), 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++)
        data[i] = i;
    CHECK_EQUAL(isw_crc32c(data, 32), 0x46dd794e);
    for (uint8_t i = 0; i < 32; i++)
        data[i] = (uint8_t)(31 - i);
    CHECK_EQUAL(isw_crc32c(data, 32), 0x113fdb5c);
    static const uint8_t read_pdu[48] = {0x01, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
                                         0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x00,
                                         0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00, 0x18, 0x28, 0x00, 0x00, 0x00,
                                         0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
    CHECK_EQUAL(isw_crc32c(read_pdu, sizeof read_pdu), 0xd9963a56);
    CHECK_EQUAL(isw_crc32c("123456789", 9), 0xe3069283);
    CHECK_EQUAL(isw_crc32c("", 0), 0);
}

static void check_by_all(const uint8_t *data, size_t bytes)
{
    uint32_t crc = bitwise(data, bytes);
    for (uint32_t way = ISW_CRC32C_TABLE; way <= isw_crc32c_best(); way++)
        if (isw_crc32c_by(way, data, bytes) != crc)
            FAIL("%zu bytes at %p, way %u: %08x instead of %08x", bytes, (const void *)data, way, isw_crc32c_by(way, data, bytes), crc);
    CHECK_EQUAL(isw_crc32c(data, bytes), crc);
}

TEST(every_length_and_alignment)
{
    static uint8_t data[3 * 4096];
    struct chance chance = chance_start(0);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)chance_next(&chance);
    for (size_t bytes = 0; bytes <= 1100; bytes++) /* vectors begin with 256 */
        check_by_all(data + bytes % 16, bytes);
    for (size_t at = 0; at < 16; at++)
        for (size_t bytes = 4070; bytes <= 4110; bytes++) /* around a page, where three streams begin */
            check_by_all(data + at, bytes);
    for (uint32_t i = 0; i < 200; i++) {
        size_t at = chance_below(&chance, 4096), bytes = chance_below(&chance, 8192);
        check_by_all(data + at, bytes);
    }
}

/* What the checksum is for: no single bit of a page can turn unnoticed. */
TEST(every_bit_counts)
{
    static uint8_t page[4096];
    for (uint32_t way = ISW_CRC32C_TABLE; way <= isw_crc32c_best(); way++) {
        uint32_t crc = isw_crc32c_by(way, page, sizeof page);
        for (size_t bit = 0; bit < 8 * sizeof page; bit += 7) {
            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK(isw_crc32c_by(way, page, sizeof page) != crc);
            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
}
