/* Trends: streams of reads told apart, and the majority vote over their steps. */
#include "trend.h"

#include <stddef.h>
#include <string.h>

int32_t trend_vote(const int32_t *history, uint32_t steps)
{
    for (uint32_t voters = TREND_VOTE_LEAST; voters <= steps; voters *= 2) {
        int32_t candidate = 0;
        uint32_t lead = 0, votes = 0;
        for (uint32_t i = 0; i < voters; i++) {
            if (!lead)
                candidate = history[i];
            if (history[i] == candidate)
                lead++;
            else
                lead--;
        }
        for (uint32_t i = 0; i < voters; i++)
            votes += history[i] == candidate;
        if (votes > voters / 2)
            return candidate;
    }
    return 0;
}

static void push(struct trend *t, int32_t step)
{
    memmove(t->history + 1, t->history, sizeof t->history - sizeof *t->history);
    t->history[0] = step;
    if (t->steps < TREND_HISTORY)
        t->steps++;
}

/* A kernel that reads ahead asks for up to eight pages in a row around one fault, wherever that is: a sequence is longer. */
static void look_for_step(struct trend *t)
{
    int32_t step = trend_vote(t->history, t->steps);
    uint32_t run = 0;
    while (run < t->steps && t->history[run] == step)
        run++;
    if ((step == 1 || step == -1) && run < TREND_RUN_LEAST)
        return;
    t->step = step;
    t->window = TREND_WINDOW_MIN;
    t->lead = t->hits = 0;
}

/* ---- which stream ---- */

static struct trend *set_of(struct trends *trends, uint64_t region)
{
    return &trends->way[(region * 0x9e3779b97f4a7c15ull >> 59) * TREND_WAYS];
}
_Static_assert(TREND_SETS == 1 << (64 - 59), "five bits of the hash");

static int64_t distance(const struct trend *t, uint64_t page)
{
    return (int64_t)(page - t->last);
}

/* Which of its steps the read is, counted from the last one: some may have been left out, or come late. */
static bool expected(const struct trend *t, uint64_t page, int64_t *steps)
{
    if (!t->used || !t->step)
        return false;
    int64_t away = distance(t, page), most = t->window + 1;
    if (away > TREND_REACH * most || away < -TREND_REACH * most || away % t->step)
        return false;
    *steps = away / t->step;
    return *steps <= most && *steps >= -most;
}

/* Where a new stream goes: a free place, one of a stream that has ended, or of that without a trend that rests longest. */
static struct trend *place_for(struct trend *set)
{
    struct trend *best = set;
    for (struct trend *t = set; t < set + TREND_WAYS; t++) {
        bool weaker = !t->step != !best->step ? !t->step : t->used < best->used;
        if (weaker)
            best = t;
    }
    return best;
}

static bool ended(const struct trends *trends, const struct trend *t)
{
    return !t->used || (!t->step && trends->reads - t->used > TREND_IDLE);
}

static void begin(struct trends *trends, struct trend *t, uint64_t page)
{
    *t = (struct trend){.last = page, .used = trends->reads, .serial = ++trends->serials};
}

/* Of the page's region, the one behind it and the one before it. */
static struct trend *near_set(struct trends *trends, uint64_t page, uint32_t which)
{
    return set_of(trends, (page >> TREND_REGION_SHIFT) + (which == 2 ? -1ull : which));
}

static struct trend *nearest(struct trends *trends, uint64_t page)
{
    struct trend *best = NULL;
    int64_t least = TREND_REACH + 1;
    for (uint32_t i = 0; i < 3; i++) {
        struct trend *set = near_set(trends, page, i);
        for (struct trend *t = set; t < set + TREND_WAYS; t++) {
            int64_t away = distance(t, page), far = away < 0 ? -away : away;
            if (!t->used || t->step || far >= least)
                continue;
            least = far;
            best = t;
        }
    }
    return best;
}

static bool far(int64_t away)
{
    return away > TREND_NEAR || away < -TREND_NEAR;
}

/* Another stream's, rather than the next step of this one. */
static bool strange(const struct trend *t, int64_t away)
{
    return far(away) && t->steps && away != t->history[0];
}

/* A long step may be to another stream: this one, if it is one, goes on from where it was. */
static void leave(struct trends *trends, const struct trend *t)
{
    struct trend *place = place_for(set_of(trends, t->last >> TREND_REGION_SHIFT));
    if (place != t && ended(trends, place))
        begin(trends, place, t->last);
}

/* A read that no trend expected. */
static struct trend *learn(struct trends *trends, uint64_t page)
{
    struct trend *set = set_of(trends, page >> TREND_REGION_SHIFT), *t = nearest(trends, page), *place = place_for(set);
    int64_t away = t ? distance(t, page) : 0;
    if (t && !away) {
        t->used = trends->reads;
        return NULL;
    }
    if (!t || (strange(t, away) && ended(trends, place))) {
        begin(trends, place, page);
        return NULL;
    }
    struct trend with = *t;
    push(&with, (int32_t)away);
    if (with.steps >= TREND_VOTE_LEAST && !trend_vote(with.history, with.steps)) {
        begin(trends, place, page); /* two that are near each other, perhaps: each goes on from where it is */
        return NULL;
    }
    if (far(away))
        leave(trends, t);
    with.last = page;
    with.used = trends->reads;
    *t = with;
    look_for_step(t);
    return t;
}

static struct trend *find(struct trends *trends, uint64_t page, int64_t *steps)
{
    for (uint32_t i = 0; i < 3; i++) {
        struct trend *set = near_set(trends, page, i), *best = NULL;
        for (struct trend *t = set; t < set + TREND_WAYS; t++)
            if (expected(t, page, steps) && (!best || t->used > best->used))
                best = t;
        if (!best)
            continue;
        expected(best, page, steps);
        return best;
    }
    return NULL;
}

/* Into the region that it has come to. */
static struct trend *moved(struct trends *trends, struct trend *t)
{
    struct trend *set = set_of(trends, t->last >> TREND_REGION_SHIFT);
    if (t >= set && t < set + TREND_WAYS)
        return t;
    struct trend *place = place_for(set);
    *place = *t;
    *t = (struct trend){0};
    return place;
}

static void advance(struct trend *t, uint64_t page, uint32_t steps)
{
    t->last = page;
    t->lead = t->lead > steps ? t->lead - steps : 0;
}

struct trend *trends_note(struct trends *trends, uint64_t page, uint32_t pages)
{
    int64_t steps = 0;
    trends->reads++;
    struct trend *t = find(trends, page, &steps);
    if (t) {
        t->used = trends->reads;
        if (steps > 0)
            advance(t, page, (uint32_t)steps);
    } else {
        t = learn(trends, page);
        if (!t && pages > 1)
            t = nearest(trends, page); /* just begun */
    }
    if (!t)
        return NULL;
    /* The rest of a larger request is steps of 1, too few for a sequence by themselves. */
    for (uint32_t i = 1; i < pages && i < TREND_RUN_LEAST && !t->step; i++)
        push(t, 1);
    if (pages > 1 && !t->step) {
        t->last = page + pages - 1;
        look_for_step(t);
    } else if (pages > 1 && t->step == 1 && page + pages - 1 > t->last) {
        advance(t, page + pages - 1, (uint32_t)(page + pages - 1 - t->last));
    }
    t = moved(trends, t);
    return t->step ? t : NULL;
}

/* ---- what to guess ---- */

bool trend_next(const struct trend *t, uint64_t end, uint64_t *page)
{
    if (!t->step || t->lead >= t->window)
        return false;
    *page = t->last + (uint64_t)((int64_t)t->step * (t->lead + 1));
    return *page < end; /* also below zero, as a very large one */
}

void trend_hit(struct trend *t)
{
    if (++t->hits < 2 * t->window)
        return;
    t->hits = 0;
    t->window = t->window * 2 < TREND_WINDOW_MAX ? t->window * 2 : TREND_WINDOW_MAX;
}

void trend_miss(struct trend *t)
{
    t->hits = 0;
    t->window /= 2;
    if (t->window >= TREND_WINDOW_MIN)
        return;
    t->step = 0;
    t->steps = t->window = t->lead = 0;
}
