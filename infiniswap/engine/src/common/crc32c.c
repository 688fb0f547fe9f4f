/* CRC32C (Castagnoli polynomial, RFC 3720 B.4): SSE4.2 or ARMv8 instructions where the processor has them, else a table.
 *
 * The crc instruction takes 3 cycles but starts one each cycle, so three streams run side by side and are joined by
 * shifting a CRC over the bytes that follow it, which is a linear map kept as four tables of 256 (one for each stream
 * length).  Tables are built by the constructor, before any thread exists. */
#include "infiniswap_engine.h"

#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

enum { POLYNOMIAL = 0x82f63b78u, STREAM_BYTES = 1360 }; /* 3 * 1360 + 16 = one page */

static uint32_t byte_table[256];
static uint32_t shift_tables[4][256]; /* over STREAM_BYTES zero bytes */

static uint32_t crc_table_run(uint32_t crc, const uint8_t *data, size_t bytes)
{
    while (bytes--)
        crc = byte_table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
    return crc;
}

__attribute__((constructor)) static void build_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
        byte_table[i] = crc;
    }
    static const uint8_t zeroes[STREAM_BYTES];
    for (uint32_t byte = 0; byte < 4; byte++)
        for (uint32_t i = 0; i < 256; i++)
            shift_tables[byte][i] = crc_table_run(i << (8 * byte), zeroes, sizeof zeroes);
}

#if defined(__x86_64__)

static inline uint32_t shift(uint32_t crc)
{
    return shift_tables[0][crc & 0xff] ^ shift_tables[1][(crc >> 8) & 0xff] ^ shift_tables[2][(crc >> 16) & 0xff] ^
           shift_tables[3][crc >> 24];
}

static inline uint64_t load(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

__attribute__((target("sse4.2"))) static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t bytes)
{
    while (bytes >= 3 * STREAM_BYTES) {
        uint64_t a = crc, b = 0, c = 0;
        for (size_t i = 0; i < STREAM_BYTES; i += 8) {
            a = _mm_crc32_u64(a, load(data + i));
            b = _mm_crc32_u64(b, load(data + STREAM_BYTES + i));
            c = _mm_crc32_u64(c, load(data + 2 * STREAM_BYTES + i));
        }
        crc = shift(shift((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
        data += 3 * STREAM_BYTES;
        bytes -= 3 * STREAM_BYTES;
    }
    for (; bytes >= 8; data += 8, bytes -= 8)
        crc = (uint32_t)_mm_crc32_u64(crc, load(data));
    for (; bytes; data++, bytes--)
        crc = _mm_crc32_u8(crc, *data);
    return crc;
}

static int have_hardware(void)
{
    return __builtin_cpu_supports("sse4.2") != 0;
}

#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)

#include <arm_acle.h>

static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t bytes)
{
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t value;
        memcpy(&value, data, sizeof value);
        crc = __crc32cd(crc, value);
    }
    for (; bytes; data++, bytes--)
        crc = __crc32cb(crc, *data);
    return crc;
}

static int have_hardware(void)
{
    return 1;
}

#else

static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t bytes)
{
    return crc_table_run(crc, data, bytes);
}

static int have_hardware(void)
{
    return 0;
}

#endif

uint32_t isw_crc32c(const void *data, size_t bytes)
{
    uint32_t crc = have_hardware() ? crc_hardware(~0u, data, bytes) : crc_table_run(~0u, data, bytes);
    return ~crc;
}

const char *isw_crc32c_implementation(void)
{
    return have_hardware() ? "hardware" : "table";
}
