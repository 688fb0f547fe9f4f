/* Page I/O with a peer over TCP: NBD requests pipelined on two connections, one for page-ins, one for page-outs, so that
 * a page-in never stands behind a queue of page-outs.  Only the loop marks a peer dead; Python hears of it afterwards. */
#include "peer_tcp.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GATHER_VECTORS = 512 }; /* below IOV_MAX (1024) */

static void link_open(struct peer_link *link, int fd, uint64_t now_ns)
{
    link->fd = fd;
    link->readable = link->writable = true;
    link->hung_up = false;
    link->unsent = link->in_flight = (struct transfer_list){0};
    link->sent = link->rx_start = link->rx_end = link->received = 0;
    link->receiving = NULL;
    link->progress_ns = now_ns;
    link->oldest = 0;
}

void peer_open(struct peer *peer, int read_fd, int write_fd)
{
    peer->attached = true;
    peer->failed = 0;
    link_open(&peer->read, read_fd, peer->device->now_ns);
    link_open(&peer->write, write_fd, peer->device->now_ns);
    set32(&view_of(peer)->attached, 1);
}

void peer_submit(struct device *d, uint32_t number, struct transfer *t)
{
    struct peer *peer = &d->peers[number];
    struct peer_link *link = t->kind == TRANSFER_PEER_READ ? &peer->read : &peer->write;
    uint16_t command = t->kind == TRANSFER_PEER_READ    ? NBD_CMD_READ
                       : t->kind == TRANSFER_PEER_WRITE ? NBD_CMD_WRITE
                                                        : NBD_CMD_TRIM;
    nbd_put_request(t->head, command, 0, t->id, t->first * ISW_PAGE_BYTES, t->pages * ISW_PAGE_BYTES);
    if (!link->in_flight.count && !link->unsent.count)
        link->progress_ns = d->now_ns;
    list_append(&link->unsent, t);
    count32(&view_of(peer)->in_flight, 1);
    count64(t->kind == TRANSFER_PEER_READ ? &view_of(peer)->reads : &view_of(peer)->writes, 1);
}

/* ---- sending ---- */

static size_t payload_bytes(const struct transfer *t)
{
    return t->kind == TRANSFER_PEER_WRITE ? (size_t)t->pages * ISW_PAGE_BYTES : 0;
}

static size_t gather(struct peer_link *link, struct iovec *iov, size_t *total)
{
    size_t vectors = 0, skip = link->sent;
    *total = 0;
    for (struct transfer *t = link->unsent.first; t; t = t->next) {
        size_t payload = t->kind == TRANSFER_PEER_WRITE ? t->vectors : 0;
        if (vectors + 1 + payload > GATHER_VECTORS)
            break;
        if (skip < NBD_REQUEST_BYTES) {
            iov[vectors++] = (struct iovec){t->head + skip, NBD_REQUEST_BYTES - skip};
            skip = 0;
        } else {
            skip -= NBD_REQUEST_BYTES;
        }
        for (size_t i = 0; i < payload; i++) {
            if (skip >= t->iov[i].iov_len) {
                skip -= t->iov[i].iov_len;
                continue;
            }
            iov[vectors++] = (struct iovec){(char *)t->iov[i].iov_base + skip, t->iov[i].iov_len - skip};
            skip = 0;
        }
    }
    for (size_t i = 0; i < vectors; i++)
        *total += iov[i].iov_len;
    return vectors;
}

static void send_some(struct peer_link *link, uint64_t now_ns)
{
    struct iovec iov[GATHER_VECTORS];
    while (link->writable && link->unsent.first) {
        size_t total;
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(link, iov, &total)};
        ssize_t sent = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            link->writable = false;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                peer_fail(link, errno);
            return;
        }
        if (!link->in_flight.count)
            link->progress_ns = now_ns; /* the clock starts: an answer is owed */
        count64(&view_of(link->peer)->bytes_out, (uint64_t)sent);
        if ((size_t)sent < total)
            link->writable = false;
        size_t left = (size_t)sent + link->sent;
        struct transfer *t;
        while ((t = link->unsent.first) && left >= NBD_REQUEST_BYTES + payload_bytes(t)) {
            left -= NBD_REQUEST_BYTES + payload_bytes(t);
            list_remove(&link->unsent, t);
            list_append(&link->in_flight, t);
            t->link = link;
        }
        link->sent = (uint32_t)left;
    }
}

void peers_send(struct device *d)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (!peer->attached || peer->failed)
            continue;
        send_some(&peer->read, d->now_ns);
        send_some(&peer->write, d->now_ns);
    }
}

void peer_event(struct device *d, struct peer_link *link, uint32_t events)
{
    if (link->fd < 0)
        return;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        link->writable = true;
    if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        link->hung_up = true;
    if (link->hung_up || (events & EPOLLIN)) {
        link->readable = true;
        peer_receive(d, link);
    }
}

/* ---- loss ---- */

void slab_lost(struct device *d, uint32_t number, int error)
{
    struct isw_slab_view *view = &d->slab_views[number];
    struct slab *slab = &d->slab[number];
    uint32_t peer = slab->releasing ? slab->released_peer : (uint32_t)view->peer;
    bool draining = view->state == ISW_SLAB_DRAINING;
    count32(&view->generation, 1);
    set32(&view->state, ISW_SLAB_UNMAPPED);
    __atomic_store_n(&view->peer, -1, __ATOMIC_RELAXED);
    slab->touched = slab->releasing = false;
    slab_forget_remote(d, number);
    if (draining) {
        tally(d, ISW_DEVICE_slabs_released, 1);
        event_post(&d->events, ISW_EVENT_SLAB_RELEASED, peer, number, 0);
        return;
    }
    tally(d, ISW_DEVICE_slabs_lost, 1);
    if (error)
        event_post(&d->events, ISW_EVENT_SLAB_LOST, peer, number, (uint64_t)error);
}

static void give_up_all(struct device *d, struct transfer_list *list)
{
    while (list->first) {
        struct transfer *t = list->first;
        list_remove(list, t);
        t->link = NULL;
        op_transferred(d, t, EIO);
    }
}

void peer_down(struct device *d, struct peer *peer, int error, bool tell)
{
    uint32_t lost = 0;
    peer->attached = false;
    peer->failed = 0;
    /* The sockets go first: whatever a hung peer still does with what it was sent, nobody will read it. */
    close(peer->read.fd);
    close(peer->write.fd);
    peer->read.fd = peer->write.fd = -1;
    for (uint32_t slab = 0; slab < d->slabs; slab++) {
        if (d->slab_views[slab].peer == (int32_t)peer->number) {
            slab_lost(d, slab, 0);
            lost++;
        }
    }
    give_up_all(d, &peer->read.in_flight);
    give_up_all(d, &peer->read.unsent);
    give_up_all(d, &peer->write.in_flight);
    give_up_all(d, &peer->write.unsent);
    set32(&view_of(peer)->attached, 0);
    set32(&view_of(peer)->in_flight, 0);
    if (!tell)
        return;
    count64(&view_of(peer)->failures, 1);
    tally(d, ISW_DEVICE_peers_lost, 1);
    event_post(&d->events, ISW_EVENT_PEER_LOST, peer->number, lost, (uint64_t)error);
}

void peers_take_down(struct device *d)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++)
        if (d->peers[i].attached && d->peers[i].failed)
            peer_down(d, &d->peers[i], d->peers[i].failed, true);
}

/* Nothing comes at all, or answers to others do and one is left out.  A long queue alone is no reason: it has a new oldest
 * request with each answer. */
static bool overdue(const struct device *d, struct peer_link *link)
{
    uint64_t limit_ns = (uint64_t)d->config.peer_timeout_ms * 1000000u;
    uint32_t oldest = link->in_flight.first ? link->in_flight.first->id : 0; /* ids begin at 1 << 16 */
    if (oldest != link->oldest) {
        link->oldest = oldest;
        link->oldest_ns = d->now_ns;
    }
    bool waiting = link->in_flight.count || link->unsent.count;
    bool silent = waiting && d->now_ns > link->progress_ns && d->now_ns - link->progress_ns > limit_ns;
    return silent || (oldest && d->now_ns - link->oldest_ns > limit_ns);
}

void peers_check_time(struct device *d)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        if (peer->attached && (overdue(d, &peer->read) || overdue(d, &peer->write)))
            peer_fail(&peer->read, ETIMEDOUT);
    }
}
