#include "check.h"

#include <signal.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>

enum { TESTS_MAX = 64 };
static struct {
    const char *name;
    check_function *function;
} tests[TESTS_MAX];
static size_t tests_count;
static const char *running = "";
static uint64_t seed = 1;
void (*check_explain)(void);

void check_register(const char *name, check_function *function)
{
    if (tests_count == TESTS_MAX)
        abort();
    tests[tests_count].name = name;
    tests[tests_count++].function = function;
}

_Noreturn void check_failed(const char *file, int line, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, list);
    va_end(list);
    if (check_explain)
        check_explain();
    fprintf(stderr, "\nreplay with: run -s %llu -k '*/%s'\n", (unsigned long long)seed, running);
    fflush(NULL);
    /* With a stack trace from the sanitizers, and a core for a debugger where cores are kept. */
    if (getenv("ISW_TEST_ABORT"))
        abort();
    _exit(1);
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void pause_us(uint32_t us)
{
    struct timespec t = {us / 1000000, (long)(us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
uint64_t chance_next(struct chance *c)
{
    uint64_t z = c->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

bool check_seed_given(uint64_t *given)
{
    *given = seed;
    return getenv("ISW_TEST_SEED") != NULL;
}

void check_seed(uint64_t number)
{
    seed = number;
}

struct chance chance_start(uint64_t number)
{
    struct chance c = {seed * 0x2545f4914f6cdd1dull + number};
    chance_next(&c);
    return c;
}

uint64_t chance_below(struct chance *c, uint64_t bound)
{
    return chance_next(c) % bound;
}

bool chance_in(struct chance *c, uint32_t one_in)
{
    return chance_below(c, one_in) == 0;
}

uint64_t scaled(uint64_t rounds)
{
    const char *scale = getenv("ISW_TEST_SCALE");
#ifdef __SANITIZE_THREAD__
    rounds = rounds / 4 + 1; /* each is some ten times as slow, and it is the threads that are looked at, not the random */
#endif
    return rounds * (scale ? strtoull(scale, NULL, 10) : 1);
}

const char *check_name(void)
{
    return running;
}

#ifndef CHECK_NO_MAIN /* libFuzzer brings its own */
int main(int count, char **arguments)
{
    const char *wanted = getenv("ISW_TEST_SEED");
    if (wanted)
        seed = strtoull(wanted, NULL, 10);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < tests_count; i++) {
        if (count > 1 && !strcmp(arguments[1], "--list")) {
            puts(tests[i].name);
        } else if (count < 2 || !strcmp(arguments[1], tests[i].name)) {
            running = tests[i].name;
            tests[i].function();
        }
    }
    if (count > 1 && !*running && strcmp(arguments[1], "--list")) {
        fprintf(stderr, "no such test: %s\n", arguments[1]);
        return 2;
    }
    return 0;
}
#endif
