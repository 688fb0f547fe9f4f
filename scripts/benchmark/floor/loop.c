#include "loop.h"

#include <string.h>

const struct loop_kind *loop_kind_named(const char *name)
{
    if (strcmp(name, loop_epoll.name) == 0)
        return &loop_epoll;
    if (strcmp(name, loop_uring.name) == 0)
        return &loop_uring;
    return NULL;
}

int loop_open(struct loop *loop, const struct loop_kind *kind, void *program, void (*accepted)(struct loop *, int))
{
    *loop = (struct loop){.kind = kind, .program = program, .accepted = accepted};
    return kind->open(loop);
}

int loop_add(struct loop *loop, struct channel *channel)
{
    if (loop->channels == LOOP_CHANNELS_MAX)
        return -1;
    channel->loop = loop;
    if (loop->kind->add(loop, channel))
        return -1;
    loop->channels++;
    return 0;
}

void loop_unpause(struct loop *loop, struct channel *channel)
{
    if (channel->closing || !channel->paused)
        return;
    if (channel_parse(channel))
        channel->closing = true;
    if (!channel->paused)
        loop->kind->resume(loop, channel);
}
