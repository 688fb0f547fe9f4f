/* Proves that pages travel by RDMA as they do by TCP: gathered from scattered memory in as many requests as the port needs,
 * never more than its queues hold, with few completions, and that the loop waits for these neither too long nor too
 * eagerly. */
#include "rdma_bench.h"

#include <errno.h>

enum { PAGE = BENCH_PAGE, DEPTH = 128 };

static uint64_t counter(struct rdma_bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

TEST(pages_travel_both_ways)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    uint32_t count;
    const struct isw_peer_view *view = isw_device_peers(b->rig.device, &count);
    CHECK_EQUAL(b->counts->requests, 2); /* the probes */
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    expect_pages(b, 0, 64, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_remote_pages), 64);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 64);
    CHECK_EQUAL(rdma_donor_byte(b->donor[0], 63 * PAGE), page_byte(63, 1));
    CHECK_EQUAL(__atomic_load_n(&view->attached, __ATOMIC_RELAXED), 1);
    CHECK_EQUAL(__atomic_load_n(&view->bytes_in, __ATOMIC_RELAXED), 64 * PAGE);
    CHECK_EQUAL(__atomic_load_n(&view->bytes_out, __ATOMIC_RELAXED), 64 * PAGE);
    CHECK_EQUAL(__atomic_load_n(&view->in_flight, __ATOMIC_RELAXED), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_rdma_late_completions), 0);
    write_pages(b, 500, 75, 2); /* over the end of a slab, up to the end of the device */
    rig_await_backup(&b->rig);
    expect_pages(b, 500, 75, 2);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 64 + 75);
    CHECK_EQUAL(rdma_donor_byte(b->donor[0], 511 * PAGE), page_byte(511, 2));
    CHECK_EQUAL(rdma_donor_byte(b->donor[0], 512 * PAGE), page_byte(512, 2));
    rdma_bench_close(b);
}

/* Pending buffers are given out from the lowest on, and every other one of the first 128 waits for the backup: a write of 64 pages
 * finds no two that adjoin. */
static void scatter(int max_sge, int max_sge_rd, int max_qp_wr, uint32_t pieces, uint64_t requests)
{
    struct rdma_bench *b = rdma_bench_prepare();
    *fake_verbs_limits(b->verbs) = (struct fake_limits){
        .max_sge = max_sge, .max_sge_rd = max_sge_rd, .max_qp_wr = max_qp_wr, .max_cqe = 1 << 16, .reads_max = 16};
    b->rig.config.writeback_delay_ms = 600000;
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    for (uint32_t page = 0; page < 128; page++)
        write_pages(b, page, 1, 1);
    for (uint32_t page = 0; page < 128; page += 2)
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, page * PAGE, PAGE, NULL, NULL), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_pending_pages), 64);
    uint64_t before = b->counts->requests;
    write_pages(b, 128, 64, 2);
    CHECK_EQUAL(b->counts->requests - before, requests);
    CHECK_EQUAL(b->counts->gathered, pieces);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    for (uint8_t round = 0; round < 4; round++) /* many at once */
        write_pages(b, 0, 512, (uint8_t)(3 + round));
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    before = counter(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, 512, 6);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages) - before, 512);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    rdma_bench_close(b);
}

TEST(scattered_buffers_sixteen_at_once)
{
    scatter(30, 30, 4096, 16, 4);
}

TEST(scattered_buffers_three_at_once)
{
    scatter(3, 30, 4096, 3, 22);
}

TEST(scattered_buffers_one_by_one)
{
    scatter(30, 1, 4096, 1, 64);
}

/* The shortest queue that takes the most scattered transfer. */
TEST(scattered_buffers_in_a_short_queue)
{
    scatter(3, 3, 22, 3, 22);
}

TEST(sectors_travel_in_the_request)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    static uint8_t sector[512], page[PAGE];
    write_pages(b, 0, 4, 1);
    CHECK_EQUAL(b->counts->inlined, 0);
    memset(sector, 0x77, sizeof sector);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 2 * PAGE + 1024, sizeof sector, sector, NULL), 0);
    CHECK_EQUAL(b->counts->inlined, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 2 * PAGE, PAGE, NULL, page), 0);
    CHECK_EQUAL(page[0], page_byte(2, 1));
    CHECK(!memcmp(page + 1024, sector, sizeof sector));
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    rdma_bench_close(b);
}

TEST(more_requests_than_the_queue_holds)
{
    enum { READS = 500 };
    static uint8_t in[READS][PAGE];
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    uint64_t ids[READS];
    uint32_t reads = rdma_donor_queue_pair(b->donor[0], 0);
    write_pages(b, 0, READS, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->hang, 1);
    for (uint32_t i = 0; i < READS; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, i * PAGE, PAGE, NULL, in[i]));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), counter(b, ISW_DEVICE_in_flight) == READS));
    /* Page-ins do not wait for each other, up to what the queue holds; a page-out does not wait for any of them. */
    WAIT_UNTIL(fake_verbs_outstanding(b->verbs, reads, ids, READS) == DEPTH);
    CHECK_EQUAL(b->counts->reads_peak, DEPTH);
    struct client other;
    static uint8_t data[PAGE];
    rig_connect(&b->rig, &other, false);
    CHECK_EQUAL(client_call(&other, NBD_CMD_WRITE, 0, READS * PAGE, PAGE, data, NULL), 0);
    client_close(&other);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_remote_pages), READS + 1);
    atomic_store(&b->manners->hang, 0);
    client_settle(&b->client);
    for (uint32_t i = 0; i < READS; i++)
        CHECK(in[i][0] == page_byte(i, 1));
    CHECK_EQUAL(b->counts->reads_peak, DEPTH);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), READS);
    rdma_bench_close(b);
}

TEST(several_transfers_share_a_completion)
{
    enum { READS = 32 };
    static uint8_t in[READS][PAGE];
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    write_pages(b, 0, READS, 1);
    rig_await_backup(&b->rig);
    uint64_t requests = b->counts->requests, signaled = b->counts->signaled, posts = b->counts->posts;
    for (uint32_t i = 0; i < READS; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, i * PAGE, PAGE, NULL, in[i]));
    client_settle(&b->client); /* they come and go in one piece */
    for (uint32_t i = 0; i < READS; i++)
        CHECK_EQUAL(in[i][0], page_byte(i, 1));
    CHECK_EQUAL(b->counts->requests - requests, READS);
    CHECK_EQUAL(b->counts->signaled - signaled, READS / 4);
    CHECK_EQUAL(b->counts->posts - posts, 1);
    rdma_bench_close(b);
}

TEST(a_peer_for_each_slab)
{
    struct rdma_bench *b = rdma_bench_prepare();
    rdma_bench_start(b);
    rdma_open(&b->rig, 0);
    for (uint32_t i = 0; i < BENCH_DONORS; i++) {
        rdma_donor_attach(b->donor[i], &b->rig, i);
        CHECK_EQUAL(rdma_donor_map(b->donor[i], &b->rig, i, i), 0);
    }
    for (uint8_t round = 0; round < 8; round++) {
        write_pages(b, 200, 380, round);
        rig_await_backup(&b->rig);
        expect_pages(b, 200, 380, round);
    }
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 8 * 380);
    for (uint32_t i = 0; i < BENCH_DONORS; i++)
        CHECK_EQUAL(rdma_donor_byte(b->donor[i], (230 + i * 150) * PAGE), page_byte(230 + i * 150, 7));
    rdma_bench_close(b);
}

TEST(a_slab_moves_to_another_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    write_pages(b, 0, 64, 1);
    for (uint32_t peer = 1; peer < 6; peer++) {
        rig_unmap(&b->rig, 0);
        rdma_donor_revoke(b->donor[(peer - 1) % 2], 0); /* somebody else's now */
        CHECK_EQUAL(rdma_donor_map(b->donor[peer % 2], &b->rig, 0, peer % 2), 0);
        WAIT_UNTIL(counter(b, ISW_DEVICE_promoted_pages) == peer * 64);
        uint64_t before = counter(b, ISW_DEVICE_reads_remote_pages);
        expect_pages(b, 0, 64, 1);
        CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), before + 64);
    }
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    rdma_bench_close(b);
}

/* One-sided transfers cannot give memory back: a page trimmed is zero by the table alone. */
TEST(trim_sends_nothing)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    static uint8_t data[64 * PAGE];
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    uint64_t before = b->counts->requests;
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, 0, 64 * PAGE, NULL, NULL), 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, 64 * PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < sizeof data; i++)
        CHECK(!data[i]);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(b->counts->requests, before);
    CHECK_EQUAL(rdma_donor_byte(b->donor[0], 0), page_byte(0, 1));
    write_pages(b, 3, 2, 2);
    rig_await_backup(&b->rig);
    expect_pages(b, 3, 2, 2);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 2);
    rdma_bench_close(b);
}

TEST(tcp_and_rdma_side_by_side)
{
    struct rdma_bench *b = rdma_bench_prepare();
    struct donor tcp;
    rdma_bench_start(b);
    donor_open(&tcp, BENCH_SIZE, b->rig.config.slab_bytes);
    donor_attach(&tcp, &b->rig, 5);
    rdma_open(&b->rig, 0);
    rdma_donor_attach(b->donor[0], &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), -EINVAL); /* each form to its own kind */
    CHECK_EQUAL(rdma_donor_map(b->donor[0], &b->rig, 0, 5), -EINVAL);
    CHECK_EQUAL(rdma_donor_map(b->donor[0], &b->rig, 0, 0), 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 5, 0), 0);
    CHECK_EQUAL(rdma_donor_map(b->donor[0], &b->rig, 2, 0), 0);
    write_pages(b, 0, 580, 1);
    rig_await_backup(&b->rig);
    expect_pages(b, 0, 580, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), 580);
    CHECK_EQUAL(rdma_donor_byte(b->donor[0], 255 * PAGE), page_byte(255, 1));
    CHECK_EQUAL(tcp.slabs[256 * PAGE], page_byte(256, 1));
    donor_kill(&tcp);
    expect_loss(b, 5, ECONNRESET);
    expect_pages(b, 0, 580, 1);
    CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
    expect_loss(b, 0, ENODEV);
    donor_attach(&tcp, &b->rig, 0); /* the same number, the other way */
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    write_pages(b, 0, 64, 2);
    rig_await_backup(&b->rig);
    expect_pages(b, 0, 64, 2);
    CHECK_EQUAL(tcp.slabs[0], page_byte(0, 2));
    client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&tcp);
    rig_start(&b->rig);
    rdma_bench_close(b);
}

/* ---- waiting for completions ---- */

/* Round trips, one at a time: pages that are remote only in so far as they are not pending. */
static void round_trips(struct rdma_bench *b, uint32_t trips)
{
    static uint8_t page[PAGE];
    for (uint32_t i = 0; i < trips; i++) {
        uint32_t at = i % 64;
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, at * PAGE, PAGE, NULL, page), 0);
        CHECK_EQUAL(page[0], page_byte(at, 1));
    }
}

static struct rdma_bench *open_waiting(uint32_t poll_us, uint32_t delay_us_min, uint32_t delay_us_max)
{
    struct rdma_bench *b = rdma_bench_open(poll_us, 30000);
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->delay_us_min, delay_us_min);
    atomic_store(&b->manners->delay_us_max, delay_us_max);
    return b;
}

/* The loop's tick would cover up for a lost wake-up, after 20 ms. */
TEST(sleeping_loop_is_woken)
{
    struct rdma_bench *b = open_waiting(0, 0, 100);
    uint32_t trips = (uint32_t)scaled(3000);
    uint64_t sleeps = counter(b, ISW_DEVICE_rdma_sleeps), begin = now_ns();
    round_trips(b, trips);
    CHECK(now_ns() - begin < trips * 5000000ull);
    CHECK(counter(b, ISW_DEVICE_rdma_sleeps) - sleeps > trips / 4);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), trips);
    rdma_bench_close(b);
}

/* Each completion comes between the loop's last look and its wish to be told of the next. */
TEST(completion_before_the_loop_sleeps)
{
    enum { TRIPS = 200 };
    struct rdma_bench *b = open_waiting(0, 50, 50);
    atomic_store(&b->faults->notify_late, true);
    uint64_t begin = now_ns();
    round_trips(b, TRIPS);
    CHECK(now_ns() - begin < TRIPS * 10000000ull);
    rdma_bench_close(b);
}

TEST(polling_loop_does_not_sleep)
{
    struct rdma_bench *b = open_waiting(10000, 0, 100);
    uint32_t trips = (uint32_t)scaled(1000);
    uint64_t sleeps = counter(b, ISW_DEVICE_rdma_sleeps);
    round_trips(b, trips);
    CHECK(counter(b, ISW_DEVICE_rdma_sleeps) - sleeps < trips / 4);
    rdma_bench_close(b);
}

/* Sooner or later: on a machine with much else to do a completion may take longer than polling lasts. */
static bool polls_again(struct rdma_bench *b)
{
    enum { TRIPS = 50, TRIES = 12 };
    for (uint32_t i = 0; i < TRIES; i++) {
        uint64_t sleeps = counter(b, ISW_DEVICE_rdma_sleeps);
        round_trips(b, TRIPS);
        if (counter(b, ISW_DEVICE_rdma_sleeps) - sleeps < TRIPS / 2)
            return true;
    }
    return false;
}

/* Completions that take longer than it may poll are slept for from the start; when they are fast again, it polls again. */
TEST(polling_adapts)
{
    enum { TRIPS = 200, LEARNING = 40 };
    struct rdma_bench *b = open_waiting(1000, 3000, 3500);
    round_trips(b, LEARNING);
    uint64_t sleeps = counter(b, ISW_DEVICE_rdma_sleeps), polls = b->counts->polls;
    round_trips(b, TRIPS);
    CHECK(counter(b, ISW_DEVICE_rdma_sleeps) - sleeps > TRIPS / 2);
    CHECK(b->counts->polls - polls < TRIPS * 5000); /* ten times as many, did each trip begin with polling */
    atomic_store(&b->manners->delay_us_min, 0);
    atomic_store(&b->manners->delay_us_max, 0);
    CHECK(polls_again(b));
    rdma_bench_close(b);
}

/* Sleeping itself makes completions late, so it is no proof that polling would not do. */
TEST(polling_gets_another_chance)
{
    struct rdma_bench *b = open_waiting(3000, 6000, 6000);
    atomic_store(&b->faults->wake_late_us, 6000);
    round_trips(b, 15);
    atomic_store(&b->manners->delay_us_min, 0);
    atomic_store(&b->manners->delay_us_max, 0);
    CHECK(polls_again(b));
    rdma_bench_close(b);
}

/* With nothing out the loop sleeps, whatever it may poll. */
TEST(idle_loop_rests)
{
    struct rdma_bench *b = open_waiting(10000, 0, 0);
    round_trips(b, 10);
    pause_us(20000);
    uint64_t loops = counter(b, ISW_DEVICE_loops), polls = b->counts->polls, sleeps = counter(b, ISW_DEVICE_rdma_sleeps);
    pause_us(300000);
    CHECK_EQUAL(counter(b, ISW_DEVICE_rdma_sleeps), sleeps); /* for no completion */
    CHECK(counter(b, ISW_DEVICE_loops) - loops < 50);
    CHECK(b->counts->polls - polls < 50);
    rdma_bench_close(b);
}
