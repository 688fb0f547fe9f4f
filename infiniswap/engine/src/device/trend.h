/* Trends: which pages are likely to be read next, from those that were.  Pure: no device, no clock.
 *
 * Several streams of reads are told apart, whatever connections they come on, by where they are: a read belongs to the stream
 * that expected it, else to one near it that has found no trend yet, else it begins one.  A stream's trend is the step that
 * most of its last steps were (Boyer and Moore's majority vote over a window that doubles until there is one: Maruf and
 * Chowdhury, Leap, ATC'20, section 3). */
#ifndef ISW_TREND_H
#define ISW_TREND_H

#include <stdbool.h>
#include <stdint.h>

enum {
    TREND_HISTORY = 16,      /* steps that a stream remembers */
    TREND_VOTE_LEAST = 4,    /* of these, that a vote needs */
    TREND_RUN_LEAST = 8,     /* steps of 1 that make a sequence: more than a kernel that reads ahead takes for one fault */
    TREND_WAYS = 4,          /* streams in ... */
    TREND_REGION_SHIFT = 9,  /* ... pages of one region, ... */
    TREND_SETS = 32,         /* ... and so many regions at a time */
    TREND_REACH = 1 << TREND_REGION_SHIFT, /* the longest step */
    TREND_NEAR = 32,         /* a read that is farther away gets a stream of its own while there is room */
    TREND_IDLE = 256,        /* reads after which a stream without a trend has ended */
    TREND_WINDOW_MIN = 2, TREND_WINDOW_MAX = 32, /* steps that are guessed ahead */
    TRENDS = TREND_WAYS * TREND_SETS,
};

struct trend {
    uint64_t last; /* page */
    uint64_t used; /* number of the read that was its last one; 0: free */
    uint32_t serial; /* of this stream: its place is used again */
    int32_t step;    /* 0: no trend */
    uint32_t window; /* steps that may be guessed ahead ... */
    uint32_t lead;   /* ... and how many have been, counted from last */
    uint32_t hits;   /* since the window was changed */
    uint32_t steps;  /* in history, the newest first */
    int32_t history[TREND_HISTORY];
};

struct trends {
    struct trend way[TRENDS];
    uint64_t reads;
    uint32_t serials;
};

/* The step that more than a half of the newest ones were, of as few as show one; 0: none. */
int32_t trend_vote(const int32_t *history, uint32_t steps);
/* Pages were read; the stream that they belong to if it has a trend, else NULL. */
struct trend *trends_note(struct trends *trends, uint64_t page, uint32_t pages);
/* The next page to be guessed; false: there is none below end, or enough are. */
bool trend_next(const struct trend *trend, uint64_t end, uint64_t *page);
/* A guess was read: twice as many may be out when two windows of them were.  Or it was not: half as many, and none at last. */
void trend_hit(struct trend *trend);
void trend_miss(struct trend *trend);

#endif
