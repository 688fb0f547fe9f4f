/* Page I/O with a peer over RDMA: one-sided READ and WRITE of the slab's memory, so that no program of the peer takes part.
 * Two queue pairs, as TCP has two connections: a READ must not stand behind a queue of WRITEs. */
#include "device.h"
#include "events.h"
#include "loop.h"
#include "peer.h"
#include "rdma.h"
#include "transport.h"

#include <sys/epoll.h>

enum {
    COMPLETIONS_AT_ONCE = 32,
    POLLS_PER_ROUND = 8,       /* batches of completions before others have their turn */
    SPIN_POLLS = 64,           /* looks for a completion between two looks at the sockets: a few microseconds */
    USUAL_SHIFT = 3,           /* how slowly usual_ns follows: by an eighth */
    SPIN_AGAIN_SLEEPS = 64,    /* sleeps after which asking again and again gets another chance */
    PROBE_ID = 0xffff,         /* of no transfer: their index is below TRANSFERS */
};
enum { PORT_COMPLETIONS, PORT_ASYNC }; /* its descriptors */
_Static_assert((int)TRANSFERS <= (int)PROBE_ID, "a probe is told from a transfer by the lower half of its id");
_Static_assert(ISW_PEERS_MAX <= 64, "six bits of a work request's id");

/* ---- ids: generation of the link, its peer, which of the two, then the transfer's own id ---- */

static uint64_t work_id(const struct peer_link *link, uint32_t id)
{
    uint64_t writes = link == &link->peer->write;
    return (uint64_t)(link->rdma.generation & 0xffffff) << 40 | (uint64_t)link->peer->number << 33 | writes << 32 | id;
}

/* NULL: of a queue pair that is no more. */
static struct peer_link *link_of(struct device *d, uint64_t id)
{
    uint32_t number = (uint32_t)(id >> 33) & 0x7f;
    if (number >= d->config.peers_max)
        return NULL;
    struct peer_link *link = id >> 32 & 1 ? &d->peers[number].write : &d->peers[number].read;
    return link->rdma.qp && (link->rdma.generation & 0xffffff) == (uint32_t)(id >> 40) ? link : NULL;
}

/* ---- posting ---- */

static void begin_wait(struct device *d, struct peer_link *link, uint32_t transfers)
{
    struct rdma *r = d->rdma;
    if (!link->in_flight.count)
        link->progress_ns = d->now_ns; /* the clock starts: an answer is owed */
    r->in_flight += transfers;
    if (r->sleeps >= SPIN_AGAIN_SLEEPS) { /* here, not before a sleep: how long that one takes would undo it */
        r->sleeps = 0;
        r->usual_ns = r->poll_ns;
    }
    if (r->usual_ns <= r->poll_ns)
        r->spin_until_ns = d->now_ns + r->poll_ns;
}

/* Work requests for one transfer; each takes as many pieces of memory as the port gathers at once. */
static uint32_t put_requests(struct device *d, struct peer_link *link, struct transfer *t, struct ibv_send_wr *wr,
                             struct ibv_sge (*sge)[RDMA_SGES_MAX])
{
    const struct rdma *r = d->rdma;
    const struct slab_place *place = &d->slab[t->slab].place[t->place];
    uint64_t remote = place->address + (t->first & (d->slab_pages - 1)) * ISW_PAGE_BYTES + t->skip;
    uint32_t count = 0;
    for (uint32_t at = 0; at < t->vectors; count++) {
        uint32_t sges = 0, bytes = 0;
        for (; at < t->vectors && sges < r->sges_max; at++, sges++) {
            sge[count][sges] = (struct ibv_sge){
                .addr = (uintptr_t)t->iov[at].iov_base, .length = (uint32_t)t->iov[at].iov_len, .lkey = r->mr->lkey};
            bytes += (uint32_t)t->iov[at].iov_len;
        }
        bool write = t->kind == TRANSFER_PEER_WRITE;
        wr[count] = (struct ibv_send_wr){
            .wr_id = work_id(link, t->id),
            .next = &wr[count + 1],
            .sg_list = sge[count],
            .num_sge = (int)sges,
            .opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
            .send_flags = write && bytes <= r->inline_bytes ? IBV_SEND_INLINE : 0,
            .wr.rdma = {.remote_addr = remote, .rkey = place->key},
        };
        remote += bytes;
    }
    t->pieces = count;
    return count;
}

/* Posts one chain.  False: there is nothing that goes now. */
static bool send_chain(struct device *d, struct peer_link *link)
{
    struct ibv_send_wr wr[RDMA_CHAIN + 1], *bad; /* one more: what the last but one's next points to */
    struct ibv_sge sge[RDMA_CHAIN][RDMA_SGES_MAX];
    uint32_t count = 0, transfers = 0;
    for (struct transfer *t = link->unsent.first; t; t = t->next) {
        uint32_t most = (t->vectors + d->rdma->sges_max - 1) / d->rdma->sges_max;
        if (count + most > RDMA_CHAIN || link->rdma.posted + count + most > d->rdma->depth)
            break;
        count += put_requests(d, link, t, &wr[count], &sge[count]);
        if (++transfers % RDMA_SIGNAL_EVERY == 0)
            wr[count - 1].send_flags |= IBV_SEND_SIGNALED;
    }
    if (!transfers)
        return false;
    wr[count - 1].send_flags |= IBV_SEND_SIGNALED;
    wr[count - 1].next = NULL;
    begin_wait(d, link, transfers);
    link->rdma.posted += count;
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 0; i < transfers; i++) {
        struct transfer *t = link->unsent.first;
        list_remove(&link->unsent, t);
        list_append(&link->in_flight, t);
        t->link = link;
        t->started_ns = now_ns;
        if (t->kind == TRANSFER_PEER_WRITE)
            count64(&view_of(link->peer)->bytes_out, t->bytes);
    }
    int error = ibv_post_send(link->rdma.qp, wr, &bad);
    if (error)
        peer_fail(link, error);
    return !error;
}

static void send_all(struct device *d, struct peer_link *link)
{
    while (link->unsent.first && !link->probing && send_chain(d, link))
        continue;
}

/* ---- opening and closing ---- */

/* A page through a new queue pair, with the path's full MTU, before anything depends on it. */
static int probe(struct device *d, struct peer_link *link, const struct rdma_path *path)
{
    bool write = link == &link->peer->write;
    uint8_t *page = d->probe_pages + (size_t)(link->peer->number * 2 + write) * ISW_PAGE_BYTES;
    struct ibv_sge sge = {.addr = (uintptr_t)page, .length = ISW_PAGE_BYTES, .lkey = d->rdma->mr->lkey};
    struct ibv_send_wr *bad, wr = {
        .wr_id = work_id(link, PROBE_ID),
        .sg_list = &sge,
        .num_sge = 1,
        .opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
        .send_flags = IBV_SEND_SIGNALED,
        .wr.rdma = {.remote_addr = path->probe_address, .rkey = path->probe_rkey},
    };
    begin_wait(d, link, 1);
    link->probing = true;
    return ibv_post_send(link->rdma.qp, &wr, &bad);
}

static void link_open(struct rdma *r, struct peer_link *link, struct ibv_qp *qp)
{
    link->rdma.qp = qp;
    link->rdma.generation = r->generation++;
    link->rdma.posted = 0;
}

int peer_open_rdma(struct peer *peer)
{
    struct device *d = peer->device;
    struct rdma_path *path = &d->rdma->path[peer->number];
    peer_opened(peer, &transport_rdma);
    link_open(d->rdma, &peer->read, path->qp[0]);
    link_open(d->rdma, &peer->write, path->qp[1]);
    path->qp[0] = path->qp[1] = NULL;
    int error = probe(d, &peer->read, path);
    if (!error)
        error = probe(d, &peer->write, path);
    if (error)
        peer_down(d, peer, error, false);
    return -error;
}

/* Until the queue pair is gone its port may read and write our buffers, whatever became of the peer. */
static void close_link(struct device *d, struct peer_link *link)
{
    d->rdma->in_flight -= link->in_flight.count + link->probing;
    d->rdma->leftover = true;
    link->probing = false;
    d->rdma->verbs.destroy_qp(link->rdma.qp);
    link->rdma.qp = NULL;
}

/* ---- completions ---- */

static int error_of(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
        return ETIMEDOUT;
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
        return EACCES; /* the key is stale: the peer has taken the slab back */
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_ABORT_ERR:
        return EREMOTEIO;
    default:
        return EIO;
    }
}

static void probed(struct device *d, struct peer_link *link)
{
    struct peer *peer = link->peer;
    link->probing = false;
    d->rdma->in_flight--;
    if (peer->read.probing || peer->write.probing)
        return;
    set32(&view_of(peer)->attached, 1);
    peer_tell(d, ISW_EVENT_PEER_READY, peer->number, 0, 0);
}

static void note_wait(struct rdma *r, uint64_t took_ns)
{
    r->usual_ns += (took_ns >> USUAL_SHIFT) - (r->usual_ns >> USUAL_SHIFT);
}

/* A queue pair completes in order: this one's end is the end of all before it, which asked for no completion. */
static void transfers_done(struct device *d, struct peer_link *link, uint32_t id)
{
    struct transfer *last = (id & 0xffff) < TRANSFERS ? &d->transfers[id & 0xffff] : NULL, *t;
    if (!last || last->id != id || last->link != link) {
        peer_fail(link, EPROTO);
        return;
    }
    note_wait(d->rdma, d->now_ns - last->started_ns);
    do {
        t = link->in_flight.first;
        link->rdma.posted -= t->pieces;
        d->rdma->in_flight--;
        if (t->kind == TRANSFER_PEER_READ)
            count64(&view_of(link->peer)->bytes_in, t->bytes);
        peer_answered(d, link, t, 0);
    } while (t != last);
}

static void complete(struct device *d, const struct ibv_wc *wc)
{
    struct peer_link *link = link_of(d, wc->wr_id);
    tally(d, ISW_DEVICE_rdma_completions, 1);
    if (!link) {
        tally(d, ISW_DEVICE_rdma_late_completions, 1);
        return;
    }
    link->progress_ns = d->now_ns;
    if (wc->status != IBV_WC_SUCCESS)
        peer_fail(link, error_of(wc->status)); /* the first error is the reason, those after it are flushed requests */
    else if (link->peer->failed)
        return; /* it goes down this round; its transfers are asked for elsewhere then */
    else if ((uint32_t)wc->wr_id == PROBE_ID)
        probed(d, link);
    else
        transfers_done(d, link, (uint32_t)wc->wr_id);
}

static void all_peers_fail(struct device *d, int error)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++)
        if (d->peers[i].attached && d->peers[i].read.rdma.qp)
            peer_fail(&d->peers[i].read, error);
    if (!d->rdma->lost)
        event_post(&d->events, (struct isw_event){.kind = ISW_EVENT_RDMA_LOST, .value = (uint64_t)error});
    d->rdma->lost = true;
}

/* True: something had come. */
static bool take_completions(struct device *d)
{
    struct ibv_wc wc[COMPLETIONS_AT_ONCE];
    int count = ibv_poll_cq(d->rdma->cq, COMPLETIONS_AT_ONCE, wc);
    if (count < 0) {
        all_peers_fail(d, EIO);
        return true;
    }
    if (!count)
        return false;
    d->now_ns = clock_ns();
    for (int i = 0; i < count; i++)
        complete(d, &wc[i]);
    if (d->rdma->in_flight && d->rdma->usual_ns <= d->rdma->poll_ns)
        d->rdma->spin_until_ns = d->now_ns + d->rdma->poll_ns;
    return true;
}

static void poll_completions(struct device *d)
{
    if (!d->rdma || d->rdma->lost || !(d->rdma->in_flight || d->rdma->leftover))
        return;
    d->rdma->leftover = false;
    bool spinning = d->now_ns < d->rdma->spin_until_ns;
    uint32_t batches = 0;
    for (uint32_t looks = spinning ? SPIN_POLLS : 1; looks && batches < POLLS_PER_ROUND; looks--)
        if (take_completions(d)) {
            batches++;
            looks = 2; /* whatever else has come, then what was made of it has its turn */
        }
    d->rdma->leftover = d->rdma->leftover || batches == POLLS_PER_ROUND;
}

/* Completions that usually take longer than the loop may spin are slept for; now and then spinning gets another chance,
 * for a sleep itself makes them late. */
static bool awaits(struct device *d)
{
    struct rdma *r = d->rdma;
    if (!r || !r->in_flight)
        return false;
    if (d->now_ns < r->spin_until_ns)
        return true;
    if (!r->armed) {
        if (ibv_req_notify_cq(r->cq, 0)) {
            all_peers_fail(d, EIO);
            return true;
        }
        r->armed = true;
        if (take_completions(d)) /* what came before it was armed raises no event */
            return true;
    }
    tally(d, ISW_DEVICE_rdma_sleeps, 1);
    r->sleeps++;
    return false;
}

/* A device that was pulled leaves descriptors that are ready for ever and tell nothing. */
static void no_news(struct device *d, int fd)
{
    if (errno == EAGAIN || errno == EINTR)
        return;
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    all_peers_fail(d, ENODEV);
}

static void completion_event(struct device *d)
{
    struct rdma *r = d->rdma;
    struct ibv_cq *cq;
    void *context;
    if (r->verbs.get_cq_event(r->channel, &cq, &context)) {
        no_news(d, r->channel->fd);
        return;
    }
    r->verbs.ack_cq_events(cq, 1);
    r->armed = false;
}

static void async_event(struct device *d)
{
    struct ibv_async_event event;
    if (d->rdma->verbs.get_async_event(d->rdma->context, &event)) {
        no_news(d, d->rdma->context->async_fd);
        return;
    }
    for (uint32_t i = 0; i < d->config.peers_max; i++) {
        struct peer *peer = &d->peers[i];
        bool of_queue_pair = event.event_type == IBV_EVENT_QP_FATAL || event.event_type == IBV_EVENT_QP_REQ_ERR ||
                             event.event_type == IBV_EVENT_QP_ACCESS_ERR;
        if (peer->attached && of_queue_pair && (peer->read.rdma.qp == event.element.qp || peer->write.rdma.qp == event.element.qp))
            peer_fail(&peer->read, EIO);
    }
    if (event.event_type == IBV_EVENT_DEVICE_FATAL)
        all_peers_fail(d, ENODEV);
    else if (event.event_type == IBV_EVENT_CQ_ERR)
        all_peers_fail(d, EIO);
    d->rdma->verbs.ack_async_event(&event);
}

static void port_event(struct device *d, uint32_t which)
{
    if (!d->rdma)
        return; /* closed meanwhile */
    if (which == PORT_COMPLETIONS)
        completion_event(d);
    else
        async_event(d);
}

static bool busy(const struct device *d)
{
    return d->rdma && d->rdma->in_flight;
}

const struct transport transport_rdma = {
    .takes_regions = true,
    .send = send_all,
    .close = close_link,
    .port_event = port_event,
    .poll = poll_completions,
    .awaits = awaits,
    .busy = busy,
};

static int watch(struct device *d, int fd, uint32_t which)
{
    return loop_watch(d, fd, LOOP_TRANSPORT, transport_event_number(TRANSPORT_RDMA, which));
}

int rdma_watch(struct device *d, struct rdma *rdma)
{
    int result = watch(d, rdma->channel->fd, PORT_COMPLETIONS);
    if (!result)
        result = watch(d, rdma->context->async_fd, PORT_ASYNC);
    if (!result)
        d->rdma = rdma;
    return result;
}

/* Peers that use it go down first, and Python hears of them. */
void rdma_unwatch(struct device *d)
{
    for (uint32_t i = 0; i < d->config.peers_max; i++)
        if (d->peers[i].attached && d->peers[i].read.rdma.qp)
            peer_down(d, &d->peers[i], ENODEV, true);
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, d->rdma->channel->fd, NULL);
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, d->rdma->context->async_fd, NULL);
    d->rdma = NULL;
}
