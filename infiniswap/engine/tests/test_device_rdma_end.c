/* Proves that completions of queue pairs that are no more change nothing, whatever their ids, and that the end of the RDMA
 * device as a whole costs the peers behind it, says so once, and can be mended by closing and opening it. */
#include "rdma_bench.h"

#include <errno.h>

enum { PAGE = BENCH_PAGE, TIMEOUT_MS = 500 };

static uint64_t counter(struct rdma_bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

/* ---- completions of queue pairs that are no more ---- */

TEST_ON_BOTH(late_completions_change_nothing)
{
    enum { OUT = 16 };
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    static uint8_t in[OUT][PAGE];
    uint64_t earlier[OUT], present[OUT];
    write_pages(b, 0, OUT, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->hang, 1);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < OUT; i++)
            CHECK(client_send(&b->client, NBD_CMD_READ, 0, i * PAGE, PAGE, NULL, in[i]));
        uint32_t number = rdma_donor_queue_pair(b->donor[0], 0);
        WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_verbs_outstanding(b->verbs, number, present, OUT) == OUT));
        if (!round) {
            memcpy(earlier, present, sizeof earlier);
        } else {
            /* What the last queue pair had out, then the same under what is out now, then of a peer that never was. */
            uint64_t late = counter(b, ISW_DEVICE_rdma_late_completions);
            for (uint32_t i = 0; i < OUT; i++) {
                fake_verbs_complete(b->verbs, earlier[i]);
                fake_verbs_complete(b->verbs, earlier[i] >> 32 << 32 | (uint32_t)present[i]);
                fake_verbs_complete(b->verbs, (present[i] & 0xffffff01ffffffff) | 60ull << 33);
                fake_verbs_complete(b->verbs, (present[i] & 0xffffff01ffffffff) | 3ull << 33);
            }
            WAIT_UNTIL(counter(b, ISW_DEVICE_rdma_late_completions) == late + 4 * OUT);
            clients_pump(&b->client, 1, 10);
            CHECK_EQUAL(b->client.calls_out, OUT);
        }
        CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
        client_settle(&b->client);
        for (uint32_t i = 0; i < OUT; i++)
            CHECK_EQUAL(in[i][0], page_byte(i, 1));
        atomic_store(&b->manners->hang, 0);
        rdma_bench_attach(b, 0);
        WAIT_UNTIL(counter(b, ISW_DEVICE_promoted_pages) == OUT * (round + 1));
        atomic_store(&b->manners->hang, 1);
    }
    atomic_store(&b->manners->hang, 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    rdma_bench_close(b);
}

/* They were done in the moment that the queue pair went: the queue pair that comes after it is not theirs. */
TEST_ON_BOTH(late_completions_meet_the_next_queue_pair)
{
    struct rdma_bench *b = rdma_bench_open(0, TIMEOUT_MS);
    atomic_store(&b->faults->late_completions, true);
    write_pages(b, 0, 8, 1);
    rig_await_backup(&b->rig);
    for (uint32_t round = 1; round < 8; round++) {
        uint64_t late = counter(b, ISW_DEVICE_rdma_late_completions), id;
        static uint8_t in[8 * PAGE];
        atomic_store(&b->manners->hang, 1);
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, 0, sizeof in, NULL, in));
        uint32_t number = rdma_donor_queue_pair(b->donor[0], 0);
        WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_verbs_outstanding(b->verbs, number, &id, 1) == 1));
        if (round % 2)
            expect_loss(b, 0, ETIMEDOUT);
        else
            CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
        client_settle(&b->client);
        CHECK_EQUAL(in[7 * PAGE], page_byte(7, 1));
        if (round % 3)
            WAIT_UNTIL(counter(b, ISW_DEVICE_rdma_late_completions) == late + 1);
        atomic_store(&b->manners->hang, 0);
        rdma_bench_attach(b, 0);
        WAIT_UNTIL(counter(b, ISW_DEVICE_promoted_pages) == 8 * round);
        CHECK_EQUAL(counter(b, ISW_DEVICE_rdma_late_completions), late + 1);
    }
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    rdma_bench_close(b);
}

/* A port that completes what is not out cannot be trusted with anything. */
TEST_ON_BOTH(completion_of_nothing_loses_the_peer)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    static uint8_t in[PAGE];
    uint64_t id;
    write_pages(b, 0, 8, 1);
    rig_await_backup(&b->rig);
    for (uint32_t i = 0; i < 3; i++) {
        atomic_store(&b->manners->hang, 1);
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, in));
        uint32_t number = rdma_donor_queue_pair(b->donor[0], 0);
        WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_verbs_outstanding(b->verbs, number, &id, 1) == 1));
        fake_verbs_complete(b->verbs, i == 0 ? id + (1 << 16) : i == 1 ? id ^ 1 : id | 0xf000);
        expect_loss(b, 0, EPROTO);
        client_settle(&b->client);
        CHECK_EQUAL(in[0], page_byte(0, 1));
        atomic_store(&b->manners->hang, 0);
        rdma_bench_attach(b, 0);
        WAIT_UNTIL(counter(b, ISW_DEVICE_promoted_pages) == 8 * (i + 1));
    }
    rdma_bench_close(b);
}

/* ---- the device as a whole ---- */

static void expect_device_lost(struct rdma_bench *b, int error)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_RDMA_LOST);
    CHECK_EQUAL(event.value, error);
    expect_loss(b, 0, error);
    expect_loss(b, 1, error);
    expect_pages(b, 0, 580, 1);
    pause_us(50000);
    CHECK_EQUAL(count_news(b, ISW_EVENT_RDMA_LOST), 0); /* once is enough */
    uint32_t numbers[ISW_RDMA_QUEUE_PAIRS];
    if (!isw_device_rdma_prepare(b->rig.device, 0, numbers)) {
        struct isw_rdma_path path = rdma_donor_path(b->donor[0], numbers);
        CHECK_EQUAL(isw_device_rdma_connect(b->rig.device, 0, &path), 0);
        CHECK_EQUAL(isw_device_peer_attach_rdma(b->rig.device, 0), -ENODEV);
    }
    CHECK_EQUAL(isw_device_rdma_close(b->rig.device), 0);
    fake_verbs_expect_nothing(b->verbs);
}

static struct rdma_bench *open_two(void)
{
    struct rdma_bench *b = rdma_bench_open(0, 30000);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    rig_unmap(&b->rig, 1);
    CHECK_EQUAL(rdma_donor_map(b->donor[1], &b->rig, 1, 1), 0);
    write_pages(b, 0, 580, 1);
    rig_await_backup(&b->rig);
    return b;
}

static void reopen_and_close(struct rdma_bench *b)
{
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    WAIT_UNTIL(counter(b, ISW_DEVICE_promoted_pages) == 580);
    uint64_t before = counter(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, 580, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), before + 580);
    rdma_bench_close(b);
}

TEST_ON_BOTH(device_that_cannot_be_polled)
{
    struct rdma_bench *b = open_two();
    static uint8_t in[PAGE];
    atomic_store(&b->faults->poll_fails, true);
    CHECK(client_send(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, in));
    client_settle(&b->client);
    CHECK_EQUAL(in[0], page_byte(0, 1));
    expect_device_lost(b, EIO);
    atomic_store(&b->faults->poll_fails, false);
    reopen_and_close(b);
}

TEST_ON_BOTH(device_that_raises_no_event)
{
    struct rdma_bench *b = open_two();
    atomic_store(&b->faults->notify_fails, true);
    atomic_store(&b->manners->delay_us_min, 1000);
    /* More than one read: an event that was asked for before is still good for one sleep. */
    for (uint32_t i = 0; i < 100 && !counter(b, ISW_DEVICE_peers_lost); i++)
        expect_pages(b, 0, 1, 1);
    expect_device_lost(b, EIO);
    atomic_store(&b->faults->notify_fails, false);
    reopen_and_close(b);
}

TEST_ON_BOTH(asynchronous_events)
{
    struct rdma_bench *b = open_two();
    fake_verbs_event(b->verbs, IBV_EVENT_PORT_ERR, 1);
    fake_verbs_event(b->verbs, IBV_EVENT_PORT_ACTIVE, 1);
    fake_verbs_event(b->verbs, IBV_EVENT_GID_CHANGE, 1);
    fake_verbs_event(b->verbs, IBV_EVENT_LID_CHANGE, 1);
    for (uint32_t i = 0; i < 8; i++)
        expect_pages(b, 0, 580, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    fake_verbs_event(b->verbs, IBV_EVENT_QP_FATAL, rdma_donor_queue_pair(b->donor[1], 1));
    expect_loss(b, 1, EIO);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_MAPPED);
    expect_pages(b, 0, 580, 1);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    fake_verbs_event(b->verbs, IBV_EVENT_DEVICE_FATAL, 0);
    expect_device_lost(b, ENODEV);
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    rdma_donor_attach(b->donor[1], &b->rig, 1);
    fake_verbs_event(b->verbs, IBV_EVENT_CQ_ERR, 0);
    expect_device_lost(b, EIO);
    rdma_open(&b->rig, 0);
    rdma_bench_attach(b, 0);
    rdma_bench_close(b);
}
