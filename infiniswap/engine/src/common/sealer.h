/* AES-256-GCM for pages, by libcrypto.  Everything is taken in isw_sealer_new; sealing and opening take nothing.
 *
 *   root key --HKDF-SHA256, salt--> master key --AES of a number--> one key for each 2^32 serials
 *
 * A serial is used once, so no nonce ever repeats: it is the nonce, and its upper half chooses the key. */
#ifndef ISW_SEALER_H
#define ISW_SEALER_H

#include "infiniswap_engine.h"

#include <openssl/evp.h>
#include <stdbool.h>

enum { GCM_NONCE_BYTES = 12, SEALER_NO_KEY = -1 };

/* One message with the context's present key.  False: libcrypto would not; out is of no use then. */
bool gcm_seal(EVP_CIPHER_CTX *context, const uint8_t *nonce, const uint8_t *beside, size_t beside_bytes, const uint8_t *in,
              size_t bytes, uint8_t *out, uint8_t *tag, size_t tag_bytes);
/* False: the tag is not this message's. */
bool gcm_open(EVP_CIPHER_CTX *context, const uint8_t *nonce, const uint8_t *beside, size_t beside_bytes, const uint8_t *in,
              size_t bytes, uint8_t *out, const uint8_t *tag, size_t tag_bytes);

#endif
