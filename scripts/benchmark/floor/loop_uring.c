#include <errno.h>
#include <liburing.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

/* Entries: a receive and a send for each channel, and one accept. */
enum { RING_ENTRIES = 2 * LOOP_CHANNELS_MAX + 2 };

enum tag { TAG_RECEIVE = 0, TAG_SEND = 1, TAG_ACCEPT = 2, TAG_MASK = 3 };

struct uring_state {
    struct io_uring ring;
    int listen_fd;
    bool file_used[LOOP_CHANNELS_MAX];
};

static struct uring_state the_state; /* one loop per process */

static int uring_open(struct loop *loop)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
    };
    loop->state = &the_state;
    if (io_uring_queue_init_params(RING_ENTRIES, &the_state.ring, &params) ||
        io_uring_register_files_sparse(&the_state.ring, LOOP_CHANNELS_MAX))
        return -1;
    (void)io_uring_register_ring_fd(&the_state.ring); /* only saves time */
    return 0;
}

static void arm_accept(struct uring_state *state)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&state->ring);
    io_uring_prep_accept(sqe, state->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    sqe->user_data = TAG_ACCEPT;
}

static int uring_listen(struct loop *loop, int fd)
{
    struct uring_state *state = loop->state;
    state->listen_fd = fd;
    arm_accept(state);
    return 0;
}

static int uring_add(struct loop *loop, struct channel *channel)
{
    struct uring_state *state = loop->state;
    for (int i = 0; i < LOOP_CHANNELS_MAX; i++) {
        if (state->file_used[i])
            continue;
        if (io_uring_register_files_update(&state->ring, (unsigned)i, &channel->fd, 1) != 1)
            return -1;
        state->file_used[i] = true;
        channel->file = i;
        loop_touch(loop, channel);
        return 0;
    }
    return -1;
}

static void uring_resume(struct loop *loop, struct channel *channel)
{
    loop_touch(loop, channel);
}

static void arm_receive(struct uring_state *state, struct channel *channel, bool poll_first)
{
    uint8_t *to;
    size_t bytes;
    if (!channel_receive_space(channel, &to, &bytes)) {
        channel->closing = true;
        return;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&state->ring);
    io_uring_prep_recv(sqe, channel->file, to, bytes, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    if (poll_first)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST; /* it was drained: a try now would only fail */
    sqe->user_data = (uintptr_t)channel | TAG_RECEIVE;
    channel->receiving = true;
}

static void arm_send(struct uring_state *state, struct channel *channel)
{
    channel->send_message = (struct msghdr){.msg_iov = channel->send_iov};
    channel->send_message.msg_iovlen = (size_t)channel_gather(channel, channel->send_iov, IOV_MAX_SEND);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&state->ring);
    io_uring_prep_sendmsg(sqe, channel->file, &channel->send_message, MSG_NOSIGNAL | MSG_WAITALL);
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = (uintptr_t)channel | TAG_SEND;
    channel->sending = true;
}

static void close_channel(struct loop *loop, struct channel *channel)
{
    struct uring_state *state = loop->state;
    int none = -1;
    (void)io_uring_register_files_update(&state->ring, (unsigned)channel->file, &none, 1);
    state->file_used[channel->file] = false;
    loop->channels--;
    channel->ops->closed(channel);
    channel_free(channel);
}

static void complete(struct loop *loop, const struct io_uring_cqe *cqe)
{
    struct uring_state *state = loop->state;
    unsigned tag = (unsigned)(cqe->user_data & TAG_MASK);
    if (tag == TAG_ACCEPT) {
        if (cqe->res >= 0)
            loop->accepted(loop, cqe->res);
        arm_accept(state);
        return;
    }
    struct channel *channel = (struct channel *)(uintptr_t)(cqe->user_data & ~(uint64_t)TAG_MASK);
    bool again = cqe->res == -EINTR || cqe->res == -EAGAIN;
    if (tag == TAG_SEND) {
        channel->sending = false;
        if (cqe->res > 0)
            channel_sent(channel, (size_t)cqe->res);
        else if (!again)
            channel->closing = true;
    } else {
        channel->receiving = false;
        channel->more_input = cqe->flags & IORING_CQE_F_SOCK_NONEMPTY;
        if (cqe->res > 0 && !channel->closing) {
            if (channel_received(channel, (size_t)cqe->res))
                channel->closing = true;
        } else if (!again) {
            channel->closing = true;
        }
    }
    loop_touch(loop, channel);
}

static void advance(struct loop *loop, struct channel *channel)
{
    struct uring_state *state = loop->state;
    if (!channel->closing && !channel->sending && channel->out_first != channel->out_last)
        arm_send(state, channel);
    if (!channel->closing && !channel->receiving && !channel->paused)
        arm_receive(state, channel, !channel->more_input);
    if (!channel->closing)
        return;
    if (channel->receiving || channel->sending)
        (void)shutdown(channel->fd, SHUT_RDWR); /* makes both come back; the last one closes */
    else
        close_channel(loop, channel);
}

static void complete_all(struct loop *loop)
{
    struct uring_state *state = loop->state;
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&state->ring, head, cqe) {
        complete(loop, cqe);
        count++;
    }
    io_uring_cq_advance(&state->ring, count);
}

/* Sends go out in a submission of their own: most end at once, and the chunks they held are received into again, warm. */
static void send_all(struct loop *loop)
{
    struct uring_state *state = loop->state;
    bool any = false;
    for (int i = 0; i < loop->dirty_count; i++) {
        struct channel *channel = loop->dirty[i];
        if (!channel->closing && !channel->sending && channel->out_first != channel->out_last) {
            arm_send(state, channel);
            any = true;
        }
    }
    if (any && io_uring_submit(&state->ring) > 0)
        complete_all(loop);
}

static int uring_run(struct loop *loop)
{
    struct uring_state *state = loop->state;
    for (;;) {
        send_all(loop);
        for (int i = 0; i < loop->dirty_count; i++) {
            loop->dirty[i]->dirty = false;
            advance(loop, loop->dirty[i]);
        }
        loop->dirty_count = 0;
        int submitted = io_uring_submit_and_wait(&state->ring, 1);
        if (submitted < 0 && submitted != -EINTR)
            return -1;
        complete_all(loop);
    }
}

const struct loop_kind loop_uring = {
    .name = "uring",
    .open = uring_open,
    .listen = uring_listen,
    .add = uring_add,
    .resume = uring_resume,
    .run = uring_run,
};
