/* Proves that pages are sealed as AES-256-GCM says (vectors of its authors), that what was changed, moved, or is of another
 * time does not open, that keys follow each other, and that sealing takes no memory. */
#include "check.h"

#include "sealer.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdatomic.h>

enum { PAGE = ISW_PAGE_BYTES };

static atomic_uint taken;

static void *counted_malloc(size_t bytes, const char *file, int line)
{
    (void)file;
    (void)line;
    taken++;
    return malloc(bytes);
}

static void *counted_realloc(void *at, size_t bytes, const char *file, int line)
{
    (void)file;
    (void)line;
    taken++;
    return realloc(at, bytes);
}

static void counted_free(void *at, const char *file, int line)
{
    (void)file;
    (void)line;
    free(at);
}

static size_t from_hex(const char *text, uint8_t *out)
{
    size_t bytes = strlen(text) / 2;
    for (size_t i = 0; i < bytes; i++) {
        unsigned value;
        CHECK(sscanf(text + 2 * i, "%2x", &value) == 1);
        out[i] = (uint8_t)value;
    }
    return bytes;
}

/* "The Galois/Counter Mode of Operation", McGrew and Viega, appendix B, test cases 13 to 16. */
static const struct vector {
    const char *key, *nonce, *beside, *plain, *sealed, *tag;
} vectors[] = {
    {"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "", "", "",
     "530f8afbc74536b9a963b4f1c4cb738b"},
    {"0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "",
     "00000000000000000000000000000000", "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
    {"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", "",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391a"
     "afd255",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66289"
     "8015ad",
     "b094dac5d93471bdec1a502270e3cc6c"},
    {"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
     "76fc6ece0f4e1768cddf8853bb2d551b"},
};

/* Known answers, sealed and opened. */
TEST(vectors)
{
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint8_t key[32], nonce[12], beside[20], plain[64], sealed[64], tag[16], out[64], got_tag[16];
        from_hex(vectors[i].key, key);
        from_hex(vectors[i].nonce, nonce);
        size_t beside_bytes = from_hex(vectors[i].beside, beside), bytes = from_hex(vectors[i].plain, plain);
        from_hex(vectors[i].sealed, sealed);
        from_hex(vectors[i].tag, tag);
        EVP_CIPHER_CTX *seal = EVP_CIPHER_CTX_new(), *open = EVP_CIPHER_CTX_new();
        CHECK(EVP_EncryptInit_ex(seal, EVP_aes_256_gcm(), NULL, key, NULL) == 1);
        CHECK(EVP_DecryptInit_ex(open, EVP_aes_256_gcm(), NULL, key, NULL) == 1);
        CHECK(gcm_seal(seal, nonce, beside, beside_bytes, plain, bytes, out, got_tag, 16));
        CHECK(!memcmp(out, sealed, bytes) && !memcmp(got_tag, tag, 16));
        CHECK(gcm_seal(seal, nonce, beside, beside_bytes, plain, bytes, out, got_tag, ISW_SEAL_TAG_BYTES));
        CHECK(!memcmp(got_tag, tag, ISW_SEAL_TAG_BYTES)); /* a short one is the beginning of the long one */
        CHECK(gcm_open(open, nonce, beside, beside_bytes, sealed, bytes, out, tag, ISW_SEAL_TAG_BYTES));
        CHECK(!memcmp(out, plain, bytes));
        tag[3] ^= 1;
        CHECK(!gcm_open(open, nonce, beside, beside_bytes, sealed, bytes, out, tag, ISW_SEAL_TAG_BYTES));
        EVP_CIPHER_CTX_free(seal);
        EVP_CIPHER_CTX_free(open);
    }
}

static isw_sealer *sealer_of(uint8_t root_byte, uint8_t salt_byte, uint8_t *check)
{
    uint8_t root[ISW_SEAL_KEY_BYTES], salt[ISW_SEAL_SALT_BYTES];
    memset(root, root_byte, sizeof root);
    memset(salt, salt_byte, sizeof salt);
    isw_sealer *sealer = isw_sealer_new(root, salt, check);
    CHECK(sealer);
    return sealer;
}

/* What a donor may try: another page's place, an older version, any changed bit, another device's page. */
TEST(nothing_else_opens)
{
    static uint8_t plain[PAGE], first[PAGE], second[PAGE], out[PAGE];
    uint8_t tag_1[ISW_SEAL_TAG_BYTES], tag_2[ISW_SEAL_TAG_BYTES];
    isw_sealer *sealer = sealer_of(1, 2, NULL), *other_salt = sealer_of(1, 3, NULL), *other_root = sealer_of(4, 2, NULL);
    struct chance chance = chance_start(7);
    memset(plain, 0x5a, PAGE);
    CHECK_EQUAL(isw_sealer_seal(sealer, 9, 1, plain, first, tag_1), 0);
    CHECK_EQUAL(isw_sealer_seal(sealer, 9, 2, plain, second, tag_2), 0);
    CHECK(memcmp(first, second, PAGE) && memcmp(first, plain, PAGE)); /* the same page looks another way each time */
    CHECK_EQUAL(isw_sealer_open(sealer, 9, 1, tag_1, first, out), 0);
    CHECK(!memcmp(out, plain, PAGE));
    CHECK_EQUAL(isw_sealer_open(sealer, 9, 2, tag_2, first, out), -EBADMSG);  /* an older version */
    CHECK_EQUAL(isw_sealer_open(sealer, 10, 1, tag_1, first, out), -EBADMSG); /* another place */
    CHECK_EQUAL(isw_sealer_open(sealer, 9, 2, tag_1, first, out), -EBADMSG);
    CHECK_EQUAL(isw_sealer_open(sealer, 9, 0, tag_1, first, out), -EBADMSG);
    CHECK_EQUAL(isw_sealer_open(other_salt, 9, 1, tag_1, first, out), -EBADMSG);
    CHECK_EQUAL(isw_sealer_open(other_root, 9, 1, tag_1, first, out), -EBADMSG);
    for (uint32_t i = 0; i < 300; i++) {
        uint64_t bit = chance_below(&chance, PAGE * 8);
        first[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_EQUAL(isw_sealer_open(sealer, 9, 1, tag_1, first, out), -EBADMSG);
        first[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (uint32_t bit = 0; bit < ISW_SEAL_TAG_BYTES * 8; bit++) {
        tag_1[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_EQUAL(isw_sealer_open(sealer, 9, 1, tag_1, first, out), -EBADMSG);
        tag_1[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK_EQUAL(isw_sealer_open(sealer, 9, 1, tag_1, first, first), 0); /* in place, and after all that */
    CHECK(!memcmp(first, plain, PAGE));
    isw_sealer_free(sealer);
    isw_sealer_free(other_salt);
    isw_sealer_free(other_root);
}

/* Serials go on where a key ends: the next key takes over, and what the one before has sealed still opens. */
TEST(keys_follow_each_other)
{
    static uint8_t plain[PAGE], sealed[4][PAGE], out[PAGE];
    static const uint64_t serials[4] = {0xffffffffull, 0x100000000ull, 0x1ffffffffull, UINT64_MAX};
    uint8_t tag[4][ISW_SEAL_TAG_BYTES];
    isw_sealer *sealer = sealer_of(1, 2, NULL);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQUAL(isw_sealer_seal(sealer, i, serials[i], plain, sealed[i], tag[i]), 0);
    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t i = 4; i-- > 0;) {
            CHECK_EQUAL(isw_sealer_open(sealer, i, serials[i], tag[i], sealed[i], out), 0);
            CHECK(!memcmp(out, plain, PAGE));
            CHECK_EQUAL(isw_sealer_open(sealer, i, serials[i] ^ 1ull << 32, tag[i], sealed[i], out), -EBADMSG);
        }
    isw_sealer_free(sealer);
}

/* The check tells a wrong key or salt, and says nothing else. */
TEST(check_tells_the_key)
{
    uint8_t check[4][ISW_SEAL_CHECK_BYTES];
    isw_sealer_free(sealer_of(1, 2, check[0]));
    isw_sealer_free(sealer_of(1, 2, check[1]));
    isw_sealer_free(sealer_of(2, 2, check[2]));
    isw_sealer_free(sealer_of(1, 3, check[3]));
    CHECK(!memcmp(check[0], check[1], sizeof check[0]));
    CHECK(memcmp(check[0], check[2], sizeof check[0]) && memcmp(check[0], check[3], sizeof check[0]));
}

/* Not one allocation by libcrypto after the start, a change of keys included. */
TEST(takes_no_memory)
{
    static uint8_t page[PAGE];
    uint8_t tag[ISW_SEAL_TAG_BYTES];
    CHECK(CRYPTO_set_mem_functions(counted_malloc, counted_realloc, counted_free) == 1);
    isw_sealer *sealer = sealer_of(1, 2, NULL);
    CHECK(taken > 0);
    taken = 0;
    for (uint64_t serial = 0xfffffff0ull; serial < 0x100000010ull; serial++) {
        CHECK_EQUAL(isw_sealer_seal(sealer, serial, serial, page, page, tag), 0);
        CHECK_EQUAL(isw_sealer_open(sealer, serial, serial, tag, page, page), 0);
        tag[0] ^= 1;
        CHECK_EQUAL(isw_sealer_open(sealer, serial, serial, tag, page, page), -EBADMSG);
    }
    CHECK_EQUAL(taken, 0);
    isw_sealer_free(sealer);
}
