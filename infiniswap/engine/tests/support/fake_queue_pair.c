/* Queue pairs: made within the limits, brought up in order, destroyed when the port has let go of them. */
#include "fake_port.h"

#include <errno.h>

struct fake_qp *fake_qp_find(struct fake_verbs *v, uint32_t number)
{
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        if (v->qp[i] && v->qp[i]->base.qp_num == number)
            return v->qp[i];
    return NULL;
}

struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *want)
{
    struct fake_verbs *v = verbs_of(pd->context);
    const struct ibv_qp_cap *cap = &want->cap;
    int error = fake_refusal(v, "create_qp");
    if (error) {
        errno = error;
        return NULL;
    }
    if (cap->max_send_wr > (uint32_t)v->limits.max_qp_wr || cap->max_send_sge > (uint32_t)v->limits.max_sge ||
        cap->max_inline_data > v->limits.inline_bytes) {
        errno = EINVAL;
        return NULL;
    }
    CHECK(want->send_cq && want->recv_cq && want->qp_type == IBV_QPT_RC && !want->sq_sig_all && cap->max_send_wr);
    CHECK(cap->max_send_sge && cap->max_send_sge <= SGES_MAX);
    struct fake_qp *qp = calloc(1, sizeof *qp);
    uint32_t at = 0;
    CHECK(qp);
    qp->base = (struct ibv_qp){
        .context = pd->context, .pd = pd, .send_cq = want->send_cq, .recv_cq = want->recv_cq, .qp_type = want->qp_type};
    qp->init = *want;
    qp->ring = calloc(cap->max_send_wr, sizeof *qp->ring);
    CHECK(qp->ring);
    pthread_mutex_lock(&v->lock);
    while (at < QUEUE_PAIRS_MAX && v->qp[at])
        at++;
    CHECK(at < QUEUE_PAIRS_MAX);
    v->qp[at] = qp;
    qp->base.qp_num = v->next_number++;
    pthread_mutex_unlock(&v->lock);
    return &qp->base;
}

static bool has(const struct ibv_qp_attr *attr, int mask, int wanted, enum ibv_qp_state state)
{
    return attr->qp_state == state && mask == (wanted | IBV_QP_STATE);
}

/* 0, or EINVAL as from a real one. */
static int modify(struct fake_verbs *v, struct fake_qp *qp, const struct ibv_qp_attr *attr, int mask)
{
    struct ibv_qp_attr *known = &qp->attr;
    switch (qp->base.state) {
    case IBV_QPS_RESET:
        if (!has(attr, mask, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, IBV_QPS_INIT) || !attr->port_num ||
            attr->port_num > FAKE_PORTS)
            return EINVAL;
        *known = *attr;
        break;
    case IBV_QPS_INIT:
        if (!has(attr, mask, IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
                                 IBV_QP_MIN_RNR_TIMER, IBV_QPS_RTR) ||
            attr->ah_attr.port_num != known->port_num || attr->path_mtu > v->port[known->port_num - 1].active_mtu)
            return EINVAL;
        known->path_mtu = attr->path_mtu;
        known->dest_qp_num = attr->dest_qp_num;
        known->rq_psn = attr->rq_psn;
        known->max_dest_rd_atomic = attr->max_dest_rd_atomic;
        known->min_rnr_timer = attr->min_rnr_timer;
        known->ah_attr = attr->ah_attr;
        break;
    case IBV_QPS_RTR:
        if (!has(attr, mask, IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
                 IBV_QPS_RTS) ||
            attr->max_rd_atomic > v->limits.reads_max || !attr->max_rd_atomic || attr->retry_cnt > 7 || attr->rnr_retry > 7 ||
            attr->timeout > 31)
            return EINVAL;
        known->timeout = attr->timeout;
        known->retry_cnt = attr->retry_cnt;
        known->rnr_retry = attr->rnr_retry;
        known->sq_psn = attr->sq_psn;
        known->max_rd_atomic = attr->max_rd_atomic;
        qp->donor = donor_of(v, qp);
        break;
    default:
        return EINVAL;
    }
    known->qp_state = qp->base.state = attr->qp_state;
    return 0;
}

int fake_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *attr, int mask)
{
    struct fake_verbs *v = verbs_of(base->context);
    int error = fake_refusal(v, "modify_qp");
    pause_us(atomic_load(&v->faults.modify_us));
    pthread_mutex_lock(&v->lock);
    if (!error)
        error = modify(v, (struct fake_qp *)base, attr, mask);
    pthread_mutex_unlock(&v->lock);
    return error;
}

static void drop_async(struct fake_context *c, const struct ibv_qp *qp)
{
    for (uint32_t i = 0; i < c->async_count; i++)
        if (c->async[i].event_type == IBV_EVENT_QP_FATAL && c->async[i].element.qp == qp)
            c->async[i--] = c->async[--c->async_count];
}

int fake_destroy_qp(struct ibv_qp *base)
{
    struct fake_verbs *v = verbs_of(base->context);
    struct fake_qp *qp = (struct fake_qp *)base;
    uint32_t at = 0;
    pthread_mutex_lock(&v->lock);
    while (qp->busy)
        pthread_cond_wait(&v->idle, &v->lock);
    while (at < QUEUE_PAIRS_MAX && v->qp[at] != qp)
        at++;
    CHECK(at < QUEUE_PAIRS_MAX);
    v->qp[at] = NULL;
    fake_qp_forget(v, qp);
    drop_async((struct fake_context *)base->context, base);
    pthread_mutex_unlock(&v->lock);
    free(qp->ring);
    free(qp);
    return 0;
}

uint32_t fake_verbs_queue_pairs(struct fake_verbs *v)
{
    uint32_t count = 0;
    pthread_mutex_lock(&v->lock);
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        count += v->qp[i] != NULL;
    pthread_mutex_unlock(&v->lock);
    return count;
}

struct ibv_qp_attr fake_verbs_attributes(struct fake_verbs *v, uint32_t number)
{
    pthread_mutex_lock(&v->lock);
    struct fake_qp *qp = fake_qp_find(v, number);
    CHECK(qp);
    struct ibv_qp_attr attr = qp->attr;
    pthread_mutex_unlock(&v->lock);
    return attr;
}

uint32_t fake_verbs_outstanding(struct fake_verbs *v, uint32_t number, uint64_t *ids, uint32_t ids_max)
{
    uint32_t count = 0;
    pthread_mutex_lock(&v->lock);
    struct fake_qp *qp = fake_qp_find(v, number);
    for (uint64_t at = qp ? qp->head : 0; qp && at < qp->tail && count < ids_max; at++)
        ids[count++] = qp->ring[at % qp->init.cap.max_send_wr].id;
    pthread_mutex_unlock(&v->lock);
    return count;
}
