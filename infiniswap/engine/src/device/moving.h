/* A slab that moves from one peer to another, with its pages. */
#ifndef ISW_MOVING_H
#define ISW_MOVING_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct transfer;

enum moving_stage {
    MOVING_COPIES, /* pages are copied; the remote copies that count are at the old place */
    MOVING_TOLD,   /* they are at the new one, and Python is to put that on record */
    MOVING_ENDS,   /* the slab has done with one of the places, once the last transfer there has ended */
};

struct moving {
    enum moving_stage stage;
    int error;      /* ENDS: why it came to nothing; 0: it did not, or the slab was lost since */
    uint32_t slab;
    uint32_t serial; /* a copy of an earlier move is not taken for one of this */
    uint32_t from_attachment, to_attachment;
    uint64_t until_ns; /* afterwards what is on the backup is not copied any more */
    uint64_t again_ns; /* when to look for what was left */
    uint64_t *mark;  /* one bit a page: REMOTE, and the new place has it, too */
    uint32_t marked;
    uint32_t at;     /* page at which this pass goes on */
    uint32_t begun;  /* pages that this pass has begun with */
    uint32_t left;   /* pages that were not at the new place after the last pass */
    uint32_t in_flight; /* copies */
    struct moving *next;
};

struct moves {
    struct moving *slot, *free;
    struct moving *first; /* the one that has the least time left */
    uint32_t slots;
    uint64_t *marks; /* of all slots */
    uint32_t serials;
    uint32_t in_flight, overdue; /* copies; those that their peer has not answered in time */
    uint64_t next_ns; /* not before is the next page to be copied */
    bool more;        /* there is more to look at, now */
};

/* What these return is 0 or -errno. */
int moving_begin(struct device *d, uint32_t slab, uint32_t peer, uint64_t address, uint32_t key, uint32_t limit_ms);
int moving_cancel(struct device *d, uint32_t slab);
int moving_settle(struct device *d, uint32_t slab);
void moves_run(struct device *d);

/* The slab's present place is lost, its generation has changed.  True: all is done that slab_lost would do. */
bool moving_loses_place(struct device *d, uint32_t slab, int error);
void moving_loses_target(struct device *d, uint32_t peer);
/* The peer of a slab's other place has answered with an error. */
void moving_refused(struct device *d, const struct transfer *transfer, int error);
/* The page's entry is about to become this. */
void moving_page_changes(struct device *d, uint64_t page, uint32_t sum, uint32_t meta);
bool moving_marked(const struct device *d, uint64_t page);
void moving_mark(struct device *d, struct moving *m, uint64_t page);
/* Of a slab, if its pages are being copied; else NULL. */
struct moving *moving_of(const struct device *d, uint32_t slab);

#endif
