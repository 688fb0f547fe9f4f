/* The control side: what the engine makes and gives back, in which order, and with which attributes. */
#include "fake_port.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

static struct fake_verbs *installed;

/* 0, or the error with which this call fails. */
int fake_refusal(struct fake_verbs *v, const char *function)
{
    int error = 0;
    pthread_mutex_lock(&v->lock);
    if (v->refused && strcmp(v->refused, function) == 0) {
        if (v->refused_after)
            v->refused_after--;
        else
            error = v->refused_error;
    }
    pthread_mutex_unlock(&v->lock);
    return error;
}

/* The same for functions that return NULL; the others return the error, and errno is what it was. */
static bool refuses(struct fake_verbs *v, const char *function)
{
    int error = fake_refusal(v, function);
    if (error)
        errno = error;
    return error;
}

static void exists(struct fake_verbs *v, uint32_t *count, int by)
{
    pthread_mutex_lock(&v->lock);
    CHECK(by > 0 || *count);
    *count += (uint32_t)by;
    pthread_mutex_unlock(&v->lock);
}

/* ---- devices and ports ---- */

static struct ibv_device **fake_get_device_list(int *count)
{
    struct ibv_device **list = calloc(2, sizeof *list);
    CHECK(list);
    if (refuses(installed, "get_device_list")) {
        free(list);
        return NULL;
    }
    list[0] = &installed->device;
    if (count)
        *count = 1;
    exists(installed, &installed->lists, 1);
    return list;
}

static void fake_free_device_list(struct ibv_device **list)
{
    exists(installed, &installed->lists, -1);
    free(list);
}

static const char *fake_get_device_name(struct ibv_device *device)
{
    return device->name;
}

static struct ibv_context *fake_open_device(struct ibv_device *device)
{
    struct fake_verbs *v = installed;
    CHECK(device == &v->device);
    if (refuses(v, "open_device"))
        return NULL;
    struct fake_context *c = calloc(1, sizeof *c);
    CHECK(c);
    c->base.device = device;
    c->base.ops.post_send = fake_post_send;
    c->base.ops.poll_cq = fake_poll_cq;
    c->base.ops.req_notify_cq = fake_req_notify_cq;
    c->base.async_fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
    c->verbs = v;
    CHECK(c->base.async_fd >= 0);
    exists(v, &v->contexts, 1);
    if (!v->context)
        v->context = c;
    return &c->base;
}

static int fake_close_device(struct ibv_context *context)
{
    struct fake_verbs *v = verbs_of(context);
    struct fake_context *c = (struct fake_context *)context;
    CHECK(!c->unacknowledged);
    exists(v, &v->contexts, -1);
    if (!v->contexts)
        CHECK(!v->domains && !v->channels && !v->queues);
    if (v->context == c)
        v->context = NULL;
    close(context->async_fd);
    free(c);
    return 0;
}

static int fake_query_device(struct ibv_context *context, struct ibv_device_attr *out)
{
    struct fake_verbs *v = verbs_of(context);
    out->max_sge = v->limits.max_sge;
    out->max_sge_rd = v->limits.max_sge_rd;
    out->max_qp_wr = v->limits.max_qp_wr;
    out->max_cqe = v->limits.max_cqe;
    out->max_qp_init_rd_atom = v->limits.reads_max;
    out->phys_port_cnt = FAKE_PORTS;
    return fake_refusal(v, "query_device");
}

static int fake_query_port(struct ibv_context *context, uint8_t port, struct _compat_ibv_port_attr *out)
{
    struct fake_verbs *v = verbs_of(context);
    if (!port || port > FAKE_PORTS)
        return EINVAL;
    memcpy(out, &v->port[port - 1], sizeof v->port[0]);
    return fake_refusal(v, "query_port");
}

/* ---- memory ---- */

static struct ibv_pd *fake_alloc_pd(struct ibv_context *context)
{
    struct fake_verbs *v = verbs_of(context);
    if (refuses(v, "alloc_pd"))
        return NULL;
    struct ibv_pd *pd = calloc(1, sizeof *pd);
    CHECK(pd);
    pd->context = context;
    exists(v, &v->domains, 1);
    return pd;
}

static int fake_dealloc_pd(struct ibv_pd *pd)
{
    struct fake_verbs *v = verbs_of(pd->context);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        CHECK(!v->mr[i] || v->mr[i]->pd != pd);
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        CHECK(!v->qp[i] || v->qp[i]->base.pd != pd);
    exists(v, &v->domains, -1);
    free(pd);
    return 0;
}

static struct ibv_mr *fake_reg_mr(struct ibv_pd *pd, void *address, size_t bytes, int access)
{
    struct fake_verbs *v = verbs_of(pd->context);
    CHECK_EQUAL(access, IBV_ACCESS_LOCAL_WRITE); /* nobody else has any business there */
    if (refuses(v, "reg_mr"))
        return NULL;
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    uint32_t at = 0;
    CHECK(mr);
    *mr = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = address, .length = bytes};
    pthread_mutex_lock(&v->lock);
    while (at < REGIONS_MAX && v->mr[at])
        at++;
    CHECK(at < REGIONS_MAX);
    v->mr[at] = mr;
    mr->lkey = mr->rkey = v->next_key += 0x1011;
    pthread_mutex_unlock(&v->lock);
    return mr;
}

static int fake_dereg_mr(struct ibv_mr *mr)
{
    struct fake_verbs *v = verbs_of(mr->context);
    uint32_t at = 0;
    pthread_mutex_lock(&v->lock);
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        CHECK(!v->qp[i] || v->qp[i]->base.pd != mr->pd || v->qp[i]->head == v->qp[i]->tail);
    while (at < REGIONS_MAX && v->mr[at] != mr)
        at++;
    CHECK(at < REGIONS_MAX);
    v->mr[at] = NULL;
    pthread_mutex_unlock(&v->lock);
    free(mr);
    return 0;
}

/* ---- completion queues ---- */

static struct ibv_comp_channel *fake_create_comp_channel(struct ibv_context *context)
{
    struct fake_verbs *v = verbs_of(context);
    if (refuses(v, "create_comp_channel"))
        return NULL;
    struct fake_channel *c = calloc(1, sizeof *c);
    CHECK(c);
    c->base.context = context;
    c->base.fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
    CHECK(c->base.fd >= 0);
    exists(v, &v->channels, 1);
    return &c->base;
}

static int fake_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    struct fake_verbs *v = verbs_of(channel->context);
    CHECK(!((struct fake_channel *)channel)->cq);
    exists(v, &v->channels, -1);
    close(channel->fd);
    free(channel);
    return 0;
}

static struct ibv_cq *fake_create_cq(struct ibv_context *context, int entries, void *cq_context,
                                     struct ibv_comp_channel *channel, int vector)
{
    struct fake_verbs *v = verbs_of(context);
    if (refuses(v, "create_cq"))
        return NULL;
    if (entries < 1 || entries > v->limits.max_cqe) {
        errno = EINVAL;
        return NULL;
    }
    struct fake_cq *cq = calloc(1, sizeof *cq);
    CHECK(cq && channel && !vector);
    cq->base = (struct ibv_cq){.context = context, .channel = channel, .cq_context = cq_context, .cqe = entries};
    cq->room = (uint32_t)entries;
    cq->ring = calloc(cq->room, sizeof *cq->ring);
    CHECK(cq->ring);
    ((struct fake_channel *)channel)->cq = cq;
    exists(v, &v->queues, 1);
    if (!v->cq)
        v->cq = cq;
    return &cq->base;
}

static int fake_destroy_cq(struct ibv_cq *base)
{
    struct fake_verbs *v = verbs_of(base->context);
    struct fake_cq *cq = (struct fake_cq *)base;
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        CHECK(!v->qp[i] || v->qp[i]->base.send_cq != base);
    CHECK(!cq->unacknowledged); /* the real one waits here for ever */
    ((struct fake_channel *)base->channel)->cq = NULL;
    exists(v, &v->queues, -1);
    if (v->cq == cq)
        v->cq = NULL;
    free(cq->ring);
    free(cq);
    return 0;
}

static int fake_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **out, void **cq_context)
{
    struct fake_verbs *v = verbs_of(channel->context);
    eventfd_t one;
    if (!(fcntl(channel->fd, F_GETFL) & O_NONBLOCK))
        FAIL("the loop could block on its completion channel");
    if (eventfd_read(channel->fd, &one) < 0)
        return -1;
    struct fake_cq *cq = ((struct fake_channel *)channel)->cq;
    pthread_mutex_lock(&v->lock);
    CHECK(cq && cq->events);
    cq->events--;
    cq->unacknowledged++;
    pthread_mutex_unlock(&v->lock);
    *out = &cq->base;
    *cq_context = cq->base.cq_context;
    return 0;
}

static void fake_ack_cq_events(struct ibv_cq *base, unsigned int events)
{
    struct fake_verbs *v = verbs_of(base->context);
    struct fake_cq *cq = (struct fake_cq *)base;
    pthread_mutex_lock(&v->lock);
    CHECK(cq->unacknowledged >= events);
    cq->unacknowledged -= events;
    pthread_mutex_unlock(&v->lock);
}

/* ---- asynchronous events ---- */

static int fake_get_async_event(struct ibv_context *context, struct ibv_async_event *out)
{
    struct fake_verbs *v = verbs_of(context);
    struct fake_context *c = (struct fake_context *)context;
    eventfd_t one;
    int result = -1;
    if (!(fcntl(context->async_fd, F_GETFL) & O_NONBLOCK))
        FAIL("the loop could block on its asynchronous events");
    if (eventfd_read(context->async_fd, &one) < 0)
        return -1;
    pthread_mutex_lock(&v->lock);
    if (c->async_count) {
        *out = c->async[0];
        memmove(c->async, c->async + 1, --c->async_count * sizeof c->async[0]);
        c->unacknowledged++;
        result = 0;
    }
    pthread_mutex_unlock(&v->lock);
    return result;
}

static void fake_ack_async_event(struct ibv_async_event *event)
{
    struct fake_verbs *v = installed;
    (void)event;
    pthread_mutex_lock(&v->lock);
    CHECK(v->context && v->context->unacknowledged);
    v->context->unacknowledged--;
    pthread_mutex_unlock(&v->lock);
}

void fake_verbs_event(struct fake_verbs *v, enum ibv_event_type type, uint32_t number)
{
    struct ibv_async_event event = {.event_type = type};
    pthread_mutex_lock(&v->lock);
    struct fake_context *c = v->context;
    struct fake_qp *qp = fake_qp_find(v, number);
    bool of_queue_pair = type == IBV_EVENT_QP_FATAL;
    if (of_queue_pair)
        event.element.qp = qp ? &qp->base : NULL;
    else
        event.element.port_num = (int)number;
    if (c && (qp || !of_queue_pair)) {
        CHECK(c->async_count < ASYNC_MAX);
        c->async[c->async_count++] = event;
        eventfd_write(c->base.async_fd, 1);
    }
    pthread_mutex_unlock(&v->lock);
}

/* ---- for the tests ---- */

int __real_verbs_load(struct verbs *verbs, char *error, size_t error_bytes);
int __wrap_verbs_load(struct verbs *verbs, char *error, size_t error_bytes);

int __wrap_verbs_load(struct verbs *verbs, char *error, size_t error_bytes)
{
    if (!installed)
        return __real_verbs_load(verbs, error, error_bytes);
    if (fake_refusal(installed, "verbs_load")) {
        snprintf(error, error_bytes, "there is no library");
        return -ENOENT;
    }
#define ISW_X(name) verbs->name = fake_##name;
    VERBS_FUNCTIONS(ISW_X)
#undef ISW_X
    return 0;
}

struct fake_verbs *fake_verbs_open(uint64_t chance_number)
{
    struct fake_verbs *v = calloc(1, sizeof *v);
    pthread_condattr_t monotonic;
    CHECK(v && !installed);
    snprintf(v->device.name, sizeof v->device.name, "fake0");
    v->limits = (struct fake_limits){
        .max_sge = 30, .max_sge_rd = 30, .max_qp_wr = 4096, .max_cqe = 1 << 20, .reads_max = 16, .inline_bytes = 512};
    v->chance = chance_start(chance_number);
    v->next_number = 0x11;
    v->next_key = 0x2000;
    for (uint32_t i = 0; i < FAKE_PORTS; i++)
        v->port[i] = (struct ibv_port_attr){.state = IBV_PORT_ACTIVE, .max_mtu = IBV_MTU_4096, .active_mtu = IBV_MTU_1024};
    pthread_mutex_init(&v->lock, NULL);
    pthread_cond_init(&v->idle, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&v->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    CHECK(pthread_create(&v->thread, NULL, fake_port_run, v) == 0);
    installed = v;
    return v;
}

void fake_verbs_expect_nothing(struct fake_verbs *v)
{
    pthread_mutex_lock(&v->lock);
    CHECK_EQUAL(v->lists, 0);
    CHECK_EQUAL(v->contexts, 0);
    CHECK_EQUAL(v->domains, 0);
    CHECK_EQUAL(v->channels, 0);
    CHECK_EQUAL(v->queues, 0);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        CHECK(!v->mr[i]);
    for (uint32_t i = 0; i < QUEUE_PAIRS_MAX; i++)
        CHECK(!v->qp[i]);
    pthread_mutex_unlock(&v->lock);
}

void fake_verbs_close(struct fake_verbs *v)
{
    fake_verbs_expect_nothing(v);
    for (uint32_t i = 0; i < DONORS_MAX; i++)
        CHECK(!v->donor[i]);
    pthread_mutex_lock(&v->lock);
    v->ending = true;
    pthread_cond_signal(&v->work);
    pthread_mutex_unlock(&v->lock);
    pthread_join(v->thread, NULL);
    pthread_cond_destroy(&v->work);
    pthread_cond_destroy(&v->idle);
    pthread_mutex_destroy(&v->lock);
    installed = NULL;
    free(v);
}

struct fake_limits *fake_verbs_limits(struct fake_verbs *v)
{
    return &v->limits;
}

struct fake_faults *fake_verbs_faults(struct fake_verbs *v)
{
    return &v->faults;
}

struct fake_counts *fake_verbs_counts(struct fake_verbs *v)
{
    return &v->counts;
}

struct ibv_port_attr *fake_verbs_port(struct fake_verbs *v, uint32_t port)
{
    return &v->port[port - 1];
}

void fake_verbs_refuse(struct fake_verbs *v, const char *function, int error, uint32_t after)
{
    pthread_mutex_lock(&v->lock);
    v->refused = function;
    v->refused_error = error;
    v->refused_after = after;
    pthread_mutex_unlock(&v->lock);
}

void fake_verbs_complete(struct fake_verbs *v, uint64_t id)
{
    pthread_mutex_lock(&v->lock);
    CHECK(v->cq);
    fake_complete(v->cq, id, 0, 0, IBV_WC_SUCCESS);
    pthread_mutex_unlock(&v->lock);
}
