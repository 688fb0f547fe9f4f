/* Proves that a failed fdatasync is an error about all that was under way at the time, too: writes in part or in flight, reads,
 * promotions; that it is told; and that a page that was in doubt is sure again once a peer has a copy of it. */
#include "fake_backup.h"
#include "fake_peer.h"

#include <errno.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, ALONE = 2 * (1 << 20) / PAGE /* in a slab that nobody holds */ };
enum { DEADLINE_MS = 100, LATE_US = 1500 * 1000 };

struct bench {
    struct rig rig;
    struct fake_disk *disk;
    struct fake_manners *manners;
    struct fake_peer *peer;
    struct client client;
};
static struct bench bench;

static void start(struct bench *b)
{
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    b->peer = fake_peer_open(SIZE, 5);
    fake_peer_attach(b->peer, &b->rig, 0);
    rig_connect(&b->rig, &b->client, true);
}

static struct bench *open_bench_with(uint32_t deadline_ms, uint32_t grace_ms)
{
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.request_deadline_ms = deadline_ms;
    b->rig.config.peer_grace_ms = grace_ms;
    b->disk = fake_disk_open(&b->rig, 7);
    b->manners = fake_disk_manners(b->disk);
    start(b);
    return b;
}

static struct bench *open_bench(void)
{
    return open_bench_with(DEADLINE_MS, 0);
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_peer_close(b->peer);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static uint32_t write_page(struct bench *b, uint64_t page, uint8_t value, uint16_t flags)
{
    static uint8_t data[PAGE];
    memset(data, value, PAGE);
    return client_call(&b->client, NBD_CMD_WRITE, flags, page * PAGE, PAGE, data, NULL);
}

static struct call *send_page(struct bench *b, uint64_t page, uint8_t value, uint16_t flags)
{
    static uint8_t data[PAGE];
    memset(data, value, PAGE);
    struct call *call = client_send(&b->client, NBD_CMD_WRITE, flags, page * PAGE, PAGE, data, NULL);
    CHECK(call);
    client_pump(&b->client);
    return call;
}

static uint32_t flush(struct bench *b)
{
    return client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
}

static void expect_read(struct bench *b, uint64_t page, uint8_t value)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    CHECK_EQUAL(data[PAGE - 1], value);
}

static void expect_durable(struct bench *b, uint64_t page, uint8_t value)
{
    static uint8_t image[SIZE];
    fake_disk_durable(b->disk, image);
    CHECK_EQUAL(image[page * PAGE + PAGE - 1], value);
}

static uint64_t doubtful(const struct bench *b)
{
    return rig_counter(&b->rig, ISW_DEVICE_doubtful_pages);
}

/* Some other page is written and a sync over it fails. */
static void fail_a_sync(struct bench *b)
{
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
}

/* Part of it may be on the disk: reads may have seen that, and a power cut must not take it back after a FLUSH. */
TEST_ON_BOTH(failed_write_is_not_forgotten)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(write_page(b, ALONE, 1, NBD_CMD_FLAG_FUA), 0);
    atomic_store(&b->manners->write_error_one_in, 1);
    CHECK_EQUAL(write_page(b, ALONE, 2, 0), NBD_EIO);
    atomic_store(&b->manners->write_error_one_in, 0);
    fail_a_sync(b);
    CHECK_EQUAL(doubtful(b), 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(write_page(b, ALONE, 3, 0), 0);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, ALONE, 3);
    close_bench(b);
}

/* Of a write that is under way some may have been what the sync failed over. */
TEST_ON_BOTH(write_under_way_is_not_forgotten)
{
    struct bench *b = open_bench();
    atomic_store(&b->manners->hold_writes, true);
    struct call *plain = send_page(b, ALONE, 1, 0);
    WAIT_UNTIL(fake_disk_waiting_writes(b->disk) == 1);
    struct call *fua = send_page(b, ALONE + 1, 2, NBD_CMD_FLAG_FUA); /* for a log's next chunk */
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_in_flight) == 2 && fake_disk_waiting_writes(b->disk) == (b->rig.log ? 1 : 2));
    atomic_store(&b->manners->fail_syncs, 1);
    struct call *early = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(early);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), b->client.calls_out == 2));
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    CHECK(early->error == NBD_EIO && fua->error == NBD_EIO);
    CHECK_EQUAL(plain->error, b->rig.log ? NBD_EIO : 0); /* there its chain breaks, and who is in it is told */
    CHECK_EQUAL(doubtful(b), b->rig.log ? 1 : 2); /* what was in the broken chunk is zero again */
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(write_page(b, ALONE + 2, 5, NBD_CMD_FLAG_FUA), 0); /* others are not its concern */
    CHECK_EQUAL(write_page(b, ALONE, 3, 0), 0);
    CHECK_EQUAL(write_page(b, ALONE + 1, 4, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, ALONE, 3);
    expect_durable(b, ALONE + 1, 4);
    close_bench(b);
}

TEST_ON_BOTH(zeroes_under_way_are_not_forgotten)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(write_page(b, ALONE, 1, NBD_CMD_FLAG_FUA), 0);
    atomic_store(&b->manners->hold_syncs, true);
    struct call *early = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(early);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting(b->disk) == 1));
    atomic_store(&b->manners->hold_writes, true);
    struct call *trim = client_send(&b->client, NBD_CMD_TRIM, 0, ALONE * PAGE, PAGE, NULL, NULL);
    CHECK(trim);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting(b->disk) == 2));
    atomic_store(&b->manners->fail_syncs, 1);
    atomic_store(&b->manners->hold_syncs, false);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), b->client.calls_out == 0));
    CHECK(early->error == NBD_EIO && trim->error == 0);
    atomic_store(&b->manners->hold_writes, false);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_punched_pages) == 2); /* once more */
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, ALONE, 0);
    close_bench(b);
}

/* What a page-in asked of the backup, because the peer is late, may come from before or after the failure. */
TEST_ON_BOTH(read_under_way_does_not_return_an_older_version)
{
    struct bench *b = open_bench();
    atomic_store(&fake_peer_manners(b->peer)->late_us, LATE_US);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    CHECK_EQUAL(write_page(b, 3, 1, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(write_page(b, 3, 2, 0), 0);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->sync_loses, true);
    atomic_store(&b->manners->hold_reads, true);
    atomic_store(&fake_peer_manners(b->peer)->late_one_in, 1);
    static uint8_t data[PAGE];
    struct call *read = client_send(&b->client, NBD_CMD_READ, 0, 3 * PAGE, PAGE, NULL, data);
    CHECK(read);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_hedged_reads) == 1));
    atomic_store(&b->manners->fail_syncs, 1);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_backup_errors) == 1));
    atomic_store(&b->manners->hold_reads, false);
    atomic_store(&fake_peer_manners(b->peer)->late_one_in, 0);
    client_settle(&b->client);
    CHECK_EQUAL(read->error, 0);
    CHECK_EQUAL(data[PAGE - 1], 2);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 3, 2);
    close_bench(b);
}

/* Once a peer has it the backup gets it anew, and it stays what it was read as, whatever becomes of the peer. */
TEST_ON_BOTH(promotion_ends_the_doubt)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(write_page(b, ALONE, 1, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(write_page(b, ALONE, 2, 0), 0);
    fail_a_sync(b);
    CHECK_EQUAL(doubtful(b), 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    WAIT_UNTIL(doubtful(b) == 0);
    CHECK_EQUAL(flush(b), 0); /* it has been told */
    expect_durable(b, ALONE, 2);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages), 0);
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
    expect_read(b, ALONE, 2);
    close_bench(b);
}

static uint64_t checkpoints(const struct bench *b)
{
    struct isw_log_info info = {0};
    if (b->rig.config.backup_log)
        isw_log_info(b->rig.config.backup_log, &info);
    return info.checkpoints;
}

/* A log that a failed sync has broken is mended, and both of its superblocks say so: nothing of its own is under way any more. */
static void await_mended(const struct bench *b, uint64_t before)
{
    if (b->rig.config.backup_log)
        WAIT_UNTIL(checkpoints(b) >= before + 2);
}

/* Its new copy is not on the backup yet, and who has asked before waits for none of that: it fails, as while the doubt lasted. */
TEST_ON_BOTH(flush_beside_the_end_of_a_doubt)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(write_page(b, ALONE, 1, 0), 0);
    uint64_t before = checkpoints(b);
    fail_a_sync(b);
    await_mended(b, before);
    atomic_store(&b->manners->hold_syncs, true);
    struct call *early = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(early);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting(b->disk) == 1));
    atomic_store(&b->manners->hold_writes, true);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    WAIT_UNTIL(doubtful(b) == 0 && fake_disk_waiting_writes(b->disk) == 1);
    atomic_store(&b->manners->hold_syncs, false);
    client_settle(&b->client);
    CHECK_EQUAL(early->error, NBD_EIO);
    atomic_store(&b->manners->hold_writes, false);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, ALONE, 1);
    close_bench(b);
}

/* The doubt ends before anybody has flushed: the next FLUSH tells all the same, once. */
TEST_ON_BOTH(doubt_that_has_ended_is_told)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(write_page(b, ALONE, 1, 0), 0);
    fail_a_sync(b);
    rig_kill(&b->rig); /* killed */
    client_close(&b->client);
    fake_peer_close(b->peer);
    b->rig.config.recovering = 1;
    start(b);
    CHECK_EQUAL(doubtful(b), 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    WAIT_UNTIL(doubtful(b) == 0);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, ALONE, 1);
    close_bench(b);
}

/* A sync fails while a page is promoted, and the backup has an older version from then on: nobody ever reads that. */
TEST_ON_BOTH(doubt_beside_a_promotion)
{
    struct bench *b = open_bench_with(20000, 0); /* one that is overdue gives up, and then the page is in doubt: another case */
    CHECK_EQUAL(write_page(b, ALONE, 1, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(write_page(b, ALONE, 2, 0), 0);
    atomic_store(&fake_peer_manners(b->peer)->late_us, LATE_US / 30);
    atomic_store(&fake_peer_manners(b->peer)->late_one_in, 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_reads) == 1);
    atomic_store(&b->manners->sync_loses, true);
    fail_a_sync(b);
    expect_read(b, ALONE, 2);
    atomic_store(&fake_peer_manners(b->peer)->late_one_in, 0);
    WAIT_UNTIL(doubtful(b) == 0 && rig_slab(&b->rig, 2).remote_pages == 1);
    CHECK_EQUAL(flush(b), 0);
    expect_read(b, ALONE, 2);
    expect_durable(b, ALONE, 2);
    close_bench(b);
}

/* A sync fails in the same round of the loop in which a peer breaks that may come back: when it is back nothing is in doubt,
 * whatever the loop hears first. */
static void doubt_and_break(bool break_first)
{
    enum { GRACE_MS = 60000 };
    struct bench *b = open_bench_with(0, GRACE_MS);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    CHECK_EQUAL(write_page(b, 3, 1, 0), 0);
    WAIT_UNTIL(rig_slab(&b->rig, 0).pending_pages == 0);
    atomic_store(&b->manners->hold_syncs, true);
    atomic_store(&b->manners->fail_syncs, 1);
    struct call *call = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(call);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_waiting(b->disk) == 1));
    uint64_t syncs = fake_disk_syncs(b->disk);
    atomic_store(&b->manners->stall, true);
    send_page(b, ALONE, 2, 0);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_disk_stalled(b->disk)));
    if (break_first)
        fake_peer_hang_up(b->peer);
    atomic_store(&b->manners->hold_syncs, false);
    WAIT_UNTIL(fake_disk_syncs(b->disk) > syncs);
    if (!break_first)
        fake_peer_hang_up(b->peer);
    atomic_store(&b->manners->stall, false);
    rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    client_settle(&b->client);
    CHECK_EQUAL(call->error, NBD_EIO);
    CHECK(!(b->rig.page[3].meta & ISW_PAGE_DOUBTFUL));
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages) == 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0); /* and with it ends the doubt of the page that went alone */
    WAIT_UNTIL(doubtful(b) == 0);
    (void)flush(b); /* tells what there was */
    CHECK_EQUAL(flush(b), 0);
    expect_durable(b, 3, 1);
    close_bench(b);
}

TEST_ON_BOTH(break_beside_a_failed_sync)
{
    doubt_and_break(true);
}

TEST_ON_BOTH(failed_sync_beside_a_break)
{
    doubt_and_break(false);
}
