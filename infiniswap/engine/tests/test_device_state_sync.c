/* Proves that a FLUSH that succeeds has the state file say durably which pages are lost, and of which this is no longer so; and
 * what a failing disk under the state file does to it. */
#include "fake_backup.h"
#include "fake_peer.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, LOST = 3, ELSEWHERE = 2 * (1 << 20) / PAGE + 5 /* two slabs behind it */ };

struct bench {
    struct rig rig;
    struct fake_disk *disk;
    struct fake_manners *manners;
    struct client client;
};
static struct bench bench;

static struct bench *open_bench(void)
{
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.state_fd = 0; /* not looked at: the disk is a fake */
    b->rig.config.recovering = 1;
    b->rig.page[LOST] = (struct isw_page){77, ISW_PAGE_REMOTE}; /* and its peer is never heard of again */
    b->disk = fake_disk_open(&b->rig, 7);
    b->manners = fake_disk_manners(b->disk);
    fake_disk_state(b->disk, b->rig.page, SIZE / PAGE);
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    CHECK_EQUAL(isw_device_adoption_end(b->rig.device), 0);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static uint32_t flush(struct bench *b)
{
    return client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
}

static uint32_t write_page(struct bench *b, uint64_t page, uint16_t flags)
{
    static uint8_t data[PAGE] = {1};
    return client_call(&b->client, NBD_CMD_WRITE, flags, page * PAGE, PAGE, data, NULL);
}

static uint32_t durable_flags(struct bench *b, uint64_t page)
{
    return fake_disk_durable_entry(b->disk, page).meta & ISW_PAGE_PERSISTENT;
}

/* One FLUSH tells of it; from the next one that succeeds on a power cut makes nothing of it.  No other sync follows. */
TEST_ON_BOTH(loss_is_durable)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(durable_flags(b, LOST), ISW_PAGE_LOST);
    CHECK_EQUAL(fake_disk_durable_entry(b->disk, LOST).checksum, 0);
    uint64_t syncs = fake_disk_state_syncs(b->disk);
    CHECK_EQUAL(write_page(b, ELSEWHERE, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(fake_disk_state_syncs(b->disk), syncs);
    close_bench(b);
}

/* What is flushed is not unreadable after a power cut. */
TEST_ON_BOTH(end_of_a_loss_is_durable)
{
    static const uint16_t ways[] = {0, NBD_CMD_FLAG_FUA};
    for (int i = 0; i < 2; i++) {
        struct bench *b = open_bench();
        CHECK_EQUAL(flush(b), NBD_EIO);
        CHECK_EQUAL(flush(b), 0);
        CHECK_EQUAL(durable_flags(b, LOST), ISW_PAGE_LOST);
        CHECK_EQUAL(write_page(b, LOST, ways[i]), 0);
        CHECK(ways[i] || flush(b) == 0);
        CHECK_EQUAL(durable_flags(b, LOST) & ISW_PAGE_LOST, 0);
        close_bench(b);
    }
}

/* A stop says it, too, if no FLUSH has. */
TEST_ON_BOTH(stop_makes_it_durable)
{
    struct bench *b = open_bench();
    client_close(&b->client);
    rig_stop(&b->rig);
    CHECK_EQUAL(durable_flags(b, LOST), ISW_PAGE_LOST);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static volatile sig_atomic_t stores;

static void note_store(int number)
{
    (void)number;
    stores++;
    mprotect(bench.rig.page, PAGE, PROT_READ | PROT_WRITE); /* the store goes on from here */
}

/* Each FLUSH says that it cannot be made durable, and tries again; the kernel, which forgets what it failed to write, is given it
 * anew.  FUA of other slabs goes on. */
TEST_ON_BOTH(failing_sync_is_told_and_tried_again)
{
    struct bench *b = open_bench();
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(write_page(b, LOST, 0), 0);
    CHECK_EQUAL(write_page(b, ELSEWHERE, 0), 0);
    atomic_store(&b->manners->state_error_one_in, 1);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_STATE_ERROR).value, EIO);
    signal(SIGSEGV, note_store);
    CHECK_EQUAL(mprotect(b->rig.page, PAGE, PROT_READ), 0);
    CHECK_EQUAL(flush(b), NBD_EIO);
    CHECK_EQUAL(stores, 1);
    CHECK_EQUAL(write_page(b, ELSEWHERE, NBD_CMD_FLAG_FUA), 0);
    CHECK_EQUAL(write_page(b, LOST, NBD_CMD_FLAG_FUA), NBD_EIO);
    CHECK_EQUAL(durable_flags(b, LOST), ISW_PAGE_LOST);
    atomic_store(&b->manners->state_error_one_in, 0);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(durable_flags(b, LOST), ISW_PAGE_DISK);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_state_errors), 3);
    close_bench(b);
}

/* A page whose peer died and which is in a pending buffer is lost with the process, and not with the power: what was flushed of
 * it is on the backup. */
TEST_ON_BOTH(pending_page_is_told_apart)
{
    struct bench *b = open_bench();
    struct fake_peer *peer = fake_peer_open(SIZE, 5);
    uint64_t page = ELSEWHERE;
    fake_peer_attach(peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 2, 0, 0), 0);
    atomic_store(&b->manners->hold_writes, true);
    CHECK_EQUAL(write_page(b, page, 0), 0);
    fake_peer_hang_up(peer);
    rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    WAIT_UNTIL(rig_slab(&b->rig, 2).remote_pages == 0);
    CHECK_EQUAL(__atomic_load_n(&b->rig.page[page].meta, __ATOMIC_RELAXED) & ISW_PAGE_PERSISTENT, ISW_PAGE_LOST);
    CHECK_EQUAL(__atomic_load_n(&b->rig.page[page].checksum, __ATOMIC_RELAXED), ISW_LOST_PENDING);
    atomic_store(&b->manners->hold_writes, false);
    CHECK_EQUAL(flush(b), NBD_EIO); /* of the other one */
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(durable_flags(b, page), ISW_PAGE_DISK);
    rig_kill(&b->rig); /* killed */
    client_close(&b->client);
    b->rig.page[page] = (struct isw_page){ISW_LOST_PENDING, ISW_PAGE_LOST}; /* as if that had happened before */
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    CHECK_EQUAL(b->rig.page[page].checksum, 0);
    rig_connect(&b->rig, &b->client, true);
    fake_peer_close(peer);
    close_bench(b);
}
