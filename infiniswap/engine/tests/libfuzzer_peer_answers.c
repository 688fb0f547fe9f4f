/* For clang's libFuzzer: whole lives of a simulated device whose peers answer with the fuzzer's bytes; the oracle sees to it that
 * no client ever gets a wrong byte.  The first eight bytes are the seed, the rest is what peers say. */
#include "sim.h"

enum { OPERATIONS = 40 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < sizeof(uint64_t))
        return 0;
    static struct sim sim; /* what one run has taken is the next one's too */
    struct sim_options options = {.operations_max = OPERATIONS,
                                  .page = UINT64_MAX,
                                  .script = data + sizeof(uint64_t),
                                  .script_bytes = bytes - sizeof(uint64_t)};
    memcpy(&options.seed, data, sizeof options.seed);
    options.seed &= 0xffff; /* the answers are the point */
    sim_run(&sim, &options);
    return 0;
}
