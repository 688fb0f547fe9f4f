/* Proves the promises of the device over whole lives, from seeds: the engine's real sources in one thread, with clock, sockets,
 * disk and peers simulated (support/sim.h says how).  A failed seed is shrunk and replays exactly.
 *
 * ISW_SIM_SEEDS, ISW_SIM_FIRST: how many seeds, from which on.  ISW_SIM_WITHOUT, ISW_SIM_OPERATIONS, ISW_SIM_TRACE: as a
 * failed run tells. */
#include "sim_runner.h"

static uint64_t given(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct sim_options options_given(void)
{
    return (struct sim_options){.without = given("ISW_SIM_WITHOUT", 0),
                                .operations_max = given("ISW_SIM_OPERATIONS", UINT64_MAX),
                                .trace = given("ISW_SIM_TRACE", 0),
                                .page = given("ISW_SIM_PAGE", UINT64_MAX)};
}

/* The seeds of one run; many more by ./simulate. */
#if defined(__SANITIZE_THREAD__)
enum { SEEDS = 5, FAILED_LEAST = 3 }; /* there is one thread */
#elif defined(__SANITIZE_ADDRESS__)
enum { SEEDS = 40, FAILED_LEAST = 30 };
#else
enum { SEEDS = 300, FAILED_LEAST = 30 };
#endif

/* Every sector is a register, over kills, power cuts, stops, lost peers and failing disks. */
TEST(lives)
{
    uint64_t seed;
    struct sim_options options = options_given();
    if (check_seed_given(&seed))
        sim_run_seeds(seed, 1, &options);
    else
        sim_run_seeds(given("ISW_SIM_FIRST", 1), given("ISW_SIM_SEEDS", scaled(SEEDS)), &options);
}

/* The same, of a device that seals what goes to peers, and no serial is taken twice, wherever it is killed. */
TEST(lives_sealed)
{
    uint64_t seed;
    struct sim_options options = options_given();
    options.sealed = true;
    if (check_seed_given(&seed))
        sim_run_seeds(seed, 1, &options);
    else
        sim_run_seeds(given("ISW_SIM_FIRST", 1), given("ISW_SIM_SEEDS", scaled(SEEDS / 4)), &options);
}

/* The same, with a log for the backup, which has to be cleaned; what it moves comes from peers and pending buffers in two of three. */
TEST(lives_over_a_log)
{
    uint64_t seed;
    struct sim_options options = options_given();
    options.log = true;
    if (check_seed_given(&seed))
        sim_run_seeds(seed, 1, &options);
    else
        sim_run_seeds(given("ISW_SIM_FIRST", 1), given("ISW_SIM_SEEDS", scaled(SEEDS / 4)), &options);
}

/* The same, with pages that are read before they are asked for, from peers and from the disk, in every life: what is written, trimmed,
 * moved or lost meanwhile makes no guess the page. */
static void live_with_guesses(bool log)
{
    uint64_t seed;
    struct sim_options options = options_given();
    options.guesses = true;
    options.log = options.sealed = log;
    if (check_seed_given(&seed))
        sim_run_seeds(seed, 1, &options);
    else
        sim_run_seeds(given("ISW_SIM_FIRST", 1), given("ISW_SIM_SEEDS", scaled(SEEDS / 4)), &options);
}

TEST(lives_with_guesses)
{
    live_with_guesses(false);
}

TEST(lives_with_guesses_over_a_log)
{
    live_with_guesses(true);
}

/* A seed goes the same way each time: without that no failure could be looked into. */
TEST(a_seed_replays)
{
    struct sim_options options = options_given();
    for (options.seed = 1; options.seed <= 10; options.seed++) {
        uint64_t first = sim_digest(&options);
        CHECK(sim_digest(&options) == first);
        options.seed++;
        CHECK(sim_digest(&options) != first);
    }
}


static void fail_each(bool of_disk, uint64_t kind, bool sealed)
{
    struct sim_options options = options_given();
    uint64_t seed, failed = 0;
    options.sealed = sealed;
    options.without = ~0ull; /* but for this one all goes well */
    options.operations_max = scaled(60);
    options.peer_kind = kind;
    if (check_seed_given(&seed))
        options.seed = seed, failed = sim_fail_each(options, of_disk);
    else
        for (options.seed = 1; failed < FAILED_LEAST && options.seed < 20; options.seed++)
            failed += sim_fail_each(options, of_disk);
    CHECK(check_seed_given(&seed) || failed >= FAILED_LEAST);
}

/* Whichever request to the disk fails, nothing is lost, and all goes on. */
TEST(each_backup_request_fails_once)
{
    fail_each(true, 0, false);
}

/* Whichever request to a peer is refused, not answered, answered wrongly, or its last: nothing is lost, and all goes on. */
TEST(each_peer_request_fails_once)
{
    for (uint64_t kind = 0; kind < SIM_FAIL_KINDS; kind++)
        fail_each(false, kind, kind % 2);
}
