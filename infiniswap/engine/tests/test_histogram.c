/* Proves: every latency falls into the bucket whose floor is the highest at or below it, and floors never decrease. */
#include "check.h"

#include "histogram.h"

TEST(floors_and_buckets_agree)
{
    for (uint32_t b = 0; b + 1 < ISW_HISTOGRAM_BUCKETS; b++) {
        uint64_t floor = isw_histogram_bucket_floor_ns(b), next = isw_histogram_bucket_floor_ns(b + 1);
        CHECK(floor < next);
        CHECK_EQUAL(histogram_bucket(floor), b);
        CHECK_EQUAL(histogram_bucket(next - 1), b);
        if (floor >= 8)
            CHECK((next - floor) * 8 <= floor); /* 12.5 % */
    }
}

TEST(nothing_falls_outside)
{
    struct isw_histogram histogram = {0};
    CHECK_EQUAL(histogram_bucket(0), 0);
    CHECK_EQUAL(histogram_bucket(UINT64_MAX), ISW_HISTOGRAM_BUCKETS - 1);
    for (uint32_t shift = 0; shift < 64; shift++)
        histogram_add(&histogram, 1ull << shift);
    uint64_t sum = 0;
    for (uint32_t b = 0; b < ISW_HISTOGRAM_BUCKETS; b++)
        sum += histogram.counts[b];
    CHECK_EQUAL(sum, 64);
}
