/* Proves that whatever goes wrong with RDMA costs a client nothing but time: the peer is lost, once and with its reason, its
 * slabs are served from the pending buffers and the backup, no buffer is used again while the port could still write it,
 * and the same peer can be attached anew. */
#include "rdma_bench.h"

#include <errno.h>

enum { PAGE = BENCH_PAGE, TIMEOUT_MS = 500 };

static uint64_t counter(struct rdma_bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

/* ---- the probes ---- */

static void expect_failed_probe(struct rdma_bench *b, int error)
{
    uint32_t count;
    uint64_t begin = now_ns();
    CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), 0);
    struct isw_event event;
    do
        if (!isw_device_events(b->rig.device, &event, 1))
            pause_us(200);
        else
            CHECK(event.kind != ISW_EVENT_PEER_READY);
    while (event.kind != ISW_EVENT_PEER_LOST && now_ns() - begin < 20000000000ull);
    CHECK_EQUAL(event.value, error);
    CHECK_EQUAL(isw_device_peers(b->rig.device, &count)[0].attached, 0);
    CHECK_EQUAL(fake_verbs_queue_pairs(b->verbs), 0);
}

static struct isw_rdma_path connect_first(struct rdma_bench *b, void (*spoil)(struct isw_rdma_path *))
{
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), 0);
    struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
    if (spoil)
        spoil(&path);
    CHECK_EQUAL(isw_device_rdma_connect(b->rig.device, 0, &path), 0);
    return path;
}

static void wrong_key(struct isw_rdma_path *path)
{
    path->probe_rkey ^= 1;
}

static void wrong_address(struct isw_rdma_path *path)
{
    path->probe_address += PAGE;
}

static void wrong_number(struct isw_rdma_path *path)
{
    path->psn[1]++;
}

static void swapped_pairs(struct isw_rdma_path *path)
{
    uint32_t first = path->number[0];
    path->number[0] = path->number[1];
    path->number[1] = first;
}

TEST_ON_BOTH(path_that_carries_nothing_is_not_used)
{
    struct rdma_bench *b = rdma_bench_prepare();
    b->rig.config.peer_timeout_ms = TIMEOUT_MS;
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    connect_first(b, wrong_key);
    expect_failed_probe(b, EACCES);
    connect_first(b, wrong_address);
    expect_failed_probe(b, EACCES);
    connect_first(b, wrong_number);
    expect_failed_probe(b, ETIMEDOUT);
    connect_first(b, swapped_pairs);
    expect_failed_probe(b, ETIMEDOUT);
    for (uint32_t hang = 1; hang <= 3; hang++) { /* either way alone, too */
        connect_first(b, NULL);
        atomic_store(&b->manners->hang, hang);
        uint64_t begin = now_ns();
        expect_failed_probe(b, ETIMEDOUT);
        uint64_t took_ns = now_ns() - begin;
        CHECK(took_ns >= TIMEOUT_MS * 1000000ull && took_ns < 950000000); /* an idle loop looks once a second */
        atomic_store(&b->manners->hang, 0);
    }
    /* A slab may be mapped meanwhile; its pages wait, and then go elsewhere. */
    atomic_store(&b->manners->hang, 3);
    rdma_donor_begin(b->donor[0], &b->rig, 0);
    CHECK_EQUAL(rdma_donor_map(b->donor[0], &b->rig, 0, 0), 0);
    write_pages(b, 0, 8, 1);
    expect_loss(b, 0, ETIMEDOUT);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_backup_pages), 8);
    expect_pages(b, 0, 8, 1);
    atomic_store(&b->manners->hang, 0);
    rdma_bench_attach(b, 0);
    rdma_bench_close(b);
}

TEST_ON_BOTH(pages_wait_for_the_probes)
{
    struct rdma_bench *b = rdma_bench_prepare();
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    atomic_store(&b->manners->delay_us_min, 20000);
    rdma_donor_begin(b->donor[0], &b->rig, 0);
    CHECK_EQUAL(rdma_donor_map(b->donor[0], &b->rig, 0, 0), 0);
    uint64_t ids[8];
    static uint8_t data[PAGE];
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), counter(b, ISW_DEVICE_in_flight) == 1));
    CHECK(fake_verbs_outstanding(b->verbs, rdma_donor_queue_pair(b->donor[0], 1), ids, 8) <= 1);
    CHECK_EQUAL(b->counts->requests, 2);
    client_settle(&b->client);
    CHECK_EQUAL(b->counts->requests, 3);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_remote_pages), 1);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_READY).peer, 0);
    rdma_bench_close(b);
}

/* ---- requests that fail ---- */

/* Before: 64 pages are at donor 0 and on the backup, peer 0 reads and writes them while trouble holds. */
static void survive(struct rdma_bench *b, void (*begin)(struct rdma_bench *), void (*end)(struct rdma_bench *), int error)
{
    static uint8_t value;
    for (uint32_t writing = 0; writing < 2; writing++) {
        uint64_t lost = counter(b, ISW_DEVICE_peers_lost);
        write_pages(b, 0, 64, ++value);
        rig_await_backup(&b->rig);
        begin(b);
        if (writing)
            write_pages(b, 8, 50, ++value);
        expect_pages(b, 8, 50, value);
        expect_loss(b, 0, error);
        CHECK_EQUAL(fake_verbs_queue_pairs(b->verbs), 0);
        end(b);
        CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), lost + 1);
        expect_pages(b, 0, 8, (uint8_t)(value - writing));
        expect_pages(b, 8, 50, value);
        rdma_bench_attach(b, 0);
        uint64_t remote = counter(b, ISW_DEVICE_write_remote_pages);
        write_pages(b, 0, 64, ++value);
        CHECK_EQUAL(counter(b, ISW_DEVICE_write_remote_pages), remote + 64);
        rig_await_backup(&b->rig);
        remote = counter(b, ISW_DEVICE_reads_remote_pages);
        expect_pages(b, 0, 64, value);
        CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), remote + 64);
    }
    CHECK_EQUAL(count_news(b, ISW_EVENT_PEER_LOST), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_lost_pages), 0);
}

static void fail_all(struct rdma_bench *b)
{
    atomic_store(&b->manners->fail_one_in, 1);
}

static void fail_none(struct rdma_bench *b)
{
    atomic_store(&b->manners->fail_one_in, 0);
}

TEST_ON_BOTH(failed_requests_lose_the_peer)
{
    static const struct {
        enum ibv_wc_status status;
        int error;
    } failures[] = {
        {IBV_WC_RETRY_EXC_ERR, ETIMEDOUT}, {IBV_WC_RNR_RETRY_EXC_ERR, ETIMEDOUT}, {IBV_WC_RESP_TIMEOUT_ERR, ETIMEDOUT},
        {IBV_WC_REM_ACCESS_ERR, EACCES},   {IBV_WC_REM_INV_REQ_ERR, EACCES},      {IBV_WC_REM_OP_ERR, EREMOTEIO},
        {IBV_WC_REM_ABORT_ERR, EREMOTEIO}, {IBV_WC_LOC_QP_OP_ERR, EIO},           {IBV_WC_BAD_RESP_ERR, EIO},
        {IBV_WC_FATAL_ERR, EIO},           {IBV_WC_GENERAL_ERR, EIO},
    };
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    for (uint32_t i = 0; i < sizeof failures / sizeof *failures; i++) {
        atomic_store(&b->manners->status, failures[i].status);
        survive(b, fail_all, fail_none, failures[i].error);
    }
    rdma_bench_close(b);
}

static void kill_it(struct rdma_bench *b)
{
    rdma_donor_kill(b->donor[0]);
}

static void drop_it(struct rdma_bench *b)
{
    rdma_donor_drop(b->donor[0]);
}

static void revoke_it(struct rdma_bench *b)
{
    rdma_donor_revoke(b->donor[0], 0);
}

static void nothing(struct rdma_bench *b)
{
    (void)b;
}

TEST_ON_BOTH(dead_donor_is_lost)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    survive(b, kill_it, nothing, ETIMEDOUT);
    rdma_bench_close(b);
}

TEST_ON_BOTH(broken_queue_pairs_lose_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    survive(b, drop_it, nothing, EIO);
    rdma_bench_close(b);
}

TEST_ON_BOTH(withdrawn_key_loses_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    survive(b, revoke_it, nothing, EACCES);
    rdma_bench_close(b);
}

static void no_posting(struct rdma_bench *b)
{
    atomic_store(&b->faults->post_error, ENOMEM);
}

static void posting(struct rdma_bench *b)
{
    atomic_store(&b->faults->post_error, 0);
}

/* Part of the chain was taken. */
TEST_ON_BOTH(refused_requests_lose_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    survive(b, no_posting, posting, ENOMEM);
    no_posting(b);
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    CHECK_EQUAL(isw_device_rdma_prepare(b->rig.device, 0, numbers), 0);
    struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
    CHECK_EQUAL(isw_device_rdma_connect(b->rig.device, 0, &path), 0);
    CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), -ENOMEM); /* the very first, too */
    CHECK_EQUAL(fake_verbs_queue_pairs(b->verbs), 0);
    CHECK_EQUAL(count_news(b, ISW_EVENT_PEER_LOST), 0);
    posting(b);
    rdma_bench_attach(b, 0);
    rdma_bench_close(b);
}

static void hang(struct rdma_bench *b)
{
    atomic_store(&b->manners->hang, 3);
}

static void mute(struct rdma_bench *b)
{
    atomic_store(&b->manners->mute, true);
}

static void slow(struct rdma_bench *b)
{
    atomic_store(&b->manners->delay_us_min, TIMEOUT_MS * 1500);
    atomic_store(&b->manners->delay_us_max, TIMEOUT_MS * 2000);
}

static void be_good(struct rdma_bench *b)
{
    atomic_store(&b->manners->hang, 0);
    atomic_store(&b->manners->mute, false);
    atomic_store(&b->manners->delay_us_min, 0);
    atomic_store(&b->manners->delay_us_max, 0);
}

TEST_ON_BOTH(silence_loses_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(1000, TIMEOUT_MS);
    survive(b, hang, be_good, ETIMEDOUT);
    survive(b, mute, be_good, ETIMEDOUT);
    survive(b, slow, be_good, ETIMEDOUT);
    uint64_t sleeps = counter(b, ISW_DEVICE_rdma_sleeps);
    pause_us(100000);
    CHECK_EQUAL(counter(b, ISW_DEVICE_rdma_sleeps), sleeps); /* nothing is waited for any more */
    rdma_bench_close(b);
}

/* The port may write into a buffer until the queue pair is destroyed.  Here the engine has the answer to the read at hand, in
 * a pending buffer, the moment that it gives the peer up; the port tells when the read buffer changes too early. */
TEST_ON_BOTH(buffers_are_the_ports_while_it_has_a_queue_pair)
{
    struct rdma_bench *b = rdma_bench_prepare();
    struct client other;
    static uint8_t in[64 * PAGE];
    b->rig.config.peer_timeout_ms = TIMEOUT_MS;
    b->rig.config.writeback_delay_ms = 30000;
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    write_pages(b, 0, 64, 1);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_pending_pages), 0);
    rig_connect(&b->rig, &other, false);
    for (uint32_t way = 0; way < 3; way++) {
        uint64_t ids[8];
        atomic_store(&b->manners->hang, 1);
        CHECK(client_send(&other, NBD_CMD_READ, 0, 0, 64 * PAGE, NULL, in));
        uint32_t number = rdma_donor_queue_pair(b->donor[0], 0);
        WAIT_UNTIL((clients_pump(&other, 1, 1), fake_verbs_outstanding(b->verbs, number, ids, 8) == 1));
        write_pages(b, 0, 64, (uint8_t)(2 + way)); /* page-outs pass, and stay pending */
        CHECK(counter(b, ISW_DEVICE_pending_pages) >= 64);
        if (way == 0)
            expect_loss(b, 0, ETIMEDOUT);
        else if (way == 1)
            CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
        else
            CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
        client_settle(&other);
        CHECK_EQUAL(in[63 * PAGE], page_byte(63, (uint8_t)(2 + way)));
        atomic_store(&b->manners->hang, 0);
        if (way == 2)
            break;
        rdma_bench_attach(b, 0);
        write_pages(b, 0, 64, 9);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    }
    client_close(&other);
    rdma_bench_close(b);
}

/* Page-ins are answered all the time, page-outs never. */
TEST_ON_BOTH(one_silent_queue_pair_loses_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, TIMEOUT_MS);
    struct client other;
    static uint8_t data[PAGE];
    rig_connect(&b->rig, &other, false);
    write_pages(b, 0, 16, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->hang, 2);
    CHECK(client_send(&other, NBD_CMD_WRITE, 0, 20 * PAGE, PAGE, data, NULL));
    uint64_t begin = now_ns();
    while (other.calls_out && now_ns() - begin < 10000000000ull) {
        clients_pump(&other, 1, 0);
        expect_pages(b, 0, 1, 1);
    }
    CHECK_EQUAL(other.calls_out, 0);
    expect_loss(b, 0, ETIMEDOUT);
    client_close(&other);
    rdma_bench_close(b);
}

/* A peer that is slow and has much to do has a new oldest request all the time. */
TEST_ON_BOTH(slowness_alone_loses_nobody)
{
    enum { READS = 300 };
    struct rdma_bench *b = rdma_bench_open(0, TIMEOUT_MS * 2);
    static uint8_t in[READS][PAGE];
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->delay_us_min, 100000);
    atomic_store(&b->manners->delay_us_max, 150000);
    for (uint32_t i = 0; i < READS; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, i % 64 * PAGE, PAGE, NULL, in[i]));
    client_settle(&b->client);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), READS);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    rdma_bench_close(b);
}

TEST_ON_BOTH(wrong_data_is_answered_from_the_backup)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    write_pages(b, 0, 8, 2);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->corrupt_read_one_in, 1);
    expect_pages(b, 0, 8, 2);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_MISMATCH);
    CHECK(event.peer == 0 && event.slab == 0 && event.value < 8);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_backup_pages), 1);
    atomic_store(&b->manners->corrupt_read_one_in, 0);
    atomic_store(&b->manners->corrupt_write_one_in, 1);
    write_pages(b, 16, 8, 3);
    expect_pages(b, 16, 8, 3); /* still pending */
    rig_await_backup(&b->rig);
    expect_pages(b, 16, 8, 3);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 2);
    CHECK_EQUAL(counter(b, ISW_DEVICE_lost_pages), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    rdma_bench_close(b);
}
