/* Proves that streams of reads and their steps are recognised, several beside each other, and that chance and a kernel that
 * reads ahead around faults are taken for none. */
#include "check.h"

#include "trend.h"

static struct trends trends;

static void begin(void)
{
    memset(&trends, 0, sizeof trends);
}

static int32_t step_of(uint64_t page, uint32_t pages)
{
    const struct trend *t = trends_note(&trends, page, pages);
    return t ? t->step : 0;
}

/* Reads so many pages, a step apart; how many of them went along with a trend of that step. */
static uint32_t along(uint64_t first, int32_t step, uint32_t reads)
{
    uint32_t met = 0;
    for (uint32_t i = 0; i < reads; i++)
        met += step_of(first + (uint64_t)((int64_t)step * i), 1) == step;
    return met;
}

TEST(a_majority_is_found_over_what_is_odd)
{
    CHECK_EQUAL(trend_vote((int32_t[]){7, 7, 1, 7}, 4), 7);
    CHECK_EQUAL(trend_vote((int32_t[]){7, 7, 1, 1}, 4), 0);
    CHECK_EQUAL(trend_vote((int32_t[]){7, 7, 7}, 3), 0);
    CHECK_EQUAL(trend_vote((int32_t[]){1, 2, 3, 1, 1, 1, 1, 4}, 8), 1); /* not of the newest four, but of eight */
    CHECK_EQUAL(trend_vote((int32_t[]){5, 5, 5, 2, 1, 1, 1, 1, 1}, 8), 5); /* the newest count first */
    CHECK_EQUAL(trend_vote((int32_t[]){-3, -3, -3, 9}, 4), -3);
}

TEST(steps_of_many_lengths)
{
    static const int32_t steps[] = {1, -1, 2, 7, -7, 31, 33, 100, 300, -300, 511};
    for (uint32_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        begin();
        uint32_t met = along(1000000, steps[i], 100);
        if (met < 85) /* also over the borders of regions */
            FAIL("of 100 reads with step %d, %u went along with it", steps[i], met);
    }
}

TEST(chance_is_no_trend)
{
    struct chance chance = chance_start(1);
    uint32_t met = 0;
    begin();
    for (uint32_t i = 0; i < 20000; i++)
        met += trends_note(&trends, chance_below(&chance, 1 << 20), 1) != NULL;
    CHECK(met < 20);
    for (uint32_t i = 0; i < 20000; i++) /* 32 MiB, densely */
        met += trends_note(&trends, chance_below(&chance, 1 << 13), 1) != NULL;
    if (met > 400)
        FAIL("%u of 40000 reads by chance went along with a trend", met);
}

/* Eight pages, page by page or in one request, around faults that follow no order. */
TEST(reading_ahead_around_faults_is_no_sequence)
{
    struct chance chance = chance_start(2);
    for (uint32_t at_once = 1; at_once <= 8; at_once *= 2) {
        uint32_t met = 0;
        begin();
        for (uint32_t i = 0; i < 2000; i++) {
            uint64_t cluster = chance_below(&chance, 1 << 17) * 8;
            for (uint32_t page = 0; page < 8; page += at_once)
                met += trends_note(&trends, cluster + page, at_once) != NULL;
        }
        if (met > 40)
            FAIL("with %u pages a request, %u reads went along with a trend", at_once, met);
        begin();
        for (uint32_t page = 0; page < 800; page += at_once) /* but one fault behind the other is */
            met += step_of(5000 + page, at_once) == 1;
        CHECK(met >= 90 / at_once * 8);
    }
}

/* Interleaved, in regions of their own, and within one, as far apart as is told. */
TEST(streams_beside_each_other)
{
    static const struct { uint64_t apart; int32_t step[2]; } pairs[] = {
        {1 << 18, {1, 7}}, {256, {1, 1}}, {100, {1, 1}}, {40, {1, 1}}, {20, {1, 1}}, {10, {1, 1}}, {200, {1, -1}}, {300, {1, 3}}, {5, {2, 2}},
    };
    for (uint32_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        uint32_t met[2] = {0};
        begin();
        for (uint32_t k = 0; k < 100; k++)
            for (uint32_t s = 0; s < 2; s++) {
                int64_t away = (int64_t)pairs[i].step[s] * k;
                met[s] += step_of((1 << 20) + 17 + s * pairs[i].apart + (uint64_t)away, 1) == pairs[i].step[s];
            }
        if (met[0] + met[1] < 150)
            FAIL("%llu pages apart, steps %d and %d: %u and %u of 100 went along", (unsigned long long)pairs[i].apart,
                 pairs[i].step[0], pairs[i].step[1], met[0], met[1]);
    }
}

/* Each read is as far from the last one as that from the one before: still no stride, for they come back. */
TEST(streams_at_even_distances)
{
    enum { STREAMS = 8, READS = 200 };
    static const uint64_t apart[] = {300, 500, 512, 1024};
    for (uint32_t i = 0; i < sizeof apart / sizeof *apart; i++) {
        uint32_t met = 0;
        begin();
        for (uint32_t k = 0; k < READS; k++)
            for (uint32_t s = 0; s < STREAMS; s++)
                met += step_of((1 << 20) + s * apart[i] + k, 1) == 1;
        if (met < STREAMS * READS * 9 / 10)
            FAIL("%llu pages apart, %u of %u went along", (unsigned long long)apart[i], met, STREAMS * READS);
    }
}

TEST(seven_streams_and_noise)
{
    struct chance chance = chance_start(3);
    uint32_t met = 0;
    begin();
    for (uint32_t k = 0; k < 200; k++)
        for (uint32_t s = 0; s < 7; s++) {
            met += step_of(100000 * (s + 1) + k, 1) == 1;
            trends_note(&trends, chance_below(&chance, 1 << 20), 1);
        }
    if (met < 7 * 180)
        FAIL("%u of 1400 went along", met);
}

/* Answers to requests at depth come back in order, but requests may have changed places. */
TEST(a_sequence_may_be_out_of_order)
{
    struct chance chance = chance_start(4);
    uint32_t met = 0;
    begin();
    along(0, 1, 20);
    for (uint64_t page = 20; page < 420; page += 2) {
        uint64_t first = page + chance_below(&chance, 2);
        met += step_of(first, 1) == 1;
        met += step_of(first == page ? page + 1 : page, 1) == 1;
    }
    CHECK_EQUAL(met, 400);
}

static struct trend *stream(void)
{
    struct trend *t = NULL;
    begin();
    for (uint32_t i = 0; i < 12; i++)
        t = trends_note(&trends, 40 - i, 1);
    CHECK(t && t->step == -1);
    return t;
}

TEST(guesses_stay_in_the_device_and_window)
{
    struct trend *t = stream(); /* last: 29 */
    uint64_t page;
    uint32_t guesses = 0;
    while (trend_next(t, 1000, &page)) {
        CHECK_EQUAL(page, 28 - guesses);
        t->lead++;
        guesses++;
    }
    CHECK_EQUAL(guesses, TREND_WINDOW_MIN);
    for (uint32_t i = 0; i < 1000; i++)
        trend_hit(t);
    CHECK_EQUAL(t->window, TREND_WINDOW_MAX);
    while (trend_next(t, 1000, &page))
        t->lead++;
    CHECK_EQUAL(t->lead, 29); /* down to page 0 */
    CHECK(!trend_next(t, 20, &page));
}

TEST(window_follows_hits)
{
    struct trend *t = stream();
    for (uint32_t window = TREND_WINDOW_MIN; window < TREND_WINDOW_MAX; window *= 2) {
        CHECK_EQUAL(t->window, window);
        for (uint32_t i = 0; i < 2 * window; i++)
            trend_hit(t);
    }
    trend_miss(t);
    CHECK_EQUAL(t->window, TREND_WINDOW_MAX / 2);
    for (uint32_t i = 0; i < 3; i++)
        trend_miss(t);
    CHECK(t->step == -1);
    trend_miss(t);
    CHECK(!t->step); /* to be learned anew */
}
