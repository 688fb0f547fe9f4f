/* For clang's libFuzzer: any bytes at all as a client's stream.  Built and run by `run libfuzzer`. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    fuzz_connection(data, bytes);
    return 0;
}
