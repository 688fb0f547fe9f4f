#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

enum { EVENTS_MAX = LOOP_CHANNELS_MAX + 1 };

int loop_open(struct loop *loop, void *program, void (*accepted)(struct loop *, int))
{
    *loop = (struct loop){.program = program, .accepted = accepted};
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return loop->epoll_fd < 0 ? -1 : 0;
}

int loop_listen(struct loop *loop, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    loop->listen_fd = fd;
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void watch(struct loop *loop, struct channel *channel, int operation)
{
    struct epoll_event event = {.events = 0, .data.ptr = channel};
    if (!channel->paused)
        event.events |= EPOLLIN;
    if (channel->watching_output)
        event.events |= EPOLLOUT;
    if (epoll_ctl(loop->epoll_fd, operation, channel->fd, &event))
        channel->closing = true;
}

int loop_add(struct loop *loop, struct channel *channel)
{
    if (loop->channels == LOOP_CHANNELS_MAX)
        return -1;
    channel->loop = loop;
    watch(loop, channel, EPOLL_CTL_ADD);
    if (channel->closing)
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
    if (channel->paused)
        return;
    watch(loop, channel, EPOLL_CTL_MOD);
    loop_touch(loop, channel); /* it may be closing */
}

static void receive(struct loop *loop, struct channel *channel)
{
    uint8_t *to;
    size_t bytes;
    if (channel->closing || channel->paused || !channel_receive_space(channel, &to, &bytes))
        return;
    ssize_t got = recv(channel->fd, to, bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0 || channel_received(channel, (size_t)got)) {
        channel->closing = true;
        loop_touch(loop, channel);
    } else if (channel->paused) {
        watch(loop, channel, EPOLL_CTL_MOD);
    }
}

static void flush(struct loop *loop, struct channel *channel)
{
    bool blocked = false;
    while (!blocked && !channel->closing && channel->out_first != channel->out_last) {
        struct msghdr message = {.msg_iov = channel->send_iov};
        message.msg_iovlen = (size_t)channel_gather(channel, channel->send_iov, IOV_MAX_SEND);
        ssize_t sent = sendmsg(channel->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0)
            channel_sent(channel, (size_t)sent);
        else if (errno == EAGAIN)
            blocked = true;
        else if (errno != EINTR)
            channel->closing = true;
    }
    if (blocked != channel->watching_output && !channel->closing) {
        channel->watching_output = blocked;
        watch(loop, channel, EPOLL_CTL_MOD);
    }
}

static void close_channel(struct loop *loop, struct channel *channel)
{
    loop->channels--;
    channel->ops->closed(channel);
    channel_free(channel);
}

int loop_run(struct loop *loop)
{
    struct epoll_event events[EVENTS_MAX];
    for (;;) {
        int count = epoll_wait(loop->epoll_fd, events, EVENTS_MAX, -1);
        if (count < 0 && errno != EINTR)
            return -1;
        for (int i = 0; i < count; i++) {
            struct channel *channel = events[i].data.ptr;
            if (!channel) {
                int fd = accept4(loop->listen_fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0)
                    loop->accepted(loop, fd);
                continue;
            }
            if (channel->paused && events[i].events & (EPOLLHUP | EPOLLERR))
                channel->closing = true;
            if (channel->closing || events[i].events & EPOLLOUT)
                loop_touch(loop, channel);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(loop, channel);
        }
        for (int i = 0; i < loop->dirty_count; i++) {
            struct channel *channel = loop->dirty[i];
            channel->dirty = false;
            flush(loop, channel);
            if (channel->closing && !channel->dirty)
                close_channel(loop, channel);
        }
        loop->dirty_count = 0;
    }
}
