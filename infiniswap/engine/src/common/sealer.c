/* AES-256-GCM for pages, by libcrypto (NIST SP 800-38D; key derivation: RFC 5869). */
#include "sealer.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { BLOCK_BYTES = 16, BESIDE_BYTES = 8 };

struct isw_sealer {
    EVP_CIPHER *gcm, *ecb;
    EVP_CIPHER_CTX *derive, *seal, *open; /* derive: the master key's */
    int64_t sealing, opening;             /* number of the key that each has; SEALER_NO_KEY */
    uint8_t key[ISW_SEAL_KEY_BYTES];      /* on its way into a context */
};

static bool derive_master(const uint8_t *root, const uint8_t *salt, uint8_t *out, size_t bytes)
{
    static char digest[] = "SHA256", purpose[] = "infiniswap sealed pages 1";
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)root, ISW_SEAL_KEY_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, ISW_SEAL_SALT_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, purpose, sizeof purpose - 1),
        OSSL_PARAM_construct_end(),
    };
    bool done = context && EVP_KDF_derive(context, out, bytes, parameters) == 1;
    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
    return done;
}

isw_sealer *isw_sealer_new(const uint8_t *root, const uint8_t *salt, uint8_t *check)
{
    uint8_t derived[ISW_SEAL_KEY_BYTES + ISW_SEAL_CHECK_BYTES];
    struct isw_sealer *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    mlock(s, sizeof *s); /* where that is refused the device says so, for all of its memory */
    s->sealing = s->opening = SEALER_NO_KEY;
    s->gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    s->ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
    s->derive = EVP_CIPHER_CTX_new();
    s->seal = EVP_CIPHER_CTX_new();
    s->open = EVP_CIPHER_CTX_new();
    bool ready = s->gcm && s->ecb && s->derive && s->seal && s->open && derive_master(root, salt, derived, sizeof derived) &&
                 EVP_EncryptInit_ex2(s->derive, s->ecb, derived, NULL, NULL) == 1 &&
                 EVP_CIPHER_CTX_set_padding(s->derive, 0) == 1 && EVP_EncryptInit_ex2(s->seal, s->gcm, NULL, NULL, NULL) == 1 &&
                 EVP_DecryptInit_ex2(s->open, s->gcm, NULL, NULL, NULL) == 1;
    if (ready && check)
        memcpy(check, derived + ISW_SEAL_KEY_BYTES, ISW_SEAL_CHECK_BYTES);
    OPENSSL_cleanse(derived, sizeof derived);
    if (ready)
        return s;
    isw_sealer_free(s);
    return NULL;
}

void isw_sealer_free(isw_sealer *s)
{
    if (!s)
        return;
    EVP_CIPHER_CTX_free(s->derive); /* these wipe their keys */
    EVP_CIPHER_CTX_free(s->seal);
    EVP_CIPHER_CTX_free(s->open);
    EVP_CIPHER_free(s->gcm);
    EVP_CIPHER_free(s->ecb);
    OPENSSL_cleanse(s, sizeof *s);
    munlock(s, sizeof *s);
    free(s);
}

/* ---- one message ---- */

bool gcm_seal(EVP_CIPHER_CTX *context, const uint8_t *nonce, const uint8_t *beside, size_t beside_bytes, const uint8_t *in,
              size_t bytes, uint8_t *out, uint8_t *tag, size_t tag_bytes)
{
    int got;
    return EVP_EncryptInit_ex2(context, NULL, NULL, nonce, NULL) == 1 &&
           (!beside_bytes || EVP_EncryptUpdate(context, NULL, &got, beside, (int)beside_bytes) == 1) &&
           EVP_EncryptUpdate(context, out, &got, in, (int)bytes) == 1 && EVP_EncryptFinal_ex(context, out + got, &got) == 1 &&
           EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, (int)tag_bytes, tag) == 1;
}

bool gcm_open(EVP_CIPHER_CTX *context, const uint8_t *nonce, const uint8_t *beside, size_t beside_bytes, const uint8_t *in,
              size_t bytes, uint8_t *out, const uint8_t *tag, size_t tag_bytes)
{
    int got;
    return EVP_DecryptInit_ex2(context, NULL, NULL, nonce, NULL) == 1 &&
           (!beside_bytes || EVP_DecryptUpdate(context, NULL, &got, beside, (int)beside_bytes) == 1) &&
           EVP_DecryptUpdate(context, out, &got, in, (int)bytes) == 1 &&
           EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, (int)tag_bytes, (void *)(uintptr_t)tag) == 1 &&
           EVP_DecryptFinal_ex(context, out + got, &got) == 1;
}

/* ---- pages ---- */

static void put64(uint8_t *at, uint64_t value)
{
    for (uint32_t i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

/* The key for serials whose upper half is number: two blocks that no other number leads to. */
static bool take_key(struct isw_sealer *s, EVP_CIPHER_CTX *context, int64_t *has, uint32_t number)
{
    uint8_t blocks[2 * BLOCK_BYTES] = {0};
    int got;
    if (*has == (int64_t)number)
        return true;
    *has = SEALER_NO_KEY;
    put64(blocks, number);
    put64(blocks + BLOCK_BYTES, number);
    blocks[BLOCK_BYTES - 1] = 1;
    blocks[2 * BLOCK_BYTES - 1] = 2;
    bool done = EVP_EncryptUpdate(s->derive, s->key, &got, blocks, sizeof blocks) == 1 && got == sizeof blocks &&
                EVP_CipherInit_ex2(context, NULL, s->key, NULL, -1, NULL) == 1;
    OPENSSL_cleanse(s->key, sizeof s->key);
    if (done)
        *has = number;
    return done;
}

static void nonce_of(uint64_t serial, uint8_t *nonce)
{
    memset(nonce, 0, GCM_NONCE_BYTES);
    put64(nonce + GCM_NONCE_BYTES - 8, serial);
}

int isw_sealer_seal(isw_sealer *s, uint64_t page, uint64_t serial, const uint8_t *plain, uint8_t *sealed, uint8_t *tag)
{
    uint8_t nonce[GCM_NONCE_BYTES], beside[BESIDE_BYTES];
    nonce_of(serial, nonce);
    put64(beside, page);
    if (take_key(s, s->seal, &s->sealing, (uint32_t)(serial >> 32)) &&
        gcm_seal(s->seal, nonce, beside, sizeof beside, plain, ISW_PAGE_BYTES, sealed, tag, ISW_SEAL_TAG_BYTES))
        return 0;
    /* Nothing that can be read leaves the host; what is there instead is found out as any wrong copy is. */
    memset(sealed, 0, ISW_PAGE_BYTES);
    memset(tag, 0, ISW_SEAL_TAG_BYTES);
    s->sealing = SEALER_NO_KEY;
    return -EIO;
}

int isw_sealer_open(isw_sealer *s, uint64_t page, uint64_t serial, const uint8_t *tag, const uint8_t *sealed, uint8_t *plain)
{
    uint8_t nonce[GCM_NONCE_BYTES], beside[BESIDE_BYTES];
    nonce_of(serial, nonce);
    put64(beside, page);
    if (serial && take_key(s, s->open, &s->opening, (uint32_t)(serial >> 32)) &&
        gcm_open(s->open, nonce, beside, sizeof beside, sealed, ISW_PAGE_BYTES, plain, tag, ISW_SEAL_TAG_BYTES))
        return 0;
    return -EBADMSG;
}
