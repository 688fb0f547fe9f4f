/* The keyed checksum of a page: 32 bits that nobody can meet on purpose who does not know the key.
 *
 *   two passes of NH (UMAC: Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO '99; RFC 4418), w = 32 bits, over the whole page:
 *     pass p = sum over pairs i of (m[2i] + k[2i + 8p]) * (m[2i + 1] + k[2i + 1 + 8p]), each sum mod 2^32, the rest mod 2^64
 *   folded by a multilinear hash (Lemire, Kaser: Strongly universal string hashing is fast, 2014, theorem 3.1):
 *     the upper half of fold[4] + sum of fold[j] * (32-bit half j of the two passes), mod 2^64
 *
 * For two pages that differ, whatever they are, and a key drawn at random, the checksums are equal with a probability of at
 * most 2^-64 (two passes: the second one's key at the last pair that differs is not in the first one's difference) + 2^-32 (fold).
 * A checksum never leaves this host, so who forges a page learns only whether he was found out, and each try that is costs him
 * the page: of n tries one succeeds with a probability of at most n * 2^-31.99.
 *
 * A lane of 64 bits holds a pair, and pmuludq multiplies what stands in its lower halves: all ways below give the same bits. */
#include "infiniswap_engine.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { WORDS = ISW_PAGE_BYTES / 4, SHIFT = ISW_CHECKSUM_WORDS - WORDS };
_Static_assert(SHIFT == 8 && sizeof(struct isw_checksum_key) == (WORDS + SHIFT) * 4 + 5 * 8, "all of it is drawn");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie");

struct passes {
    uint64_t sum[2];
};

int isw_checksum_expand(const uint8_t *seed, struct isw_checksum_key *key)
{
    static const char purpose[] = "infiniswap page checksum 1";
    EVP_MD *shake = EVP_MD_fetch(NULL, "SHAKE256", NULL);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool done = shake && context && EVP_DigestInit_ex2(context, shake, NULL) == 1 &&
                EVP_DigestUpdate(context, purpose, sizeof purpose - 1) == 1 &&
                EVP_DigestUpdate(context, seed, ISW_CHECKSUM_SEED_BYTES) == 1 &&
                EVP_DigestFinalXOF(context, (uint8_t *)key, sizeof *key) == 1;
    EVP_MD_CTX_free(context);
    EVP_MD_free(shake);
    return done ? 0 : -ENOTSUP;
}

static struct passes passes_plain(const uint32_t *k, const uint8_t *page)
{
    struct passes p = {{0, 0}};
    for (uint32_t i = 0; i < WORDS; i += 2) {
        uint32_t m[2];
        memcpy(m, page + 4 * i, sizeof m);
        p.sum[0] += (uint64_t)(uint32_t)(m[0] + k[i]) * (uint32_t)(m[1] + k[i + 1]);
        p.sum[1] += (uint64_t)(uint32_t)(m[0] + k[i + SHIFT]) * (uint32_t)(m[1] + k[i + 1 + SHIFT]);
    }
    return p;
}

#if defined(__x86_64__)

static inline __m128i product_sse2(__m128i m, __m128i k)
{
    __m128i sum = _mm_add_epi32(m, k);
    return _mm_mul_epu32(sum, _mm_srli_epi64(sum, 32));
}

static struct passes passes_sse2(const uint32_t *k, const uint8_t *page)
{
    __m128i a = _mm_setzero_si128(), b = a;
    struct passes p;
    for (uint32_t i = 0; i < WORDS; i += 4) {
        __m128i m = _mm_loadu_si128((const __m128i *)(const void *)(page + 4 * i));
        a = _mm_add_epi64(a, product_sse2(m, _mm_loadu_si128((const __m128i *)(const void *)(k + i))));
        b = _mm_add_epi64(b, product_sse2(m, _mm_loadu_si128((const __m128i *)(const void *)(k + i + SHIFT))));
    }
    uint64_t sums[4];
    memcpy(sums, &a, 16);
    memcpy(sums + 2, &b, 16);
    p.sum[0] = sums[0] + sums[1];
    p.sum[1] = sums[2] + sums[3];
    return p;
}

__attribute__((target("avx2"))) static inline __m256i product_avx2(__m256i m, __m256i k)
{
    __m256i sum = _mm256_add_epi32(m, k);
    return _mm256_mul_epu32(sum, _mm256_srli_epi64(sum, 32));
}

/* The second pass takes the key that the first one takes in the next round. */
__attribute__((target("avx2"))) static struct passes passes_avx2(const uint32_t *k, const uint8_t *page)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, e = a;
    __m256i now = _mm256_loadu_si256((const __m256i *)(const void *)k);
    struct passes p;
    for (uint32_t i = 0; i < WORDS; i += 16) {
        __m256i m = _mm256_loadu_si256((const __m256i *)(const void *)(page + 4 * i));
        __m256i n = _mm256_loadu_si256((const __m256i *)(const void *)(page + 4 * i + 32));
        __m256i next = _mm256_loadu_si256((const __m256i *)(const void *)(k + i + 8));
        __m256i last = _mm256_loadu_si256((const __m256i *)(const void *)(k + i + 16));
        a = _mm256_add_epi64(a, product_avx2(m, now));
        b = _mm256_add_epi64(b, product_avx2(m, next));
        c = _mm256_add_epi64(c, product_avx2(n, next));
        e = _mm256_add_epi64(e, product_avx2(n, last));
        now = last;
    }
    uint64_t sums[8];
    a = _mm256_add_epi64(a, c);
    b = _mm256_add_epi64(b, e);
    memcpy(sums, &a, 32);
    memcpy(sums + 4, &b, 32);
    p.sum[0] = sums[0] + sums[1] + sums[2] + sums[3];
    p.sum[1] = sums[4] + sums[5] + sums[6] + sums[7];
    return p;
}

static struct passes passes_by(enum isw_checksum_way way, const uint32_t *k, const uint8_t *page)
{
    return way == ISW_CHECKSUM_PLAIN ? passes_plain(k, page) : way == ISW_CHECKSUM_SSE2 ? passes_sse2(k, page) : passes_avx2(k, page);
}

enum isw_checksum_way isw_checksum_best(void)
{
    return __builtin_cpu_supports("avx2") ? ISW_CHECKSUM_AVX2 : ISW_CHECKSUM_SSE2;
}

#else

static struct passes passes_by(enum isw_checksum_way way, const uint32_t *k, const uint8_t *page)
{
    (void)way;
    return passes_plain(k, page);
}

enum isw_checksum_way isw_checksum_best(void)
{
    return ISW_CHECKSUM_PLAIN;
}

#endif

static uint32_t fold(const uint64_t *key, struct passes p)
{
    uint64_t first = key[0] * (uint32_t)p.sum[0] + key[1] * (p.sum[0] >> 32);
    uint64_t second = key[2] * (uint32_t)p.sum[1] + key[3] * (p.sum[1] >> 32);
    return (uint32_t)((key[4] + first + second) >> 32);
}

uint32_t isw_checksum_by(enum isw_checksum_way way, const struct isw_checksum_key *key, const void *page)
{
    return fold(key->fold, passes_by(way < isw_checksum_best() ? way : isw_checksum_best(), key->words, page));
}

uint32_t isw_checksum(const struct isw_checksum_key *key, const void *page)
{
    return fold(key->fold, passes_by(isw_checksum_best(), key->words, page));
}
