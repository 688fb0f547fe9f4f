/* Work requests, in order for each queue pair; completions; and the thread that moves the data. */
#include "fake_port.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>

enum { POISON = 0xa5 };

static bool happens(struct chance *c, atomic_uint *one_in)
{
    uint32_t n = atomic_load(one_in);
    return n && chance_in(c, n);
}

static void count(atomic_ullong *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static void raise_to(atomic_ullong *peak, unsigned long long value)
{
    if (value > atomic_load_explicit(peak, memory_order_relaxed))
        atomic_store_explicit(peak, value, memory_order_relaxed);
}

/* ---- the engine's memory ---- */

static uint8_t *memory_at(uint64_t address)
{
    return (uint8_t *)(uintptr_t)address;
}

static uint32_t crc_of(const struct work *w)
{
    uint32_t crc = 0;
    for (uint32_t i = 0; i < w->sges; i++)
        crc = crc * 31 + isw_crc32c(memory_at(w->sge[i].addr), w->sge[i].length);
    return crc;
}

/* A buffer belongs to the port from the call that handed it over until the completion, or the end of the queue pair. */
static void check_untouched(const struct work *w)
{
    if (!w->inlined && crc_of(w) != w->crc)
        FAIL("request %llx, a %s: the engine changed a buffer that the port was still using", (unsigned long long)w->id,
             w->read ? "READ" : "WRITE");
}

/* ---- posting ---- */

static void check_key(struct fake_verbs *v, const struct ibv_sge *sge, struct ibv_pd *pd)
{
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        const struct ibv_mr *mr = v->mr[i];
        if (mr && mr->lkey == sge->lkey && mr->pd == pd && sge->addr >= (uintptr_t)mr->addr &&
            sge->addr + sge->length <= (uintptr_t)mr->addr + mr->length)
            return;
    }
    FAIL("key %x does not open %u bytes at %llx", sge->lkey, sge->length, (unsigned long long)sge->addr);
}

static struct work take_request(struct fake_verbs *v, struct fake_qp *qp, const struct ibv_send_wr *wr)
{
    struct work w = {.id = wr->wr_id, .remote = wr->wr.rdma.remote_addr, .rkey = wr->wr.rdma.rkey, .sges = (uint32_t)wr->num_sge};
    CHECK(wr->opcode == IBV_WR_RDMA_READ || wr->opcode == IBV_WR_RDMA_WRITE);
    CHECK(!(wr->send_flags & ~(unsigned)(IBV_SEND_SIGNALED | IBV_SEND_INLINE)));
    w.read = wr->opcode == IBV_WR_RDMA_READ;
    w.signaled = wr->send_flags & IBV_SEND_SIGNALED;
    CHECK(w.sges && w.sges <= qp->init.cap.max_send_sge && (!w.read || w.sges <= (uint32_t)v->limits.max_sge_rd));
    for (uint32_t i = 0; i < w.sges; i++) {
        w.sge[i] = wr->sg_list[i];
        w.bytes += w.sge[i].length;
        if (!(wr->send_flags & IBV_SEND_INLINE))
            check_key(v, &w.sge[i], qp->base.pd);
        if (w.read) /* a port may write there what it likes, until it is done */
            memset(memory_at(w.sge[i].addr), POISON, w.sge[i].length);
    }
    if (wr->send_flags & IBV_SEND_INLINE) {
        CHECK(!w.read && w.bytes <= qp->init.cap.max_inline_data);
        w.inlined = malloc(w.bytes);
        CHECK(w.inlined);
        for (uint32_t i = 0, at = 0; i < w.sges; at += w.sge[i++].length)
            memcpy(w.inlined + at, memory_at(w.sge[i].addr), w.sge[i].length);
        count(&v->counts.inlined);
    } else {
        w.crc = crc_of(&w);
    }
    return w;
}

static uint64_t due_ns(struct fake_qp *qp)
{
    if (!qp->donor)
        return 0;
    uint64_t least = atomic_load(&qp->donor->manners.delay_us_min), most = atomic_load(&qp->donor->manners.delay_us_max);
    uint64_t delay_us = least + (most > least ? chance_below(&qp->donor->chance, most - least) : 0);
    return delay_us ? now_ns() + delay_us * 1000 : 0;
}

int fake_post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct fake_verbs *v = verbs_of(base->context);
    struct fake_qp *qp = (struct fake_qp *)base;
    int error = 0;
    pthread_mutex_lock(&v->lock);
    count(&v->counts.posts);
    for (; wr && !error; wr = wr->next) {
        bool spoiled = atomic_load(&v->faults.post_error) && (!wr->next || chance_in(&v->chance, 4));
        if (spoiled)
            error = (int)atomic_load(&v->faults.post_error);
        else if (base->state != IBV_QPS_RTS && base->state != IBV_QPS_ERR)
            error = EINVAL;
        *bad = wr;
        if (error)
            break;
        if (qp->tail - qp->retired >= qp->init.cap.max_send_wr)
            FAIL("more than %u requests on queue pair %u", qp->init.cap.max_send_wr, base->qp_num);
        struct work *w = &qp->ring[qp->tail % qp->init.cap.max_send_wr];
        *w = take_request(v, qp, wr);
        w->due_ns = due_ns(qp);
        qp->tail++;
        qp->reads += w->read;
        count(&v->counts.requests);
        if (w->signaled)
            count(&v->counts.signaled);
        raise_to(&v->counts.reads_peak, qp->reads);
        raise_to(&v->counts.gathered, w->sges);
    }
    pthread_cond_signal(&v->work);
    pthread_mutex_unlock(&v->lock);
    return error;
}

/* ---- completions ---- */

void fake_complete(struct fake_cq *cq, uint64_t id, uint32_t number, uint64_t retires, enum ibv_wc_status status)
{
    struct fake_verbs *v = verbs_of(cq->base.context);
    uint32_t waiting = atomic_load(&cq->count);
    if (waiting == cq->room)
        FAIL("the completion queue overflows at %u", cq->room);
    cq->ring[(cq->first + waiting) % cq->room] = (struct fake_completion){
        {.wr_id = id, .status = status, .qp_num = number}, retires};
    atomic_store(&cq->count, waiting + 1);
    count(&v->counts.completions);
    if (!cq->armed)
        return;
    pause_us(atomic_load(&v->faults.wake_late_us));
    cq->armed = false;
    cq->events++;
    eventfd_write(cq->base.channel->fd, 1);
}

int fake_poll_cq(struct ibv_cq *base, int most, struct ibv_wc *wc)
{
    struct fake_verbs *v = verbs_of(base->context);
    struct fake_cq *cq = (struct fake_cq *)base;
    int taken = 0;
    count(&v->counts.polls);
    if (atomic_load_explicit(&v->faults.poll_fails, memory_order_relaxed))
        return -1;
    if (!atomic_load(&cq->count)) /* without the lock: a real one takes none from the port either */
        return 0;
    pthread_mutex_lock(&v->lock);
    for (; taken < most && atomic_load(&cq->count); taken++) {
        const struct fake_completion *c = &cq->ring[cq->first];
        struct fake_qp *qp = fake_qp_find(v, c->wc.qp_num);
        wc[taken] = c->wc;
        if (qp && c->retires > qp->retired)
            qp->retired = c->retires;
        cq->first = (cq->first + 1) % cq->room;
        atomic_fetch_sub(&cq->count, 1);
    }
    pthread_mutex_unlock(&v->lock);
    return taken;
}

static bool anything_out(struct fake_verbs *v)
{
    bool out = false;
    pthread_mutex_lock(&v->lock);
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        out = out || (v->qp[i] && v->qp[i]->head < v->qp[i]->tail);
    pthread_mutex_unlock(&v->lock);
    return out;
}

int fake_req_notify_cq(struct ibv_cq *base, int solicited_only)
{
    struct fake_verbs *v = verbs_of(base->context);
    CHECK(!solicited_only);
    if (atomic_load(&v->faults.notify_fails))
        return EIO;
    for (uint32_t i = 0; i < 200 && atomic_load(&v->faults.notify_late) && anything_out(v); i++)
        pause_us(20);
    pthread_mutex_lock(&v->lock);
    ((struct fake_cq *)base)->armed = true;
    pthread_mutex_unlock(&v->lock);
    return 0;
}

/* ---- the port ---- */

static void let_go(struct fake_qp *qp, struct work *w)
{
    free(w->inlined);
    w->inlined = NULL;
    qp->reads -= w->read;
    qp->head++;
}

static void end_request(struct fake_qp *qp, struct work *w, enum ibv_wc_status status)
{
    check_untouched(w);
    if (status != IBV_WC_SUCCESS)
        qp->base.state = IBV_QPS_ERR;
    if (status != IBV_WC_SUCCESS || w->signaled)
        fake_complete((struct fake_cq *)qp->base.send_cq, w->id, qp->base.qp_num, qp->head + 1, status);
    let_go(qp, w);
}

/* What the program did not see the end of.  It must not have touched the buffers yet: until now the port could. */
void fake_qp_forget(struct fake_verbs *v, struct fake_qp *qp)
{
    while (qp->head < qp->tail) {
        struct work *w = &qp->ring[qp->head % qp->init.cap.max_send_wr];
        check_untouched(w);
        if (atomic_load(&v->faults.late_completions) && w->signaled)
            fake_complete((struct fake_cq *)qp->base.send_cq, w->id, qp->base.qp_num, qp->head + 1, IBV_WC_SUCCESS);
        let_go(qp, w);
    }
}

static void move(const struct work *w, uint8_t *remote)
{
    for (uint32_t i = 0, at = 0; i < w->sges; at += w->sge[i++].length) {
        if (w->read)
            memcpy(memory_at(w->sge[i].addr), remote + at, w->sge[i].length);
        else
            memcpy(remote + at, w->inlined ? w->inlined + at : memory_at(w->sge[i].addr), w->sge[i].length);
    }
}

static enum ibv_wc_status execute(struct fake_verbs *v, struct fake_qp *qp, struct work *w)
{
    struct rdma_donor *donor = qp->donor;
    if (!donor)
        return IBV_WC_RETRY_EXC_ERR;
    const struct region *region = donor_region(donor, w->remote, w->bytes, w->rkey);
    if (!region)
        return IBV_WC_REM_ACCESS_ERR;
    struct chance *c = &donor->chance;
    uint8_t *remote = region->memory + (w->remote - region->address);
    enum ibv_wc_status status =
        happens(c, &donor->manners.fail_one_in) ? (enum ibv_wc_status)atomic_load(&donor->manners.status) : IBV_WC_SUCCESS;
    if (status != IBV_WC_SUCCESS && chance_in(c, 2))
        return status;
    bool spoil_read = w->read && happens(c, &donor->manners.corrupt_read_one_in);
    bool spoil_write = !w->read && happens(c, &donor->manners.corrupt_write_one_in);
    uint32_t spoiled = (uint32_t)chance_below(c, w->bytes), piece = (uint32_t)chance_below(c, w->sges);
    qp->busy = true;
    pthread_mutex_lock(&donor->memory_lock);
    pthread_mutex_unlock(&v->lock);
    check_untouched(w);
    move(w, remote);
    if (spoil_read)
        memory_at(w->sge[piece].addr)[spoiled % w->sge[piece].length] ^= 0x10;
    if (spoil_write)
        remote[spoiled] ^= 0x20;
    if (w->read)
        w->crc = crc_of(w);
    pthread_mutex_unlock(&donor->memory_lock);
    pthread_mutex_lock(&v->lock);
    qp->busy = false;
    pthread_cond_broadcast(&v->idle);
    return status;
}

/* True: something was done. */
static bool advance(struct fake_verbs *v, struct fake_qp *qp, uint64_t *next_ns)
{
    if (qp->head == qp->tail)
        return false;
    struct work *w = &qp->ring[qp->head % qp->init.cap.max_send_wr];
    if (qp->base.state == IBV_QPS_ERR) {
        end_request(qp, w, IBV_WC_WR_FLUSH_ERR);
        return true;
    }
    enum ibv_wc_status status = IBV_WC_SUCCESS;
    if (!w->executed) {
        if (qp->donor && (atomic_load(&qp->donor->manners.hang) & 1u << qp->which))
            return false;
        if (w->due_ns && w->due_ns > now_ns()) {
            *next_ns = w->due_ns < *next_ns ? w->due_ns : *next_ns;
            return false;
        }
        status = execute(v, qp, w);
        w->executed = true;
    }
    if (status == IBV_WC_SUCCESS && qp->donor && atomic_load(&qp->donor->manners.mute))
        return false;
    end_request(qp, w, status);
    return true;
}

void *fake_port_run(void *verbs)
{
    struct fake_verbs *v = verbs;
    pthread_mutex_lock(&v->lock);
    while (!v->ending) {
        uint64_t next_ns = now_ns() + 1000000; /* manners change without a word */
        bool moved = false, waiting = false;
        for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++) {
            if (!v->qp[i])
                continue;
            moved = advance(v, v->qp[i], &next_ns) || moved;
            waiting = waiting || (v->qp[i] && v->qp[i]->head < v->qp[i]->tail);
        }
        if (moved)
            continue;
        struct timespec until = {(time_t)(next_ns / 1000000000), (long)(next_ns % 1000000000)};
        if (waiting)
            pthread_cond_timedwait(&v->work, &v->lock, &until);
        else
            pthread_cond_wait(&v->work, &v->lock);
    }
    pthread_mutex_unlock(&v->lock);
    return NULL;
}
