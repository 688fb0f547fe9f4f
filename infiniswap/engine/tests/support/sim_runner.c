#include "sim_runner.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SEED_S_MAX = 60, FAILED_MAX = 20, GUESSES_SEEDS = 50, BORROWED_SEEDS = 50, PROGRESS = 1000 };

/* What the process that runs seeds tells the one that waits for it. */
struct report {
    uint64_t seed;
    uint64_t operations; /* of the seed that failed */
    struct sim_met met;
};

static struct sim *world;
static struct report *report;

static struct sim *new_world(void)
{
    struct sim *sim = calloc(1, sizeof *sim);
    CHECK(sim);
    mallopt(M_MMAP_THRESHOLD, 64 << 20); /* each seed takes the same memory: from the heap, where it stays */
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    return sim;
}

static void free_world(struct sim *sim)
{
    sim_end(sim);
    free(sim);
}

uint64_t sim_digest(const struct sim_options *options)
{
    struct sim *sim = new_world();
    sim_run(sim, options);
    uint64_t digest = sim->digest;
    free_world(sim);
    return digest;
}

static const struct sim_options *nth;

static void tell_nth(void)
{
    fprintf(stderr, "\nit was request %llu to the disk, %llu to the peer (in way %llu) that failed",
            (unsigned long long)nth->disk_nth, (unsigned long long)nth->peer_nth, (unsigned long long)nth->peer_kind);
}

uint64_t sim_fail_each(struct sim_options options, bool of_disk)
{
    struct sim *sim = new_world();
    nth = &options;
    check_explain = tell_nth;
    for (uint64_t n = 1;; n++) {
        *(of_disk ? &options.disk_nth : &options.peer_nth) = n;
        check_seed(options.seed);
        sim_run(sim, &options);
        if ((of_disk ? sim->disk.requests : sim->peer[0].requests) >= n)
            continue;
        free_world(sim);
        check_explain = NULL;
        return n - 1;
    }
}

static void note_end(void)
{
    report->operations = world->operations;
}

static void run_seed(const struct sim_options *options)
{
    report->seed = options->seed;
    check_seed(options->seed);
    alarm(SEED_S_MAX); /* a loop inside one turn of the loop */
    sim_run(world, options);
    alarm(0);
    report->met = world->met;
}

/* One seed, in a process of its own: does it fail? */
static bool fails(const struct sim_options *options)
{
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        int null = options->trace ? -1 : open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (null >= 0)
            dup2(null, STDERR_FILENO);
        check_explain = note_end;
        run_seed(options);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return !WIFEXITED(status) || WEXITSTATUS(status);
}

/* Leaves out troubles one by one, then takes the fewest operations that still fail. */
static struct sim_options shrink(struct sim_options options)
{
    for (int round = 0; round < 2; round++)
        for (uint32_t i = 0; i < SIM_TROUBLES; i++) {
            struct sim_options fewer = options;
            fewer.without |= 1ull << i;
            if (fewer.without != options.without && fails(&fewer))
                options = fewer;
        }
    uint64_t good = 0, bad = report->operations;
    struct sim_options shorter = options;
    shorter.operations_max = bad;
    if (!bad || !fails(&shorter))
        return options;
    while (bad - good > 1) {
        shorter.operations_max = good + (bad - good) / 2;
        *(fails(&shorter) ? &bad : &good) = shorter.operations_max;
    }
    options.operations_max = bad;
    return options;
}

static void show(struct sim_options options)
{
    options = shrink(options);
    fprintf(stderr, "\nseed %llu fails with:", (unsigned long long)options.seed);
    for (uint32_t i = 0; i < SIM_TROUBLES; i++)
        if (!(options.without >> i & 1))
            fprintf(stderr, " %s;", sim_trouble_names[i]);
    fprintf(stderr, "\nreplay with ISW_SIM_WITHOUT=%llu ISW_SIM_OPERATIONS=%llu\n", (unsigned long long)options.without,
            (unsigned long long)options.operations_max);
    options.trace = true;
    fails(&options);
}

static void run_many(uint64_t first, uint64_t end, struct sim_options options)
{
    check_explain = note_end;
    for (uint64_t seed = first; seed < end; seed++) {
        options.seed = seed;
        run_seed(&options);
        if (end - first > PROGRESS && (seed - first) % PROGRESS == PROGRESS - 1)
            fprintf(stderr, "%llu seeds, %llu operations\n", (unsigned long long)report->met.seeds,
                    (unsigned long long)report->met.operations);
    }
}

void sim_run_seeds(uint64_t first, uint64_t seeds, const struct sim_options *options)
{
    uint64_t failed = 0, end = first + seeds;
    struct sim_met all = {0};
    world = new_world();
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(report != MAP_FAILED);
    while (first < end && failed < FAILED_MAX) {
        int status;
        memset(report, 0, sizeof *report);
        fflush(NULL);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
            run_many(first, end, *options);
            free_world(world);
            exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        for (size_t i = 0; i < sizeof all / sizeof(uint64_t); i++)
            ((uint64_t *)&all)[i] += ((uint64_t *)&report->met)[i];
        first = end;
        if (WIFEXITED(status) && !WEXITSTATUS(status))
            break;
        struct sim_options bad = *options;
        bad.seed = report->seed;
        first = bad.seed + 1;
        failed++;
        if (failed == 1)
            show(bad);
    }
    printf("%llu seeds, %llu operations, %llu failed\n", (unsigned long long)(all.seeds + failed),
           (unsigned long long)all.operations, (unsigned long long)failed);
    printf("met: %llu turns, %llu lives, %llu kills, %llu power cuts, %llu recoveries, %llu pages settled, %llu stops, "
           "%llu errors answered, %llu pages lost, %llu peers lost, %llu resumed, %llu faults, "
           "%llu moves of %llu pages, %llu guesses read, %llu came from peers, %llu from the disk, %llu were overtaken, %llu pages lent to the log\n",
           (unsigned long long)all.rounds, (unsigned long long)all.lives, (unsigned long long)all.kills,
           (unsigned long long)all.cuts, (unsigned long long)all.recoveries, (unsigned long long)all.settled,
           (unsigned long long)all.stops, (unsigned long long)all.errors, (unsigned long long)all.lost_pages,
           (unsigned long long)all.peers_lost, (unsigned long long)all.peers_resumed, (unsigned long long)all.faults,
           (unsigned long long)all.moves, (unsigned long long)all.moved_pages, (unsigned long long)all.guessed,
           (unsigned long long)all.guesses_of_peers, (unsigned long long)all.guesses_of_disk, (unsigned long long)all.guesses_dropped,
           (unsigned long long)all.borrowed);
    munmap(report, sizeof *report);
    free_world(world);
    if (failed)
        exit(1);
    if (options->log && all.seeds >= BORROWED_SEEDS)
        CHECK(all.borrowed);
    if (options->guesses && all.seeds >= GUESSES_SEEDS)
        CHECK(all.guessed && all.guesses_of_peers && all.guesses_of_disk && all.guesses_dropped);
}
