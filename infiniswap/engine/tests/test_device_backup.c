/* Proves what the device owes its clients through the backup: FLUSH and FUA wait for what they promise and for no more, writes
 * of one page reach the disk in order, a full pending buffer stalls writers and nobody else, a failing disk costs no
 * data, and a stop drains everything. */
#include "fake_backup.h"
#include "rig.h"

#include <errno.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE };

struct bench {
    struct rig rig;
    struct fake_disk *disk;
    struct fake_manners *manners;
    struct donor donor;
    struct client client;
    uint8_t image[SIZE];
};

static struct bench bench;

/* A device over a fake disk, one donor attached, slab 0 mapped to it. */
static struct bench *open_bench(uint64_t pending_limit_bytes)
{
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.pending_limit_bytes = pending_limit_bytes;
    b->disk = fake_disk_open(SIZE, 7);
    b->manners = fake_disk_manners(b->disk);
    fake_disk_install(b->disk);
    rig_start(&b->rig);
    donor_open(&b->donor, SIZE, 1 << 20);
    donor_attach(&b->donor, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&b->donor);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static void write_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value, uint16_t flags)
{
    static uint8_t data[256 * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, flags, page * PAGE, pages * PAGE, data, NULL), 0);
}

static bool page_is(const uint8_t *image, uint64_t page, uint8_t value)
{
    for (uint32_t i = 0; i < PAGE; i++)
        if (image[page * PAGE + i] != value)
            return false;
    return true;
}

static void expect_read(struct bench *b, uint64_t page, uint8_t value)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    CHECK(page_is(data, 0, value));
}

/* Several pages of one write wait for the backup writes of their older versions: each wakes it, it goes on once. */
TEST(rewrite_waits_for_older_writes)
{
    struct bench *b = open_bench(4 << 20);
    atomic_store(&b->manners->hold_writes, true);
    for (uint32_t page = 0; page < 8; page++)
        write_pages(b, page, 1, 1, 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_backup_in_flight));
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0); /* now writes go to the backup itself */
    static uint8_t data[8 * PAGE];
    memset(data, 2, sizeof data);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL));
    for (int i = 0; i < 20; i++)
        clients_pump(&b->client, 1, 5);
    CHECK_EQUAL(b->client.calls_out, 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    for (uint32_t page = 0; page < 8; page++)
        expect_read(b, page, 2);
    fake_disk_image(b->disk, b->image);
    for (uint32_t page = 0; page < 8; page++)
        CHECK(page_is(b->image, page, 2));
    close_bench(b);
}
