/* libibverbs, looked for when RDMA is first asked for: without it everything else works. */
#ifndef ISW_VERBS_H
#define ISW_VERBS_H

#include <infiniband/verbs.h>
#include <stddef.h>

#undef ibv_query_port
#undef ibv_reg_mr

/* The functions that go through the library; ibv_post_send, ibv_poll_cq and ibv_req_notify_cq go to the driver directly. */
#define VERBS_FUNCTIONS(X) \
    X(get_device_list) X(free_device_list) X(get_device_name) X(open_device) X(close_device) X(query_device) X(query_port) \
    X(alloc_pd) X(dealloc_pd) X(reg_mr) X(dereg_mr) X(create_comp_channel) X(destroy_comp_channel) X(create_cq) \
    X(destroy_cq) X(get_cq_event) X(ack_cq_events) X(create_qp) X(modify_qp) X(destroy_qp) X(get_async_event) \
    X(ack_async_event)

struct verbs {
#define ISW_X(name) __typeof__(ibv_##name) *name;
    VERBS_FUNCTIONS(ISW_X)
#undef ISW_X
};

/* 0, or -ENOENT with a sentence in error. */
int verbs_load(struct verbs *verbs, char *error, size_t error_bytes);

#endif
