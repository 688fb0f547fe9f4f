/* Bytes from a fuzzer or a seed, made into what hostile clients and peers send. */
#ifndef FUZZ_H
#define FUZZ_H

#include "check.h"

/* Feeds bytes to a connection in pieces that the bytes choose; fails when an invariant does. */
void fuzz_connection(const uint8_t *data, size_t bytes);
/* A stream that is often nearly right. */
size_t fuzz_make_stream(struct chance *chance, uint8_t *out, size_t room);

#endif
