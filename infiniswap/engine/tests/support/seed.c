#include "seed.h"

#include "check.h"

#include "infiniswap_engine.h"

#include <pthread.h>

static const uint8_t seed[ISW_CHECKSUM_SEED_BYTES] = "what checksums are made with";
static struct isw_checksum_key key;

/* When first asked for: a test of its own wants to be libcrypto's first user. */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void expand(void)
{
    CHECK_EQUAL(isw_checksum_expand(seed, &key), 0);
}

void seed_state(void *state)
{
    memcpy(((struct isw_state_header *)state)->checksum_seed, seed, sizeof seed);
}

uint32_t checksum_of(const void *page)
{
    CHECK_EQUAL(pthread_once(&once, expand), 0);
    return isw_checksum(&key, page);
}
