/* The event loop.  A turn takes what has arrived on every socket, lets the program act on it, and then sends what each
 * socket has gathered in one go. */
#ifndef FLOOR_LOOP_H
#define FLOOR_LOOP_H

#include "channel.h"

enum { LOOP_CHANNELS_MAX = 64 };

struct loop {
    int epoll_fd, listen_fd;
    void *program;
    void (*accepted)(struct loop *loop, int fd);
    struct channel *dirty[LOOP_CHANNELS_MAX];
    int dirty_count;
    int channels;
};

int loop_open(struct loop *loop, void *program, void (*accepted)(struct loop *, int));
int loop_listen(struct loop *loop, int fd);
/* Returns only on failure. */
int loop_run(struct loop *loop);
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
