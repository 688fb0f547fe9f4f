/* Proves that a peer that answers, and too late, holds no request: what it does not answer by the deadline goes to the
 * backup or is read from there, what still comes changes nothing, and it gets its work back when it is quick again. */
#include "fake_peer.h"
#include "seed.h"

#include <errno.h>

enum { SIZE = 2 << 20, PAGE = ISW_PAGE_BYTES, DEADLINE_MS = 200, LATE_US = 1500 * 1000, NEVER_MS = 30000 };

struct bench {
    struct rig rig;
    struct fake_peer *peer;
    struct peer_manners *manners;
    struct client client;
};

static struct bench *open_bench(uint32_t deadline_ms, uint32_t hedge_floor_us)
{
    static struct bench bench;
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.pending_limit_bytes = 3 << 20;
    b->rig.config.request_deadline_ms = deadline_ms;
    b->rig.config.hedge_floor_us = hedge_floor_us;
    rig_start(&b->rig);
    b->peer = fake_peer_open(SIZE, 5);
    b->manners = fake_peer_manners(b->peer);
    atomic_store(&b->manners->late_us, LATE_US);
    fake_peer_attach(b->peer, &b->rig, 0);
    for (uint32_t slab = 0; slab < 2; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_peer_close(b->peer);
    rig_end(&b->rig);
}

static void write_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[512 * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, pages * PAGE, data, NULL), 0);
}

static void expect_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[512 * PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, pages * PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < pages * PAGE; i++)
        if (data[i] != value)
            FAIL("page %llu: %02x, not %02x", (unsigned long long)(page + i / PAGE), data[i], value);
}

static uint64_t count(struct bench *b, enum isw_device_counter counter)
{
    return rig_counter(&b->rig, counter);
}

static void expect_slow(struct bench *b, uint64_t slow)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_SLOW);
    CHECK(event.peer == 0 && event.value == slow);
}

/* A machine that stood still has made the peer slow once more. */
static bool rewritten_remotely(struct bench *b)
{
    write_pages(b, 0, 20, 3);
    return count(b, ISW_DEVICE_write_remote_pages) >= 20;
}

TEST_ON_BOTH(late_page_out_goes_to_the_backup)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    atomic_store(&b->manners->late_one_in, 1);
    uint64_t began = now_ns();
    write_pages(b, 0, 16, 1);
    CHECK(now_ns() - began >= DEADLINE_MS * 1000000ull);
    expect_slow(b, 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_overdue_page_outs), 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_write_backup_pages), 16);
    CHECK_EQUAL(rig_slab(&b->rig, 0).remote_pages, 0); /* though the peer has them by now */
    CHECK_EQUAL(fake_peer_byte(b->peer, 0), 1);
    began = now_ns();
    write_pages(b, 4, 16, 2); /* nobody waits for such a peer again, and the late answer is not taken for one to this */
    CHECK_EQUAL(count(b, ISW_DEVICE_overdue_page_outs), 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_write_backup_pages), 32);
    expect_pages(b, 0, 4, 1);
    expect_pages(b, 4, 16, 2);
    atomic_store(&b->manners->late_one_in, 0);
    expect_slow(b, 0);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == 20); /* promotion travels behind what was late */
    uint64_t before = count(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, 4, 1);
    expect_pages(b, 4, 16, 2);
    CHECK_EQUAL(count(b, ISW_DEVICE_reads_remote_pages) - before, 20);
    WAIT_UNTIL(rewritten_remotely(b));
    CHECK(!count(b, ISW_DEVICE_checksum_mismatches) && !count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

/* More than a socket holds, and nobody reads it: what was not sent is taken back. */
TEST_ON_BOTH(unsent_page_outs_are_taken_back)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    atomic_store(&b->manners->deaf, true);
    for (uint32_t round = 0; round < 4; round++)
        write_pages(b, 0, 512, (uint8_t)(round + 1));
    expect_pages(b, 0, 512, 4);
    CHECK(count(b, ISW_DEVICE_overdue_page_outs) > 0);
    atomic_store(&b->manners->deaf, false);
    expect_slow(b, 1);
    expect_slow(b, 0);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages + rig_slab(&b->rig, 1).remote_pages == 512);
    expect_pages(b, 0, 512, 4);
    CHECK(!count(b, ISW_DEVICE_checksum_mismatches) && !count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

/* A TRIM that a slow peer was not told of, or that was taken back, is told once it is quick: else its host had no use of that memory
 * for as long as the slab is mapped. */
TEST_ON_BOTH(slow_peer_is_told_later_what_it_may_free)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    write_pages(b, 0, 64, 1);
    CHECK_EQUAL(fake_peer_byte(b->peer, 63 * PAGE), 1);
    atomic_store(&b->manners->late_one_in, 1);
    write_pages(b, 100, 16, 2);
    expect_slow(b, 1);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_TRIM, 0, 8 * PAGE, 48 * PAGE, NULL, NULL), 0);
    CHECK_EQUAL(fake_peer_byte(b->peer, 8 * PAGE), 1);
    atomic_store(&b->manners->late_one_in, 0);
    expect_slow(b, 0);
    WAIT_UNTIL(!fake_peer_byte(b->peer, 8 * PAGE) && !fake_peer_byte(b->peer, 55 * PAGE));
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == 32);
    CHECK(fake_peer_byte(b->peer, 7 * PAGE) == 1 && fake_peer_byte(b->peer, 56 * PAGE) == 1);
    expect_pages(b, 0, 8, 1);
    expect_pages(b, 8, 48, 0);
    expect_pages(b, 56, 8, 1);
    expect_pages(b, 100, 16, 2);
    CHECK(!count(b, ISW_DEVICE_checksum_mismatches) && !count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

/* So is a promotion that waits behind them; its turn in its slab is over by then, and it gets another. */
TEST_ON_BOTH(unsent_promotions_are_tried_again)
{
    enum { MUCH = 16 << 20, SLAB_PAGES = 256, OUT = 3 * SLAB_PAGES };
    static uint8_t data[OUT * PAGE];
    struct rig rig;
    struct client client;
    rig_prepare(&rig, MUCH);
    rig.config.pending_limit_bytes = MUCH; /* most buffers stay free, or nothing is promoted */
    rig.config.request_deadline_ms = DEADLINE_MS * 5;
    for (uint32_t i = 0; i < SLAB_PAGES; i++)
        rig.page[OUT + i] = (struct isw_page){0, ISW_PAGE_DISK};
    rig_start(&rig);
    struct fake_peer *peer = fake_peer_open(MUCH, 5);
    atomic_store(&fake_peer_manners(peer)->deaf, true);
    fake_peer_attach(peer, &rig, 0);
    for (uint32_t slab = 0; slab < 3; slab++)
        CHECK_EQUAL(isw_device_slab_map(rig.device, slab, 0, 0), 0);
    rig_connect(&rig, &client, true);
    CHECK(client_send(&client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL)); /* more than a socket holds */
    uint32_t peers;
    const struct isw_peer_view *view = isw_device_peers(rig.device, &peers);
    WAIT_UNTIL((client_pump(&client), __atomic_load_n(&view->in_flight, __ATOMIC_RELAXED) * ISW_OP_PAGES_MAX >= OUT));
    CHECK_EQUAL(isw_device_slab_map(rig.device, 3, 0, 0), 0);
    WAIT_UNTIL((client_pump(&client), rig_counter(&rig, ISW_DEVICE_overdue_page_outs) > OUT / ISW_OP_PAGES_MAX));
    client_settle(&client);
    atomic_store(&fake_peer_manners(peer)->deaf, false);
    WAIT_UNTIL(rig_slab(&rig, 3).remote_pages == SLAB_PAGES);
    CHECK(!rig_counter(&rig, ISW_DEVICE_checksum_mismatches) && !rig_counter(&rig, ISW_DEVICE_peers_lost));
    client_close(&client);
    rig_stop(&rig);
    fake_peer_close(peer);
    rig_end(&rig);
}

/* A promotion that was sent lets its pages go, and takes nobody's place: when the peer is quick again all come. */
TEST_ON_BOTH(late_promotions_let_their_pages_go)
{
    enum { PAGES = SIZE / 2 / PAGE };
    struct bench *b = open_bench(DEADLINE_MS, 0);
    rig_unmap(&b->rig, 0);
    write_pages(b, 0, PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_one_in, 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    WAIT_UNTIL(count(b, ISW_DEVICE_overdue_page_outs) >= 2);
    expect_pages(b, 0, PAGES, 1);
    write_pages(b, 0, 16, 2);
    CHECK_EQUAL(count(b, ISW_DEVICE_reads_remote_pages), 0);
    atomic_store(&b->manners->late_one_in, 0);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == PAGES);
    uint64_t before = count(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, 16, 2);
    expect_pages(b, 16, PAGES - 16, 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_reads_remote_pages) - before, PAGES);
    CHECK(!count(b, ISW_DEVICE_checksum_mismatches) && !count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

TEST_ON_BOTH(late_page_in_is_read_from_the_backup)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    write_pages(b, 0, 64, 1);
    write_pages(b, 64, 64, 2);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_one_in, 1);
    uint64_t began = now_ns();
    expect_pages(b, 0, 16, 1);
    CHECK(now_ns() - began >= DEADLINE_MS * 1000000ull);
    CHECK_EQUAL(count(b, ISW_DEVICE_overdue_page_ins), 1);
    CHECK(count(b, ISW_DEVICE_hedged_reads) == 1 && count(b, ISW_DEVICE_hedges_won) == 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_reads_backup_pages), 16);
    expect_slow(b, 1);
    for (uint32_t i = 0; i < 50; i++) /* with buffers that the late answer does not touch */
        expect_pages(b, 64, 16, 2);
    CHECK_EQUAL(count(b, ISW_DEVICE_overdue_page_ins), 1);
    atomic_store(&b->manners->late_one_in, 0);
    expect_slow(b, 0);
    uint64_t before = count(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, 16, 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_reads_remote_pages) - before, 16);
    CHECK(!count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

/* Each piece of a large one goes on by itself, and the whole is what was written, until the last byte has left. */
TEST_ON_BOTH(pieces_of_a_late_page_in)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    write_pages(b, 0, 200, 3);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_one_in, 1);
    for (uint32_t i = 0; i < 20; i++)
        expect_pages(b, 0, 200, 3);
    CHECK(count(b, ISW_DEVICE_hedges_won) >= 4);
    atomic_store(&b->manners->late_one_in, 0);
    CHECK(!count(b, ISW_DEVICE_peers_lost));
    close_bench(b);
}

/* Where the peer has the only copy it is waited for. */
TEST_ON_BOTH(only_copy_is_waited_for)
{
    static uint8_t zeroes[PAGE];
    struct rig rig;
    struct client client;
    uint8_t page[PAGE];
    rig_prepare(&rig, SIZE);
    rig.config.request_deadline_ms = DEADLINE_MS;
    rig.page[3] = (struct isw_page){checksum_of(zeroes), ISW_PAGE_REMOTE};
    rig_start(&rig);
    struct fake_peer *peer = fake_peer_open(SIZE, 5);
    atomic_store(&fake_peer_manners(peer)->late_us, LATE_US);
    atomic_store(&fake_peer_manners(peer)->late_one_in, 1);
    fake_peer_attach(peer, &rig, 0);
    CHECK_EQUAL(isw_device_slab_map(rig.device, 0, 0, 1), 0);
    rig_connect(&rig, &client, true);
    memset(page, 1, PAGE);
    CHECK_EQUAL(client_call(&client, NBD_CMD_READ, 0, 3 * PAGE, PAGE, NULL, page), 0);
    CHECK(memcmp(page, zeroes, PAGE) == 0);
    CHECK(rig_counter(&rig, ISW_DEVICE_lost_pages) == 0 && rig_counter(&rig, ISW_DEVICE_hedged_reads) == 0);
    client_close(&client);
    atomic_store(&fake_peer_manners(peer)->late_one_in, 0);
    rig_stop(&rig);
    CHECK_EQUAL(rig.page[3].meta & ISW_PAGE_DISK, ISW_PAGE_DISK);
    fake_peer_close(peer);
    rig_end(&rig);
}

/* Part of a page: neither the rest of it nor the write may wait. */
TEST_ON_BOTH(part_of_a_page_in_time)
{
    struct bench *b = open_bench(DEADLINE_MS, 0);
    static uint8_t part[512], page[PAGE];
    write_pages(b, 0, 2, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->late_one_in, 1);
    memset(part, 7, sizeof part);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, PAGE + 1024, sizeof part, part, NULL), 0);
    CHECK_EQUAL(count(b, ISW_DEVICE_hedges_won), 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_write_backup_pages), 1);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, PAGE, PAGE, NULL, page), 0);
    for (uint32_t i = 0; i < PAGE; i++)
        CHECK_EQUAL(page[i], i / 512 == 2 ? 7 : 1);
    close_bench(b);
}

/* What a slow peer still owes may not take the buffers from everybody else: then it is lost. */
TEST_ON_BOTH(too_many_orphans_lose_the_peer)
{
    struct bench *b = open_bench(2000, 0);
    uint64_t began = now_ns();
    atomic_store(&b->manners->mute, true);
    write_pages(b, 0, 128, 1);
    atomic_store(&b->manners->mute, false); /* the peer is alive, and its page-ins are answered; then it rests again */
    expect_slow(b, 1);
    CHECK_EQUAL(count(b, ISW_DEVICE_peers_lost), 0);
    expect_slow(b, 0);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == 128); /* promotion has ended: it would hold pages of the next write */
    atomic_store(&b->manners->mute, true);
    write_pages(b, 0, 448, 2);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_PEER_LOST).value, ETIMEDOUT);
    CHECK(now_ns() - began < NEVER_MS * 1000000ull); /* it was not the silence */
    write_pages(b, 0, 512, 3);
    expect_pages(b, 0, 512, 3);
    close_bench(b);
}

static void learn(struct bench *b)
{
    write_pages(b, 0, 256, 1);
    rig_await_backup(&b->rig);
    for (uint32_t i = 0; i < 500; i++)
        expect_pages(b, i % 256, 1, 1);
}

/* One answer in fifty is late by far: the backup is asked long before the deadline. */
TEST_ON_BOTH(outliers_are_asked_of_the_backup)
{
    struct bench *b = open_bench(NEVER_MS, 1000);
    learn(b);
    atomic_store(&b->manners->late_one_in, 50);
    uint64_t began = now_ns();
    for (uint32_t i = 0; i < 1000; i++)
        expect_pages(b, i % 256, 1, 1);
    uint64_t won = count(b, ISW_DEVICE_hedges_won);
    CHECK_MET(won > 5);
    CHECK(count(b, ISW_DEVICE_hedged_reads) >= won);
    CHECK(now_ns() - began < won * LATE_US * 1000ull); /* they were not waited for */
    CHECK_EQUAL(count(b, ISW_DEVICE_overdue_page_ins), 0);
    atomic_store(&b->manners->late_one_in, 0);
    expect_pages(b, 0, 256, 1);
    close_bench(b);
}

/* All of them are late: only so many are asked of the backup, too, for a slow disk must not be flooded. */
TEST_ON_BOTH(hedges_have_a_budget)
{
    struct bench *b = open_bench(NEVER_MS, 1000);
    learn(b);
    uint64_t reads = count(b, ISW_DEVICE_read_requests), before = count(b, ISW_DEVICE_hedged_reads);
    CHECK(before <= 16 + reads / 20);
    atomic_store(&b->manners->late_one_in, 1);
    static uint8_t in[200][PAGE];
    for (uint32_t i = 0; i < 200; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, i * PAGE, PAGE, NULL, in[i]));
    client_settle(&b->client);
    for (uint32_t i = 0; i < 200; i++)
        CHECK_EQUAL(in[i][PAGE - 1], 1);
    reads = count(b, ISW_DEVICE_read_requests);
    CHECK(count(b, ISW_DEVICE_hedged_reads) <= 16 + reads / 20);
    close_bench(b);
}
