/* Answers of a peer over TCP: checked against what was asked, their payload received where it belongs. */
#include "device.h"
#include "op.h"
#include "peer.h"
#include "peer_tcp.h"

#include <sys/socket.h>

enum {
    FORESEEN = 48, /* answers that one recvmsg may put in place */
    FORESEEN_VECTORS = 256,
};

static struct transfer *find(struct device *d, struct peer_link *link, uint64_t cookie)
{
    uint32_t id = (uint32_t)cookie, index = id & 0xffff;
    if (cookie > UINT32_MAX || index >= TRANSFERS)
        return NULL;
    struct transfer *t = &d->transfers[index];
    /* An answer to what this link did not ask, or has not sent to the end, is not an answer. */
    return t->id == id && t->link == link ? t : NULL;
}

/* Takes the payload of the READ being received.  False: there is more to come. */
static bool take_payload(struct device *d, struct peer_link *link)
{
    struct transfer *t = link->tcp.receiving;
    uint32_t bytes = t->pages * ISW_PAGE_BYTES;
    while (link->tcp.received < bytes && link->tcp.rx_start < link->tcp.rx_end) {
        uint32_t inside = link->tcp.received % ISW_PAGE_BYTES, piece = ISW_PAGE_BYTES - inside;
        uint32_t have = link->tcp.rx_end - link->tcp.rx_start;
        if (piece > have)
            piece = have;
        uint8_t *page = op_page(d, t->op, t->at + link->tcp.received / ISW_PAGE_BYTES);
        memcpy(page + inside, link->tcp.rx + link->tcp.rx_start, piece);
        link->tcp.received += piece;
        link->tcp.rx_start += piece;
    }
    if (link->tcp.received < bytes)
        return false;
    link->tcp.receiving = NULL;
    peer_answered(d, link, t, 0);
    return true;
}

static void parse(struct device *d, struct peer_link *link)
{
    while (!link->peer->failed) {
        if (link->tcp.receiving) {
            if (!take_payload(d, link))
                return;
            continue;
        }
        if (link->tcp.rx_end - link->tcp.rx_start < NBD_SIMPLE_REPLY_BYTES)
            return;
        const uint8_t *reply = link->tcp.rx + link->tcp.rx_start;
        uint64_t cookie;
        memcpy(&cookie, reply + 8, sizeof cookie);
        struct transfer *t = nbd_get32(reply) == NBD_SIMPLE_REPLY_MAGIC ? find(d, link, cookie) : NULL;
        if (!t) {
            peer_fail(link, EPROTO);
            return;
        }
        uint32_t error = nbd_get32(reply + 4);
        link->tcp.rx_start += NBD_SIMPLE_REPLY_BYTES;
        if (!error && t->kind == TRANSFER_PEER_READ) {
            link->tcp.receiving = t;
            link->tcp.received = 0;
        } else {
            peer_answered(d, link, t, (int)(error > 0xfff ? EIO : error));
        }
    }
}

static void received(struct device *d, struct peer_link *link, size_t got, size_t room)
{
    link->tcp.readable = got == room || link->tcp.hung_up; /* less: the socket is empty, and epoll tells when it is not */
    link->progress_ns = d->now_ns;
    count64(&view_of(link->peer)->bytes_in, got);
}

static void receive_failed(struct peer_link *link, ssize_t got)
{
    if (got < 0 && errno == EINTR)
        return;
    link->tcp.readable = false;
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
        peer_fail(link, got ? errno : ECONNRESET);
}

static void receive_plain(struct device *d, struct peer_link *link)
{
    if (link->tcp.rx_start == link->tcp.rx_end) {
        link->tcp.rx_start = link->tcp.rx_end = 0;
    } else if (link->tcp.rx_start) { /* less than a reply's header is left */
        memmove(link->tcp.rx, link->tcp.rx + link->tcp.rx_start, link->tcp.rx_end - link->tcp.rx_start);
        link->tcp.rx_end -= link->tcp.rx_start;
        link->tcp.rx_start = 0;
    }
    size_t room = PEER_RX_BYTES - link->tcp.rx_end;
    ssize_t got = recv(link->tcp.fd, link->tcp.rx + link->tcp.rx_end, room, MSG_DONTWAIT);
    if (got <= 0) {
        receive_failed(link, got);
        return;
    }
    link->tcp.rx_end += (uint32_t)got;
    received(d, link, (size_t)got, room);
    parse(d, link);
}

_Static_assert(PEER_RX_BYTES > ISW_OP_PAGES_MAX * ISW_PAGE_BYTES + NBD_SIMPLE_REPLY_BYTES, "any answer is foreseen");

/* ---- receiving in place: our daemons answer in order, so the next bytes' places are known before they come ---- */

struct foresight {
    struct transfer *transfer[FORESEEN];
    uint8_t head[FORESEEN][NBD_SIMPLE_REPLY_BYTES];
    uint32_t transfers;
    struct iovec iov[FORESEEN_VECTORS];
    uint32_t vectors;
    size_t room;
};

static void foresee_bytes(struct foresight *f, void *at, size_t bytes)
{
    f->iov[f->vectors++] = (struct iovec){at, bytes};
    f->room += bytes;
}

static void foresee_payload(struct foresight *f, const struct transfer *t, size_t have)
{
    for (uint32_t i = 0; i < t->vectors; i++) {
        size_t bytes = t->iov[i].iov_len;
        if (have < bytes)
            foresee_bytes(f, (char *)t->iov[i].iov_base + have, bytes - have);
        have -= have < bytes ? have : bytes;
    }
}

static void foresee(struct foresight *f, const struct peer_link *link)
{
    f->transfers = f->vectors = 0;
    f->room = 0;
    if (link->tcp.receiving)
        foresee_payload(f, link->tcp.receiving, link->tcp.received);
    for (struct transfer *t = link->in_flight.first; t; t = t->next) {
        if (t == link->tcp.receiving)
            continue;
        if (f->transfers == FORESEEN || f->vectors + 1 + t->vectors > FORESEEN_VECTORS ||
            f->room + NBD_SIMPLE_REPLY_BYTES + t->pages * ISW_PAGE_BYTES > PEER_RX_BYTES)
            break;
        foresee_bytes(f, f->head[f->transfers], NBD_SIMPLE_REPLY_BYTES);
        foresee_payload(f, t, 0);
        f->transfer[f->transfers++] = t;
    }
}

/* It came otherwise: bring what was received from position on to where parse looks for it. */
static void unforeseen(struct device *d, struct peer_link *link, const struct foresight *f, size_t position, size_t got)
{
    for (uint32_t i = 0; i < f->vectors && got; i++) {
        size_t bytes = f->iov[i].iov_len < got ? f->iov[i].iov_len : got;
        got -= bytes;
        if (position >= bytes) {
            position -= bytes;
            continue;
        }
        memcpy(link->tcp.rx + link->tcp.rx_end, (char *)f->iov[i].iov_base + position, bytes - position);
        link->tcp.rx_end += (uint32_t)(bytes - position);
        position = 0;
    }
    parse(d, link);
}

static void receive_in_place(struct device *d, struct peer_link *link)
{
    struct foresight f;
    foresee(&f, link);
    struct msghdr message = {.msg_iov = f.iov, .msg_iovlen = f.vectors};
    ssize_t result = recvmsg(link->tcp.fd, &message, MSG_DONTWAIT);
    if (result <= 0) {
        receive_failed(link, result);
        return;
    }
    size_t got = (size_t)result, position = 0;
    received(d, link, got, f.room);
    link->tcp.rx_start = link->tcp.rx_end = 0;
    if (link->tcp.receiving) {
        struct transfer *t = link->tcp.receiving;
        size_t rest = t->pages * ISW_PAGE_BYTES - link->tcp.received, here = rest < got ? rest : got;
        link->tcp.received += (uint32_t)here;
        position = here;
        if (here < rest)
            return;
        link->tcp.receiving = NULL;
        peer_answered(d, link, t, 0);
    }
    for (uint32_t i = 0; i < f.transfers && position < got && !link->peer->failed; i++) {
        struct transfer *t = f.transfer[i];
        uint64_t cookie;
        memcpy(&cookie, f.head[i] + 8, sizeof cookie);
        bool whole = got - position >= NBD_SIMPLE_REPLY_BYTES;
        if (!whole || nbd_get32(f.head[i]) != NBD_SIMPLE_REPLY_MAGIC || nbd_get32(f.head[i] + 4) || cookie != t->id) {
            unforeseen(d, link, &f, position, got);
            return;
        }
        position += NBD_SIMPLE_REPLY_BYTES;
        size_t bytes = t->pages * ISW_PAGE_BYTES;
        if (got - position < bytes) {
            link->tcp.receiving = t;
            link->tcp.received = (uint32_t)(got - position);
            return;
        }
        position += bytes;
        peer_answered(d, link, t, 0);
    }
}

void peer_tcp_receive(struct device *d, struct peer_link *link)
{
    while (link->tcp.readable && !link->peer->failed) {
        bool in_place = link == &link->peer->read && link->tcp.rx_start == link->tcp.rx_end && link->in_flight.count;
        if (in_place)
            receive_in_place(d, link);
        else
            receive_plain(d, link);
    }
}
