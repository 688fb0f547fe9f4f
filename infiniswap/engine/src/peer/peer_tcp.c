/* Page I/O with a peer over TCP: NBD requests pipelined on two connections, one for page-ins, one for page-outs, so that
 * a page-in never stands behind a queue of page-outs.  Only the loop marks a peer dead; Python hears of it afterwards. */
#include "device.h"
#include "peer.h"
#include "peer_tcp.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GATHER_VECTORS = 512 }; /* below IOV_MAX (1024) */

static void link_open(struct peer_link *link, int fd)
{
    link->tcp.fd = fd;
    link->tcp.readable = link->tcp.writable = true;
    link->tcp.hung_up = false;
    link->tcp.rx_start = link->tcp.rx_end = link->tcp.received = 0;
    link->tcp.receiving = NULL;
}

void peer_open_tcp(struct peer *peer, int read_fd, int write_fd)
{
    peer_opened(peer, &transport_tcp);
    link_open(&peer->read, read_fd);
    link_open(&peer->write, write_fd);
    set32(&view_of(peer)->attached, 1);
}

static void put_head(struct transfer *t)
{
    uint16_t command = t->kind == TRANSFER_PEER_READ    ? NBD_CMD_READ
                       : t->kind == TRANSFER_PEER_WRITE ? NBD_CMD_WRITE
                                                        : NBD_CMD_TRIM;
    nbd_put_request(t->head, command, 0, t->id, t->first * ISW_PAGE_BYTES + t->skip, t->bytes);
}

/* ---- sending ---- */

static size_t payload_bytes(const struct transfer *t)
{
    return t->kind == TRANSFER_PEER_WRITE ? t->bytes : 0;
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
            put_head(t);
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

static void send_some(struct device *d, struct peer_link *link)
{
    struct iovec iov[GATHER_VECTORS];
    while (link->tcp.writable && link->unsent.first) {
        size_t total;
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(link, iov, &total)};
        ssize_t sent = sendmsg(link->tcp.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR)
                continue;
            link->tcp.writable = false;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                peer_fail(link, errno);
            return;
        }
        if (!link->in_flight.count)
            link->progress_ns = d->now_ns; /* the clock starts: an answer is owed */
        count64(&view_of(link->peer)->bytes_out, (uint64_t)sent);
        if ((size_t)sent < total)
            link->tcp.writable = false;
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

static void event(struct device *d, struct peer_link *link, uint32_t events)
{
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        link->tcp.writable = true;
    if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        link->tcp.hung_up = true;
    if (link->tcp.hung_up || (events & EPOLLIN)) {
        link->tcp.readable = true;
        peer_tcp_receive(d, link);
    }
}

static void close_link(struct device *d, struct peer_link *link)
{
    struct linger at_once = {.l_onoff = 1};
    (void)d;
    if (link->unsent.count || link->in_flight.count) /* what the kernel has not sent yet shall not land behind later writes */
        setsockopt(link->tcp.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(link->tcp.fd);
    link->tcp.fd = -1;
}

const struct transport transport_tcp = {.trims = true, .send = send_some, .close = close_link, .link_event = event};
