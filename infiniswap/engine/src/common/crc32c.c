/* CRC32C (Castagnoli polynomial, RFC 3720 B.4): by whatever the processor has for it, else a table.
 *
 * The crc instruction (SSE4.2, ARMv8) takes 3 cycles but starts one each cycle, so three streams run side by side and are joined by
 * shifting a CRC over the bytes that follow it, which is a linear map kept as four tables of 256 (one for each stream
 * length).
 *
 * Vectors (AVX-512 with VPCLMULQDQ) fold: 16 bytes that stand D bits before others are replaced by what is congruent to them,
 * modulo the polynomial, at the others' place (Gopal and others, Fast CRC computation for generic polynomials using PCLMULQDQ,
 * Intel 2009).  Bits are reflected: bit i of 64 is x^(63 - i), and a product of two such has one power of x more than it shows, so
 * the first 8 bytes are multiplied by x^(D + 31), the other 8 by x^(D - 33), each modulo the polynomial.
 *
 * All is built by the constructor, before any thread exists. */
#include "infiniswap_engine.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { POLYNOMIAL = 0x82f63b78u, STREAM_BYTES = 1360 /* 3 * 1360 + 16 = one page */, VECTOR_BYTES = 64, VECTORS = 4 };

static uint32_t byte_table[256];
static uint32_t shift_tables[4][256]; /* over STREAM_BYTES zero bytes */
static enum isw_crc32c_way best;
static enum isw_crc32c_way find_best(void);

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
    best = find_best();
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

/* What 16 bytes are multiplied by to be moved over bits. */
struct fold {
    uint64_t first, second;
};
static struct fold over[VECTORS + 1]; /* so many vectors */
static struct fold within[VECTORS];   /* each 16 bytes of a vector to its end; the last ones are there */

static uint32_t power_of_x(uint32_t n)
{
    uint32_t power = 1u << 31;
    while (n--)
        power = (power >> 1) ^ (power & 1 ? POLYNOMIAL : 0);
    return power;
}

static struct fold fold_over(uint32_t bits)
{
    return (struct fold){power_of_x(bits + 31), power_of_x(bits - 33)};
}

static void build_folds(void)
{
    for (uint32_t i = 1; i <= VECTORS; i++)
        over[i] = fold_over(8 * VECTOR_BYTES * i);
    for (uint32_t i = 0; i < VECTORS - 1; i++)
        within[i] = fold_over(128 * (VECTORS - 1 - i));
}

#define WITH_VECTORS __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

WITH_VECTORS static inline __m512i moved(__m512i data, __m512i by)
{
    return _mm512_xor_si512(_mm512_clmulepi64_epi128(data, by, 0x00), _mm512_clmulepi64_epi128(data, by, 0x11));
}

WITH_VECTORS static inline __m512i moved_over(__m512i data, uint32_t vectors)
{
    return moved(data, _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)&over[vectors])));
}

WITH_VECTORS static inline __m512i vector_at(const uint8_t *data, uint32_t number)
{
    return _mm512_loadu_si512(data + number * VECTOR_BYTES);
}

/* At least VECTORS of them. */
WITH_VECTORS static uint32_t crc_vectors(uint32_t crc, const uint8_t *data, size_t bytes)
{
    __m512i by = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)&over[VECTORS]));
    __m512i a = _mm512_xor_si512(vector_at(data, 0), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = vector_at(data, 1), c = vector_at(data, 2), d = vector_at(data, 3);
    for (; bytes >= 2 * VECTORS * VECTOR_BYTES; bytes -= VECTORS * VECTOR_BYTES) {
        data += VECTORS * VECTOR_BYTES;
        a = _mm512_xor_si512(moved(a, by), vector_at(data, 0));
        b = _mm512_xor_si512(moved(b, by), vector_at(data, 1));
        c = _mm512_xor_si512(moved(c, by), vector_at(data, 2));
        d = _mm512_xor_si512(moved(d, by), vector_at(data, 3));
    }
    data += VECTORS * VECTOR_BYTES;
    bytes -= VECTORS * VECTOR_BYTES;
    d = _mm512_xor_si512(_mm512_xor_si512(d, moved_over(c, 1)), _mm512_xor_si512(moved_over(b, 2), moved_over(a, 3)));
    __m512i ends = moved(d, _mm512_loadu_si512(within));
    __m128i last = _mm_xor_si128(_mm512_extracti32x4_epi32(d, 3), _mm512_extracti32x4_epi32(ends, 0));
    last = _mm_xor_si128(last, _mm_xor_si128(_mm512_extracti32x4_epi32(ends, 1), _mm512_extracti32x4_epi32(ends, 2)));
    uint64_t rest = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    return crc_hardware((uint32_t)_mm_crc32_u64(rest, (uint64_t)_mm_extract_epi64(last, 1)), data, bytes);
}

static enum isw_crc32c_way find_best(void)
{
    build_folds();
    if (!__builtin_cpu_supports("sse4.2"))
        return ISW_CRC32C_TABLE;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") ? ISW_CRC32C_VECTORS : ISW_CRC32C_HARDWARE;
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

static enum isw_crc32c_way find_best(void)
{
    return ISW_CRC32C_HARDWARE;
}

#else

static uint32_t crc_hardware(uint32_t crc, const uint8_t *data, size_t bytes)
{
    return crc_table_run(crc, data, bytes);
}

static enum isw_crc32c_way find_best(void)
{
    return ISW_CRC32C_TABLE;
}

#endif

#if !defined(__x86_64__)

static uint32_t crc_vectors(uint32_t crc, const uint8_t *data, size_t bytes)
{
    return crc_hardware(crc, data, bytes);
}

#endif

static uint32_t by(enum isw_crc32c_way way, const void *data, size_t bytes)
{
    if (way == ISW_CRC32C_VECTORS && bytes >= VECTORS * VECTOR_BYTES)
        return ~crc_vectors(~0u, data, bytes);
    return ~(way == ISW_CRC32C_TABLE ? crc_table_run(~0u, data, bytes) : crc_hardware(~0u, data, bytes));
}

uint32_t isw_crc32c(const void *data, size_t bytes)
{
    return by(best, data, bytes);
}

enum isw_crc32c_way isw_crc32c_best(void)
{
    return best;
}

uint32_t isw_crc32c_by(enum isw_crc32c_way way, const void *data, size_t bytes)
{
    return by(way < best ? way : best, data, bytes);
}
