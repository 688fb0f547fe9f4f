/* Proves that an RDMA port opens or says what is wrong, that whatever fails on the way leaves nothing behind, that queue
 * pairs come up with the attributes that were asked for, on Ethernet as on InfiniBand, and that closing loses the peers only. */
#include "rdma_bench.h"

#include <errno.h>
#include <pthread.h>

enum { PAGE = BENCH_PAGE };

int __real_verbs_load(struct verbs *verbs, char *error, size_t error_bytes);

static struct rdma_bench *open_bench(void)
{
    struct rdma_bench *b = rdma_bench_prepare();
    rdma_bench_start(b);
    return b;
}

static int try_open(struct rdma_bench *b, const char *name, uint32_t port, struct isw_rdma_port *out, char *error)
{
    memset(error, 0, 256);
    return isw_device_rdma_open(b->rig.device, name, port, 0, out, error, 256);
}

static void expect_no_opening(struct rdma_bench *b, const char *name, uint32_t port, int result, const char *words)
{
    struct isw_rdma_port out;
    char error[256];
    int got = try_open(b, name, port, &out, error);
    if (got != result || !strstr(error, words))
        FAIL("%s/%u: %d \"%s\", not %d \"%s\"", name, port, got, error, result, words);
    fake_verbs_expect_nothing(b->verbs);
}

/* The same library functions by their true names, where the library is installed. */
TEST(the_library_has_every_function)
{
    struct verbs verbs = {0};
    char error[256] = "";
    int result = __real_verbs_load(&verbs, error, sizeof error);
    if (result)
        CHECK(result == -ENOENT && strstr(error, "not installed"));
    else
        CHECK(verbs.get_device_list && verbs.ack_async_event && verbs.create_qp);
}

TEST(what_the_port_can_do)
{
    struct rdma_bench *b = open_bench();
    struct isw_rdma_port out;
    char error[256];
    CHECK_EQUAL(try_open(b, "fake0", 1, &out, error), 0);
    CHECK(out.mtu_bytes == 1024 && out.lid == 0 && out.reads_max == 16 && out.queue_depth == 128 && out.inline_bytes == 512);
    CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
    *fake_verbs_limits(b->verbs) = (struct fake_limits){
        .max_sge = 6, .max_sge_rd = 6, .max_qp_wr = 100, .max_cqe = 32 * 50, .reads_max = 300, .inline_bytes = 511};
    *fake_verbs_port(b->verbs, 2) = (struct ibv_port_attr){.state = IBV_PORT_ACTIVE, .active_mtu = IBV_MTU_4096, .lid = 17};
    CHECK_EQUAL(try_open(b, "fake0", 2, &out, error), 0);
    CHECK(out.mtu_bytes == 4096 && out.lid == 17 && out.reads_max == 255 && out.queue_depth == 50 && !out.inline_bytes);
    CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
    CHECK_EQUAL(isw_device_rdma_close(b->rig.device), -ENODEV);
    fake_verbs_expect_nothing(b->verbs);
    rdma_bench_close(b);
}

TEST(what_cannot_be_opened)
{
    struct rdma_bench *b = open_bench();
    expect_no_opening(b, "fake1", 1, -ENODEV, "fake1");
    expect_no_opening(b, "fake0", 0, -EINVAL, "port must be");
    expect_no_opening(b, "fake0", 256, -EINVAL, "port must be");
    expect_no_opening(b, "fake0", FAKE_PORTS + 1, -EINVAL, "fake0");
    fake_verbs_port(b->verbs, 1)->state = IBV_PORT_DOWN;
    expect_no_opening(b, "fake0", 1, -ENETDOWN, "not active");
    fake_verbs_port(b->verbs, 1)->state = IBV_PORT_ACTIVE;
    fake_verbs_limits(b->verbs)->max_sge = 1; /* a transfer of 64 pieces would never fit */
    fake_verbs_limits(b->verbs)->max_qp_wr = 63;
    expect_no_opening(b, "fake0", 1, -EOPNOTSUPP, "queues");
    *fake_verbs_limits(b->verbs) = (struct fake_limits){
        .max_sge = 1, .max_sge_rd = 1, .max_qp_wr = 4096, .max_cqe = 2047, .reads_max = 1};
    expect_no_opening(b, "fake0", 1, -EOPNOTSUPP, "queues");
    *fake_verbs_limits(b->verbs) = (struct fake_limits){
        .max_sge = 30, .max_sge_rd = 30, .max_qp_wr = 4096, .max_cqe = 511, .reads_max = 1};
    expect_no_opening(b, "fake0", 1, -EINVAL, "completion queue");
    *fake_verbs_limits(b->verbs) = (struct fake_limits){
        .max_sge = 1, .max_sge_rd = 1, .max_qp_wr = 4096, .max_cqe = 2048, .reads_max = 1};
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    rdma_bench_close(b);
}

TEST(every_step_of_opening_may_fail)
{
    static const struct {
        const char *function, *words;
        int error;
    } steps[] = {
        {"verbs_load", "there is no library", ENOENT},
        {"get_device_list", "fake0", ENOSYS},
        {"open_device", "cannot open", EACCES},
        {"query_device", "limits", EIO},
        {"query_port", "limits", EIO},
        {"alloc_pd", "completion channel", ENOMEM},
        {"create_comp_channel", "completion channel", EMFILE},
        {"create_cq", "completion queue", ENOMEM},
        {"reg_mr", "memlock", ENOMEM},
        {"reg_mr", "cannot register", EFAULT},
    };
    struct rdma_bench *b = open_bench();
    for (uint32_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        fake_verbs_refuse(b->verbs, steps[i].function, steps[i].error, 0);
        expect_no_opening(b, "fake0", 1, -steps[i].error, steps[i].words);
    }
    fake_verbs_refuse(b->verbs, "create_qp", ENOMEM, 0); /* the trial with inline data: then it goes without */
    struct isw_rdma_port out;
    char error[256];
    CHECK_EQUAL(try_open(b, "fake0", 1, &out, error), 0);
    CHECK_EQUAL(out.inline_bytes, 0);
    fake_verbs_refuse(b->verbs, NULL, 0, 0);
    CHECK_EQUAL(try_open(b, "fake0", 1, &out, error), -EBUSY); /* one is open */
    CHECK(strstr(error, "already"));
    rdma_bench_attach(b, 0); /* and is no worse for it */
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    expect_pages(b, 0, 64, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), 64);
    rdma_bench_close(b);
}

TEST(every_step_of_connecting_may_fail)
{
    struct rdma_bench *b = open_bench();
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    rdma_open(&b->rig, 0);
    for (uint32_t after = 0; after < 2; after++) {
        fake_verbs_refuse(b->verbs, "create_qp", ENOMEM, after);
        CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), -ENOMEM);
        CHECK_EQUAL(fake_verbs_queue_pairs(b->verbs), 0);
        CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), -ENODEV);
    }
    for (uint32_t after = 0; after < 6; after++) {
        fake_verbs_refuse(b->verbs, NULL, 0, 0);
        CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), 0);
        CHECK_EQUAL(fake_verbs_queue_pairs(b->verbs), 2); /* in place of those before */
        struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
        fake_verbs_refuse(b->verbs, "modify_qp", EHOSTUNREACH, after);
        CHECK_EQUAL(isw_device_rdma_connect(b->rig.device, 0, &path), -EHOSTUNREACH);
        CHECK(isw_device_peer_attach_rdma(b->rig.device, 0) < 0); /* not connected */
    }
    fake_verbs_refuse(b->verbs, NULL, 0, 0);
    rdma_bench_attach(b, 0);
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 1, numbers), 0); /* left as it is */
    rdma_bench_close(b);
}

TEST(calls_in_the_wrong_order)
{
    struct rdma_bench *b = open_bench();
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS] = {0};
    struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
    isw_device *device = b->rig.device;
    CHECK_EQUAL(isw_device_rdma_prepare(device, 0, numbers), -ENODEV);
    CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), -ENODEV);
    CHECK_EQUAL(isw_device_peer_attach_rdma(device, 0), -ENODEV);
    CHECK_EQUAL(isw_device_rdma_close(device), -ENODEV);
    rdma_open(&b->rig, 0);
    CHECK(isw_device_rdma_prepare(device, b->rig.config.peers_max, numbers) < 0);
    CHECK(isw_device_peer_attach_rdma(device, b->rig.config.peers_max) < 0);
    CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), -ENODEV);
    CHECK_EQUAL(isw_device_peer_attach_rdma(device, 0), -ENODEV);
    CHECK_EQUAL(isw_device_rdma_prepare(device, 0, numbers), 0);
    static const uint32_t sizes[] = {0, 128, 1000, 1025, 8192, 1u << 31};
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        path = rdma_donor_path(b->donor[0], numbers);
        path.mtu_bytes = sizes[i];
        CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), -EINVAL);
    }
    path = rdma_donor_path(b->donor[0], numbers);
    path.reads_max = 0;
    CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), -EINVAL);
    path.reads_max = 16;
    path.gid_index = 256;
    CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), -EINVAL);
    rdma_bench_attach(b, 0);
    CHECK_EQUAL(isw_device_rdma_prepare(device, 0, numbers), 0); /* for later */
    path = rdma_donor_path(b->donor[1], numbers);
    CHECK_EQUAL(isw_device_rdma_connect(device, 0, &path), 0);
    CHECK_EQUAL(isw_device_peer_attach_rdma(device, 0), -EBUSY);
    int fds[2], others[2];
    stream_pair(fds, false, false);
    stream_pair(others, false, false);
    CHECK_EQUAL(isw_device_peer_attach(device, 0, fds[0], others[0]), -EBUSY);
    write_pages(b, 0, 8, 1);
    CHECK_EQUAL(isw_device_peer_detach(device, 0), 0);
    expect_pages(b, 0, 8, 1);
    CHECK_EQUAL(isw_device_peer_attach_rdma(device, 0), 0); /* it is later now */
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_READY).peer, 0);
    rdma_bench_close(b);
}

struct connecting {
    struct rdma_bench *bench;
    struct isw_rdma_path path;
    int result;
};

static void *connect_slowly(void *argument)
{
    struct connecting *c = argument;
    c->result = isw_device_rdma_connect(c->bench->rig.device, 1, &c->path);
    return NULL;
}

/* Address resolution may take seconds: in a thread of its own, while peers come, go, and move pages. */
TEST_ON_BOTH(connecting_beside_everything_else)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    for (uint8_t round = 0; round < 4; round++) {
        struct connecting c = {.bench = b, .result = 1};
        uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
        pthread_t thread;
        CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 1, numbers), 0);
        c.path = rdma_donor_path(b->donor[1], numbers);
        atomic_store(&b->faults->modify_us, 20000);
        CHECK(pthread_create(&thread, NULL, connect_slowly, &c) == 0);
        write_pages(b, 0, 64, round);
        rig_await_backup(&b->rig);
        expect_pages(b, 0, 64, round);
        CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 2, numbers), 0);
        CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
        expect_pages(b, 0, 64, round);
        pthread_join(thread, NULL);
        CHECK_EQUAL(c.result, 0);
        atomic_store(&b->faults->modify_us, 0);
        CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 1), 0);
        CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_READY).peer, 1);
        CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 1), 0);
        rdma_bench_attach(b, 0);
    }
    rdma_bench_close(b);
}

/* ---- addressing ---- */

static struct isw_rdma_path connect_with(struct rdma_bench *b, struct isw_rdma_path wanted, struct ibv_qp_attr *attr)
{
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), 0);
    struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
    for (uint32_t i = 0; i < ISW_RDMA_QUEUE_PAIRS; i++) {
        wanted.number[i] = path.number[i];
        wanted.psn[i] = path.psn[i];
        wanted.own_psn[i] = path.own_psn[i];
    }
    wanted.probe_address = path.probe_address;
    wanted.probe_rkey = path.probe_rkey;
    CHECK_EQUAL(isw_device_rdma_connect(b->rig.device, 0, &wanted), 0);
    for (uint32_t i = 0; i < ISW_RDMA_QUEUE_PAIRS; i++) {
        attr[i] = fake_verbs_attributes(b->verbs, numbers[i]);
        CHECK_EQUAL(attr[i].qp_state, IBV_QPS_RTS);
        CHECK_EQUAL(attr[i].dest_qp_num, wanted.number[i]);
        CHECK_EQUAL(attr[i].rq_psn, wanted.psn[i]);
        CHECK_EQUAL(attr[i].sq_psn, wanted.own_psn[i]);
        CHECK_EQUAL(attr[i].qp_access_flags, 0); /* nobody is let into our memory */
        CHECK_EQUAL(attr[i].pkey_index, 0);
        CHECK_EQUAL(attr[i].ah_attr.is_global, wanted.global_route);
        CHECK_EQUAL(attr[i].ah_attr.dlid, wanted.lid);
    }
    return wanted;
}

TEST(ethernet_is_addressed_by_gid)
{
    struct rdma_bench *b = open_bench();
    struct ibv_qp_attr attr[ISW_RDMA_QUEUE_PAIRS];
    rdma_open(&b->rig, 0);
    struct isw_rdma_path path = connect_with(
        b,
        (struct isw_rdma_path){.gid = {0xfe, 0x80, [15] = 9}, .gid_index = 5, .global_route = 1, .mtu_bytes = 512,
                               .reads_max = 4, .ack_timeout = 13, .retries = 6, .rnr_timer = 11, .rnr_retries = 5,
                               .hop_limit = 63},
        attr);
    for (uint32_t i = 0; i < ISW_RDMA_QUEUE_PAIRS; i++) {
        CHECK(!memcmp(attr[i].ah_attr.grh.dgid.raw, path.gid, sizeof path.gid));
        CHECK_EQUAL(attr[i].ah_attr.grh.sgid_index, 5);
        CHECK_EQUAL(attr[i].ah_attr.grh.hop_limit, 63);
        CHECK_EQUAL(attr[i].ah_attr.port_num, 1);
        CHECK_EQUAL(attr[i].path_mtu, IBV_MTU_512);
        CHECK_EQUAL(attr[i].max_rd_atomic, 4);
        CHECK_EQUAL(attr[i].timeout, 13);
        CHECK_EQUAL(attr[i].retry_cnt, 6);
        CHECK_EQUAL(attr[i].rnr_retry, 5);
        CHECK_EQUAL(attr[i].min_rnr_timer, 11);
    }
    CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_READY).peer, 0);
    rdma_bench_close(b);
}

TEST(infiniband_is_addressed_by_lid)
{
    struct rdma_bench *b = open_bench();
    struct ibv_qp_attr attr[ISW_RDMA_QUEUE_PAIRS];
    struct isw_rdma_port out;
    char error[256];
    *fake_verbs_port(b->verbs, 2) = (struct ibv_port_attr){
        .state = IBV_PORT_ACTIVE, .active_mtu = IBV_MTU_4096, .lid = 0xbeef, .link_layer = IBV_LINK_LAYER_INFINIBAND};
    CHECK_EQUAL(try_open(b, "fake0", 2, &out, error), 0);
    CHECK_EQUAL(out.lid, 0xbeef);
    connect_with(b,
                 (struct isw_rdma_path){.lid = 0xcafe, .mtu_bytes = 4096, .reads_max = 200, .ack_timeout = 14, .retries = 7,
                                        .rnr_timer = 12, .rnr_retries = 7, .hop_limit = 64},
                 attr);
    for (uint32_t i = 0; i < ISW_RDMA_QUEUE_PAIRS; i++) {
        CHECK_EQUAL(attr[i].port_num, 2);
        CHECK_EQUAL(attr[i].ah_attr.port_num, 2);
        CHECK_EQUAL(attr[i].path_mtu, IBV_MTU_4096);
        CHECK_EQUAL(attr[i].max_rd_atomic, 16); /* no more than our own port can have */
    }
    CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_READY).peer, 0);
    rdma_bench_close(b);
}

/* ---- closing ---- */

TEST_ON_BOTH(closing_loses_the_peers_only)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    static uint8_t in[8 * PAGE];
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 2, numbers), 0);
    for (uint8_t round = 0; round < 3; round++) {
        write_pages(b, 0, 64, round);
        rig_await_backup(&b->rig);
        atomic_store(&b->manners->hang, 3);
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, 0, sizeof in, NULL, in)); /* under way */
        WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_in_flight) == 1));
        CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
        fake_verbs_expect_nothing(b->verbs);
        CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_LOST).value, ENODEV);
        if (!round)
            CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_LOST).peer, 1);
        client_settle(&b->client);
        CHECK_EQUAL(in[7 * PAGE], page_byte(7, round));
        expect_pages(b, 0, 64, round);
        CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), -ENODEV);
        atomic_store(&b->manners->hang, 0);
        rdma_open(&b->rig, round * 100);
        rdma_bench_attach(b, 0);
    }
    CHECK_EQUAL(count_news(b, ISW_EVENT_PEER_LOST), 0);
    rdma_bench_close(b);
}

/* An end without an order: with transfers out, one peer attached and one on the way. */
TEST_ON_BOTH(freed_with_transfers_in_flight)
{
    struct rdma_bench *b = rdma_bench_open(100, 30000);
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    static uint8_t data[64 * PAGE];
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 2, numbers), 0);
    atomic_store(&b->manners->delay_us_max, 3000);
    for (uint32_t i = 0; i < 32; i++) {
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, i * PAGE, 32 * PAGE, NULL, data));
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, (64 + i) * PAGE, 8 * PAGE, data, NULL));
    }
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_in_flight) > 20));
    rig_kill(&b->rig);
    fake_verbs_expect_nothing(b->verbs);
    client_close(&b->client);
    for (uint32_t i = 0; i < BENCH_DONORS; i++)
        rdma_donor_close(b->donor[i]);
    fake_verbs_close(b->verbs);
    rig_end(&b->rig);
}
