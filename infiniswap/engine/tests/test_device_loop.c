/* Proves that the loop does not sleep while anything could go on, and that no single event keeps it long. */
#include "disk_bench.h"
#include "fake_peer.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = ISW_PAGE_BYTES, TRIES = 30 };

static uint64_t quickest_ns(struct client *client, uint32_t reads, uint32_t bytes, uint8_t *in)
{
    uint64_t quickest = UINT64_MAX;
    for (uint32_t try = 0; try < TRIES; try++) {
        uint64_t began = now_ns();
        for (uint32_t i = 0; i < reads; i++)
            CHECK_EQUAL(client_call(client, NBD_CMD_READ, 0, i * bytes, bytes, NULL, in + i * bytes), 0);
        uint64_t took = now_ns() - began;
        quickest = took < quickest ? took : quickest;
    }
    return quickest;
}

/* A READ of more pieces than one sends the later ones when an answer has gone out, at the end of a round: none of them waits for
 * the 20 ms tick.  The quickest of many tries counts, beside that of as many READs of one piece, for the machine may be busy. */
static void read_in_pieces(bool mapped)
{
    enum { BYTES = 1 << 20 };
    static uint8_t data[BYTES], in[BYTES];
    struct rig rig;
    struct client client;
    rig_prepare(&rig, 2 << 20);
    rig_start(&rig);
    struct fake_peer *peer = fake_peer_open(2 << 20, 1);
    fake_peer_attach(peer, &rig, 0);
    if (mapped)
        CHECK_EQUAL(isw_device_slab_map(rig.device, 0, 0, 0), 0);
    int fds[2];
    stream_pair(fds, true, false);
    CHECK_EQUAL(isw_device_connection_add(rig.device, fds[1], ISW_CONNECTION_STRUCTURED, NULL, 0), 0);
    client_open(&client, fds[0], true);
    memset(data, 7, BYTES);
    CHECK_EQUAL(client_call(&client, NBD_CMD_WRITE, 0, 0, BYTES, data, NULL), 0);
    rig_await_backup(&rig);
    uint64_t apart_ns = quickest_ns(&client, 4, BYTES / 4, in), together_ns = quickest_ns(&client, 1, BYTES, in);
    CHECK(memcmp(in, data, BYTES) == 0);
    CHECK(rig_counter(&rig, mapped ? ISW_DEVICE_reads_remote_pages : ISW_DEVICE_reads_backup_pages) >= TRIES * BYTES / PAGE);
    if (together_ns > 2 * apart_ns + 20000000)
        FAIL("a MiB took %llu us at best, four quarters %llu", (unsigned long long)together_ns / 1000,
             (unsigned long long)apart_ns / 1000);
    client_close(&client);
    rig_stop(&rig);
    fake_peer_close(peer);
    rig_end(&rig);
}

TEST(pieces_from_a_peer_follow_at_once)
{
    read_in_pieces(true);
}

TEST_ON_BOTH(pieces_from_the_backup_follow_at_once)
{
    read_in_pieces(false);
}

enum { SLABS = 16, SLAB_BYTES = 64 << 20, SLAB_PAGES = SLAB_BYTES / PAGE };
static const uint64_t SIZE = (uint64_t)SLABS * SLAB_BYTES;

/* A device of which a peer holds every page, as after a restart. */
static struct fake_peer *open_full(struct rig *rig)
{
    rig_prepare(rig, SIZE);
    rig->config.slab_bytes = SLAB_BYTES;
    for (uint64_t page = 0; page < SIZE / PAGE; page++)
        rig->page[page].meta = ISW_PAGE_REMOTE | ISW_PAGE_DISK;
    rig_start(rig);
    struct fake_peer *peer = fake_peer_open(SIZE, 1);
    fake_peer_attach(peer, rig, 0);
    for (uint32_t slab = 0; slab < SLABS; slab++)
        CHECK_EQUAL(isw_device_slab_map(rig->device, slab, 0, 1), 0);
    return peer;
}

static void expect_on_disk(const struct rig *rig, uint64_t pages)
{
    for (uint64_t page = 0; page < pages; page++)
        if (rig->page[page].meta != ISW_PAGE_DISK)
            FAIL("page %llu has flags %x", (unsigned long long)page, rig->page[page].meta);
}

/* A peer that holds much is lost: its pages are gone through over many rounds of the loop. */
TEST_ON_BOTH(a_loss_is_digested_in_slices)
{
    struct rig rig;
    struct fake_peer *peer = open_full(&rig);
    uint64_t rounds = rig_counter(&rig, ISW_DEVICE_loops);
    CHECK_EQUAL(isw_device_peer_detach(rig.device, 0), 0);
    for (uint32_t slab = 0; slab < SLABS; slab++)
        WAIT_UNTIL(rig_slab(&rig, slab).remote_pages == 0);
    CHECK(rig_counter(&rig, ISW_DEVICE_loops) - rounds >= SLABS);
    rig_stop(&rig);
    expect_on_disk(&rig, SIZE / PAGE);
    fake_peer_close(peer);
    rig_end(&rig);
}

/* Until then nobody takes one of them for remote, not even where its slab has a new peer already; and a stop leaves none. */
TEST_ON_BOTH(nobody_believes_what_is_not_digested_yet)
{
    static uint8_t in[PAGE], out[PAGE];
    struct rig rig;
    struct client client;
    struct fake_peer *peer = open_full(&rig), *other = fake_peer_open(SIZE, 2);
    fake_peer_attach(other, &rig, 1);
    rig_connect(&rig, &client, true);
    CHECK_EQUAL(isw_device_peer_detach(rig.device, 0), 0);
    CHECK_EQUAL(isw_device_slab_map(rig.device, SLABS - 1, 1, 0), 0);
    for (uint32_t slab = 0; slab < SLABS; slab++)
        CHECK_EQUAL(client_call(&client, NBD_CMD_READ, 0, (uint64_t)slab * SLAB_BYTES, PAGE, NULL, in), 0);
    memset(out, 9, PAGE);
    CHECK_EQUAL(client_call(&client, NBD_CMD_WRITE, 0, SIZE - PAGE, PAGE, out, NULL), 0);
    CHECK_EQUAL(client_call(&client, NBD_CMD_READ, 0, SIZE - PAGE, PAGE, NULL, in), 0);
    CHECK(memcmp(in, out, PAGE) == 0);
    CHECK_EQUAL(rig_counter(&rig, ISW_DEVICE_checksum_mismatches), 0);
    CHECK(rig_counter(&rig, ISW_DEVICE_reads_backup_pages) >= SLABS - 1);
    client_close(&client);
    rig_stop(&rig);
    expect_on_disk(&rig, (uint64_t)(SLABS - 1) * SLAB_PAGES);
    fake_peer_close(peer);
    fake_peer_close(other);
    rig_end(&rig);
}

static _Noreturn void live_with(uint32_t flags)
{
    struct rig rig;
    rig_prepare(&rig, SIZE);
    rig.page[SIZE / PAGE - 1].meta = flags;
    rig_start(&rig);
    for (;;)
        pause();
}

/* A device in a test ends when a page of it, wherever, gets into a state that must not be. */
TEST(a_device_that_breaks_one_ends)
{
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child)
        live_with(ISW_PAGE_LOST | ISW_PAGE_REMOTE);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* A write that goes to the backup itself stands behind an older one of its page: the loop is told when that is done, and does not
 * find it at its next tick.  (Over a log it is told of everything.) */
TEST(a_write_behind_an_older_one_is_waited_for)
{
    static uint8_t data[PAGE];
    struct disk_bench *b = disk_bench_prepare(16);
    atomic_store(&b->manners->quiet, true);
    disk_bench_start(b, 1);
    atomic_store(&b->manners->hold_writes, true);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL), 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1 && !fake_disk_told(b->disk));
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 0, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_told(b->disk)));
    CHECK_EQUAL(fake_disk_waiting_writes(b->disk), 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    WAIT_UNTIL(!fake_disk_told(b->disk)); /* nobody waits any more */
    disk_bench_close(b);
}

/* The list of what no fdatasync covers is full, and one is under way: who waits for it does not keep the loop turning, and goes on
 * when it is over. */
TEST(writes_without_room_do_not_spin)
{
    enum { LOOK_MS = 300, RUNS = 1 << 16, OUT = 256, STUCK = 8 };
    static uint8_t data[PAGE];
    struct disk_bench *b = disk_bench_prepare(16);
    atomic_store(&b->manners->quiet, true);
    atomic_store(&b->manners->hold_syncs, true);
    disk_bench_start(b, 0);
    for (uint64_t i = 0; i < RUNS; i++) {
        while (b->client.calls_out == OUT)
            clients_pump(&b->client, 1, 100);
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, i % 512 * 2 * PAGE, PAGE, data, NULL)); /* no two are neighbours */
    }
    client_settle(&b->client);
    for (uint64_t i = 0; i < STUCK; i++)
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, i * 2 * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_in_flight) == STUCK));
    uint64_t before = rig_counter(&b->rig, ISW_DEVICE_loops), since = now_ns();
    clients_pump(&b->client, 1, LOOK_MS);
    uint64_t turns = rig_counter(&b->rig, ISW_DEVICE_loops) - before, took_ms = (now_ns() - since) / 1000000;
    if (turns > took_ms) /* a tick takes 20 ms */
        FAIL("%llu turns in %llu ms", (unsigned long long)turns, (unsigned long long)took_ms);
    CHECK(b->client.calls_out == STUCK && fake_disk_told(b->disk));
    atomic_store(&b->manners->hold_syncs, false);
    client_settle(&b->client);
    disk_bench_close(b);
}
