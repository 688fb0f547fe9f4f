/* The event loop, twice: loop_epoll.c and loop_uring.c.  A turn takes what has arrived on every socket, lets the program
 * act on it, and then sends what each socket has gathered in one go. */
#ifndef FLOOR_LOOP_H
#define FLOOR_LOOP_H

#include "channel.h"

enum { LOOP_CHANNELS_MAX = 64 };

struct loop {
    const struct loop_kind *kind;
    void *state;
    void *program;
    void (*accepted)(struct loop *loop, int fd);
    struct channel *dirty[LOOP_CHANNELS_MAX];
    int dirty_count;
    int channels;
};

struct loop_kind {
    const char *name;
    int (*open)(struct loop *loop);
    int (*listen)(struct loop *loop, int fd);
    int (*add)(struct loop *loop, struct channel *channel);
    void (*resume)(struct loop *loop, struct channel *channel); /* take in again what a paused channel has to say */
    int (*run)(struct loop *loop); /* returns only on failure */
};

extern const struct loop_kind loop_epoll, loop_uring;

/* NULL: no such kind. */
const struct loop_kind *loop_kind_named(const char *name);
int loop_open(struct loop *loop, const struct loop_kind *kind, void *program, void (*accepted)(struct loop *, int));
/* Starts reading.  -1: too many channels. */
int loop_add(struct loop *loop, struct channel *channel);
/* Says that the channel has something to send. */
static inline void loop_touch(struct loop *loop, struct channel *channel)
{
    if (!channel->dirty) {
        channel->dirty = true;
        loop->dirty[loop->dirty_count++] = channel;
    }
}
/* Parses on; also to be called when the reason for a pause may be gone. */
void loop_unpause(struct loop *loop, struct channel *channel);

#endif
