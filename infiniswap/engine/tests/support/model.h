/* What a block device may hold, byte by byte, while requests overlap in time.
 *
 * A byte has the values that earlier requests left (base: more than one only while nobody knows which of several
 * overlapping writes came last) and those of the group of overlapping writes going on now.  Once one of the group is
 * acknowledged, the base is history.  A read may see whatever the byte could have been at any time between its sending
 * and its answer; a read that overlapped no write settles which of several values it is. */
#ifndef MODEL_H
#define MODEL_H

#include "check.h"

enum { VALUES_MAX = 6 };

struct values {
    uint8_t count; /* VALUES_MAX + 1: too many to tell, anything goes */
    uint8_t value[VALUES_MAX];
};

struct model_byte {
    struct values base, group;
    uint8_t writing;      /* requests on it now */
    uint8_t acknowledged; /* one of the group is */
};

struct change { /* a write, trim or zeroing that is out */
    uint64_t offset;
    uint32_t length;
    uint8_t *data; /* NULL: zeroes */
};

struct look { /* a read that is out, or a flush: a read of everything from what is durable */
    uint64_t offset;
    uint64_t length;
    struct values *seen; /* what each byte may be */
    bool *disturbed;     /* a write was or came out meanwhile */
    bool settles;        /* true unless changed: what it sees is what will stay */
    struct look *next;
};

struct model {
    uint64_t size_bytes;
    struct model_byte *byte;
    struct look *looks;
};

void model_open(struct model *m, uint64_t size_bytes);
void model_close(struct model *m);
/* data is copied. */
struct change *model_write_sent(struct model *m, uint64_t offset, uint32_t length, const uint8_t *data);
/* failed: an error was answered, or nothing will be: all, nothing or a part of it was written. */
void model_write_done(struct model *m, struct change *change, bool failed);
struct look *model_look_begins(struct model *m, uint64_t offset, uint64_t length);
/* Fails the test unless data (NULL: an error was answered) is what the device may have held.  Frees look. */
void model_look_ends(struct model *m, struct look *look, const uint8_t *data, const char *what);
/* Nothing is out: what is there now may be anything. */
void model_forget(struct model *m, uint64_t offset, uint64_t length);
/* Nothing is out: the content must be one that the model allows. */
void model_check(struct model *m, const uint8_t *data, const char *what);
/* The byte that the last failed check was about. */
extern uint64_t model_wrong_at;
void model_fill(struct chance *chance, uint8_t *data, uint32_t length);

#endif
