/* The control side of RDMA: opening a port, and bringing queue pairs up until the loop may use them. */
#include "device.h"
#include "rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static struct device *inside(isw_device *device)
{
    return (struct device *)device;
}

/* ---- the port ---- */

static struct ibv_context *open_named(const struct verbs *verbs, const char *name)
{
    struct ibv_device **list = verbs->get_device_list(NULL);
    struct ibv_context *context = NULL;
    if (!list)
        return NULL;
    int error = ENODEV;
    for (struct ibv_device **at = list; *at && !context; at++)
        if (strcmp(verbs->get_device_name(*at), name) == 0) {
            context = verbs->open_device(*at);
            error = errno;
        }
    verbs->free_device_list(list);
    errno = error;
    return context;
}

static int no_wait(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static uint32_t least(uint32_t a, int b)
{
    return b > 0 && (uint32_t)b < a ? (uint32_t)b : a;
}

static struct ibv_qp *make_queue_pair(const struct rdma *r, uint32_t inline_bytes)
{
    struct ibv_qp_init_attr want = {
        .send_cq = r->cq,
        .recv_cq = r->cq,
        .cap = {.max_send_wr = r->depth, .max_send_sge = r->sges_max, .max_recv_wr = 1, .max_recv_sge = 1,
                .max_inline_data = inline_bytes},
        .qp_type = IBV_QPT_RC,
    };
    return r->verbs.create_qp(r->pd, &want);
}

/* What a port takes inline it does not tell: it refuses the queue pair. */
static void try_inline(struct rdma *r)
{
    struct ibv_qp *qp = make_queue_pair(r, RDMA_INLINE_BYTES);
    if (!qp)
        return;
    r->inline_bytes = RDMA_INLINE_BYTES;
    r->verbs.destroy_qp(qp);
}

/* NULL, or what is wrong; errno has the reason. */
static const char *open_port(struct rdma *r, const struct device *d, const char *name, struct isw_rdma_port *out)
{
    struct ibv_device_attr limits = {0};
    struct ibv_port_attr port = {0};
    r->context = open_named(&r->verbs, name);
    if (!r->context)
        return "cannot open it";
    errno = r->verbs.query_device(r->context, &limits);
    if (!errno)
        errno = r->verbs.query_port(r->context, r->port, (struct _compat_ibv_port_attr *)&port);
    if (errno)
        return "cannot ask for its limits";
    if (port.state != IBV_PORT_ACTIVE) {
        errno = ENETDOWN;
        return "its port is not active";
    }
    r->reads_max = (uint8_t)least(255, limits.max_qp_init_rd_atom);
    r->sges_max = least(least(RDMA_SGES_MAX, limits.max_sge), limits.max_sge_rd);
    r->depth = least(RDMA_DEPTH, limits.max_qp_wr);
    /* Twice: a queue pair may be gone and its completions not. */
    uint32_t links = d->config.peers_max * RDMA_LINKS * 2;
    while (r->depth > RDMA_DEPTH_MIN && (int64_t)links * r->depth > limits.max_cqe)
        r->depth /= 2;
    if (r->depth < (ISW_OP_PAGES_MAX + r->sges_max - 1) / r->sges_max) { /* the most scattered transfer would never go */
        errno = EOPNOTSUPP;
        return "its queues are too short";
    }
    r->pd = r->verbs.alloc_pd(r->context);
    r->channel = r->pd ? r->verbs.create_comp_channel(r->context) : NULL;
    if (!r->channel || no_wait(r->channel->fd) || no_wait(r->context->async_fd))
        return "cannot make a completion channel";
    r->cq = r->verbs.create_cq(r->context, (int)(links * r->depth), NULL, r->channel, 0);
    if (!r->cq)
        return "cannot make a completion queue";
    size_t bytes = (size_t)(d->buffer_data + (size_t)d->buffers * ISW_PAGE_BYTES - d->probe_pages);
    /* A child must not make the kernel copy pages that the port knows by their old place. */
    madvise(d->probe_pages, bytes, MADV_DONTFORK);
    r->mr = r->verbs.reg_mr(r->pd, d->probe_pages, bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!r->mr)
        return errno == ENOMEM ? "cannot pin the buffers: raise the memlock limit (ulimit -l)" : "cannot register the buffers";
    try_inline(r);
    *out = (struct isw_rdma_port){
        .mtu_bytes = 128u << port.active_mtu,
        .lid = port.lid,
        .reads_max = r->reads_max,
        .queue_depth = r->depth,
        .inline_bytes = r->inline_bytes,
    };
    return NULL;
}

static void forget_path(const struct rdma *r, struct rdma_path *path)
{
    for (uint32_t i = 0; i < RDMA_LINKS; i++) {
        if (path->qp[i])
            r->verbs.destroy_qp(path->qp[i]);
        path->qp[i] = NULL;
    }
}

void rdma_release(struct rdma *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < ISW_PEERS_MAX; i++)
        forget_path(r, &r->path[i]);
    if (r->cq)
        r->verbs.destroy_cq(r->cq);
    if (r->channel)
        r->verbs.destroy_comp_channel(r->channel);
    if (r->mr)
        r->verbs.dereg_mr(r->mr);
    if (r->pd)
        r->verbs.dealloc_pd(r->pd);
    if (r->context)
        r->verbs.close_device(r->context);
    free(r);
}

static int call_watch(void *owner, void *argument)
{
    struct device *d = owner;
    return d->rdma ? -EBUSY : rdma_watch(d, argument);
}

int isw_device_rdma_open(isw_device *device, const char *name, uint32_t port, uint32_t poll_us, struct isw_rdma_port *out,
                         char *error, size_t error_bytes)
{
    struct device *d = inside(device);
    if (!port || port > 255 || poll_us > RDMA_POLL_US_MAX) {
        snprintf(error, error_bytes, "port must be 1 to 255, polling at most %d us", RDMA_POLL_US_MAX);
        return -EINVAL;
    }
    struct rdma *r = calloc(1, sizeof *r);
    if (!r) {
        snprintf(error, error_bytes, "out of memory");
        return -ENOMEM;
    }
    r->port = (uint8_t)port;
    r->poll_ns = poll_us * 1000ull;
    int result = verbs_load(&r->verbs, error, error_bytes);
    if (result) {
        free(r);
        return result;
    }
    errno = 0;
    const char *problem = open_port(r, d, name, out);
    if (problem) {
        result = errno ? -errno : -EIO;
        snprintf(error, error_bytes, "RDMA device %s: %s%s%s", name, problem, errno ? ": " : "", errno ? strerror(errno) : "");
    } else {
        result = mailbox_call(&d->mailbox, call_watch, r);
        if (result)
            snprintf(error, error_bytes, "RDMA device %s: %s", name,
                     result == -EBUSY ? "one is open already" : strerror(-result));
    }
    if (result)
        rdma_release(r);
    return result;
}

static int call_unwatch(void *owner, void *argument)
{
    struct device *d = owner;
    if (!d->rdma)
        return -ENODEV;
    *(struct rdma **)argument = d->rdma;
    rdma_unwatch(d);
    return 0;
}

int isw_device_rdma_close(isw_device *device)
{
    struct rdma *r = NULL;
    int result = mailbox_call(&inside(device)->mailbox, call_unwatch, &r);
    rdma_release(r);
    return result;
}

/* ---- queue pairs ---- */

/* Only control threads change d->rdma, one at a time; the loop's own part of it is not looked at here. */
static struct rdma_path *path_of(isw_device *device, uint32_t peer)
{
    struct device *d = inside(device);
    return d->rdma && peer < d->config.peers_max ? &d->rdma->path[peer] : NULL;
}

int isw_device_rdma_prepare(isw_device *device, uint32_t peer, uint32_t *numbers)
{
    struct rdma *r = inside(device)->rdma;
    struct rdma_path *path = path_of(device, peer);
    if (!path)
        return -ENODEV;
    forget_path(r, path);
    for (uint32_t i = 0; i < RDMA_LINKS; i++) {
        path->qp[i] = make_queue_pair(r, r->inline_bytes);
        if (!path->qp[i]) {
            int error = errno ? errno : EIO;
            forget_path(r, path);
            return -error;
        }
        numbers[i] = path->qp[i]->qp_num;
    }
    return 0;
}

static int mtu_code(uint32_t bytes)
{
    return bytes < 256 || bytes > 4096 || (bytes & (bytes - 1)) ? -EINVAL : __builtin_ctz(bytes) - 7;
}

static int bring_up(const struct rdma *r, struct ibv_qp *qp, const struct isw_rdma_path *p, uint32_t which, int mtu)
{
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = r->port}; /* nobody is let into our memory */
    struct ibv_qp_attr receive = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = (enum ibv_mtu)mtu,
        .dest_qp_num = p->number[which],
        .rq_psn = p->psn[which],
        .max_dest_rd_atomic = 1,
        .min_rnr_timer = (uint8_t)p->rnr_timer,
        .ah_attr = {.dlid = (uint16_t)p->lid, .port_num = r->port, .is_global = (uint8_t)p->global_route,
                    .grh = {.sgid_index = (uint8_t)p->gid_index, .hop_limit = (uint8_t)p->hop_limit}},
    };
    struct ibv_qp_attr send = {
        .qp_state = IBV_QPS_RTS,
        .sq_psn = p->own_psn[which],
        .timeout = (uint8_t)p->ack_timeout,
        .retry_cnt = (uint8_t)p->retries,
        .rnr_retry = (uint8_t)p->rnr_retries,
        .max_rd_atomic = (uint8_t)(p->reads_max < r->reads_max ? p->reads_max : r->reads_max),
    };
    memcpy(receive.ah_attr.grh.dgid.raw, p->gid, sizeof p->gid);
    int error = r->verbs.modify_qp(qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (!error)
        error = r->verbs.modify_qp(qp, &receive, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                                                     IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (!error)
        error = r->verbs.modify_qp(qp, &send, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                                  IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
    return error;
}

int isw_device_rdma_connect(isw_device *device, uint32_t peer, const struct isw_rdma_path *p)
{
    struct rdma_path *path = path_of(device, peer);
    int mtu = mtu_code(p->mtu_bytes);
    if (!path || !path->qp[0])
        return -ENODEV;
    if (mtu < 0 || !p->reads_max || p->gid_index > 255)
        return -EINVAL;
    for (uint32_t i = 0; i < RDMA_LINKS; i++) {
        int error = bring_up(inside(device)->rdma, path->qp[i], p, i, mtu);
        if (error)
            return error > 0 ? -error : error;
    }
    path->probe_address = p->probe_address;
    path->probe_rkey = p->probe_rkey;
    return 0;
}

static int call_attach(void *owner, void *argument)
{
    struct device *d = owner;
    struct peer *peer = &d->peers[*(uint32_t *)argument];
    if (!d->rdma || d->rdma->lost || !d->rdma->path[peer->number].qp[0])
        return -ENODEV;
    return peer->attached ? -EBUSY : peer_open_rdma(peer);
}

int isw_device_peer_attach_rdma(isw_device *device, uint32_t peer)
{
    struct device *d = inside(device);
    return peer >= d->config.peers_max ? -EINVAL : mailbox_call(&d->mailbox, call_attach, &peer);
}
