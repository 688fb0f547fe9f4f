/* The little that a test needs: named tests, checks that say where and with which seed, random numbers, deadlines. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void check_function(void);
void check_register(const char *name, check_function *function);

#define TEST(name)                                                      \
    static void test_##name(void);                                      \
    __attribute__((constructor)) static void register_##name(void)      \
    {                                                                   \
        check_register(#name, test_##name);                             \
    }                                                                   \
    static void test_##name(void)

/* Ends the process: tests are one process each. */
_Noreturn void check_failed(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define CHECK(condition)                                            \
    do {                                                            \
        if (!(condition))                                           \
            check_failed(__FILE__, __LINE__, "%s", #condition);     \
    } while (0)
#define CHECK_EQUAL(a, b)                                                                               \
    do {                                                                                                \
        long long left_ = (long long)(a), right_ = (long long)(b);                                      \
        if (left_ != right_)                                                                            \
            check_failed(__FILE__, __LINE__, "%s = %lld, not %s = %lld", #a, left_, #b, right_);        \
    } while (0)
#define FAIL(...) check_failed(__FILE__, __LINE__, __VA_ARGS__)

/* Waits for something that another thread does; fails the test when it takes longer than any machine would need. */
#define WAIT_UNTIL(condition)                                                                   \
    do {                                                                                        \
        uint64_t deadline_ = now_ns() + WAIT_S_MAX * 1000000000ull;                             \
        while (!(condition)) {                                                                  \
            if (now_ns() > deadline_)                                                           \
                check_failed(__FILE__, __LINE__, "never came true: %s", #condition);            \
            pause_us(200);                                                                      \
        }                                                                                       \
    } while (0)
enum { WAIT_S_MAX = 120 }; /* what is slow is no failure: a sanitizer, on a busy machine */

uint64_t now_ns(void);
void pause_us(uint32_t us);

struct chance {
    uint64_t state;
};
/* The test's seed (ISW_TEST_SEED, else the same each time), mixed with number, so that threads draw apart. */
struct chance chance_start(uint64_t number);
/* The test's seed; a test that tries many says which it is at, so that a failure names it. */
bool check_seed_given(uint64_t *seed);
void check_seed(uint64_t seed);
uint64_t chance_next(struct chance *c);
/* 0 to bound - 1. */
uint64_t chance_below(struct chance *c, uint64_t bound);
bool chance_in(struct chance *c, uint32_t one_in);
/* How many rounds a random test makes: rounds times ISW_TEST_SCALE. */
uint64_t scaled(uint64_t rounds);
/* Called when a check fails, before the process ends: says what else there is to know. */
extern void (*check_explain)(void);
/* Did a random test meet what it is about?  Not asked of the shortened runs under ThreadSanitizer. */
#ifdef __SANITIZE_THREAD__
#define CHECK_MET(condition) ((void)(condition))
#else
#define CHECK_MET(condition) CHECK(condition)
#endif
/* For a test that starts itself anew as another process: its own name. */
const char *check_name(void);

#endif
