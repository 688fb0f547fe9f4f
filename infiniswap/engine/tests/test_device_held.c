/* Proves what becomes of a peer whose connections break and which may come back: its copies wait for it and count again, and
 * meanwhile nothing is asked of it, nothing is lost, and nobody waits but for pages that it alone has. */
#include "fake_backup.h"
#include "fake_peer.h"


#include <errno.h>

enum { SIZE = 4 << 20, PAGE = ISW_PAGE_BYTES, PAGES = 8, GRACE_MS = 60000 };

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
    fake_peer_attach(b->peer, &b->rig, 0);
    rig_connect(&b->rig, &b->client, true);
}

static struct bench *open_bench(uint32_t grace_ms)
{
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.peer_grace_ms = grace_ms;
    b->disk = fake_disk_open(&b->rig, 7);
    b->manners = fake_disk_manners(b->disk);
    b->peer = fake_peer_open(SIZE, 5);
    start(b);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_peer_close(b->peer);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

static void write_page(struct bench *b, uint64_t page, uint8_t value)
{
    static uint8_t data[PAGE];
    memset(data, value, PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

static void expect_read(struct bench *b, uint64_t page, uint8_t value)
{
    static uint8_t data[PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data), 0);
    CHECK_EQUAL(data[PAGE - 1], value);
}

static void break_connections(struct bench *b)
{
    fake_peer_hang_up(b->peer);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    CHECK_EQUAL(event.peer, 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_peers_lost), 0);
}

static void come_back(struct bench *b)
{
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), 0);
}

static uint64_t counter(struct bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

/* Pages are read from the backup meanwhile; those that nobody wrote are read from the peer afterwards, the others are as they
 * were written, and get a remote copy again. */
TEST_ON_BOTH(copies_count_again)
{
    struct bench *b = open_bench(GRACE_MS);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    for (uint64_t page = 0; page < PAGES; page++)
        write_page(b, page, (uint8_t)(page + 1));
    rig_await_backup(&b->rig);
    uint64_t asked = fake_peer_requests(b->peer);
    break_connections(b);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), -EAGAIN);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), -ENOTCONN);
    for (uint64_t page = 0; page < PAGES; page++)
        expect_read(b, page, (uint8_t)(page + 1));
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_backup_pages), PAGES);
    write_page(b, 0, 100);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_backup_pages), 1);
    expect_read(b, 0, 100);
    CHECK_EQUAL(rig_slab(&b->rig, 0).remote_pages, PAGES - 1);
    CHECK_EQUAL(fake_peer_requests(b->peer), asked);
    come_back(b);
    for (uint64_t page = 1; page < PAGES; page++)
        expect_read(b, page, (uint8_t)(page + 1));
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), PAGES - 1);
    WAIT_UNTIL(rig_slab(&b->rig, 0).remote_pages == PAGES);
    expect_read(b, 0, 100);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), PAGES);
    CHECK(!counter(b, ISW_DEVICE_checksum_mismatches) && !counter(b, ISW_DEVICE_peers_lost));
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_resumed), 1);
    close_bench(b);
}

/* What was on its way when they broke may be there or not: it is on the backup, and no copy counts that may be the old one. */
TEST_ON_BOTH(what_was_on_its_way_goes_to_the_backup)
{
    struct bench *b = open_bench(GRACE_MS);
    static uint8_t data[PAGE] = {9}, in[PAGE];
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    write_page(b, 3, 1);
    rig_await_backup(&b->rig);
    atomic_store(&fake_peer_manners(b->peer)->swallow_one_in, 1);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 3 * PAGE, PAGE, data, NULL));
    struct call *read = client_send(&b->client, NBD_CMD_READ, 0, 3 * PAGE, PAGE, NULL, in);
    CHECK(read);
    uint32_t count;
    const struct isw_peer_view *view = isw_device_peers(b->rig.device, &count);
    WAIT_UNTIL((client_pump(&b->client), __atomic_load_n(&view->in_flight, __ATOMIC_RELAXED) >= 1));
    break_connections(b);
    client_settle(&b->client);
    CHECK_EQUAL(read->error, 0);
    atomic_store(&fake_peer_manners(b->peer)->swallow_one_in, 0);
    come_back(b);
    expect_read(b, 3, 0); /* its last byte */
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    close_bench(b);
}

/* A device that was killed left pages with the peer alone, and this one could not read them yet: the connections break. */
static struct bench *only_there(uint32_t grace_ms)
{
    struct bench *b = open_bench(grace_ms);
    atomic_store(&b->manners->hold_writes, true);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    for (uint64_t page = 0; page < PAGES; page++)
        write_page(b, page, (uint8_t)(page + 1));
    rig_kill(&b->rig);
    client_close(&b->client);
    atomic_store(&b->manners->hold_writes, false);
    for (uint64_t page = 0; page < PAGES; page++)
        b->rig.page[page].meta &= ISW_PAGE_REMOTE; /* whatever reached the disk in the end */
    b->rig.config.recovering = 1;
    fake_peer_hang_up(b->peer);
    atomic_store(&fake_peer_manners(b->peer)->swallow_one_in, 1);
    start(b);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 1), 0);
    CHECK_EQUAL(isw_device_adoption_end(b->rig.device), 0);
    break_connections(b);
    CHECK_EQUAL(counter(b, ISW_DEVICE_only_remote_pages), PAGES);
    return b;
}

/* Who reads such a page waits, and so does FLUSH; both are answered well once the peer is back. */
TEST_ON_BOTH(only_copies_are_waited_for)
{
    static uint8_t data[PAGE];
    struct bench *b = only_there(GRACE_MS);
    struct call *read = client_send(&b->client, NBD_CMD_READ, 0, 2 * PAGE, PAGE, NULL, data);
    struct call *flush = client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
    CHECK(read && flush);
    client_pump(&b->client);
    write_page(b, PAGES, 50); /* others go on */
    write_page(b, 1, 51);     /* and who writes the whole page needs nothing of the old one */
    expect_read(b, 1, 51);
    CHECK_EQUAL(b->client.calls_out, 2);
    atomic_store(&fake_peer_manners(b->peer)->swallow_one_in, 0);
    come_back(b);
    client_settle(&b->client);
    CHECK(read->error == 0 && data[PAGE - 1] == 3);
    CHECK_EQUAL(flush->error, 0);
    for (uint64_t page = 2; page < PAGES; page++)
        expect_read(b, page, (uint8_t)(page + 1));
    expect_read(b, 1, 51);
    CHECK_EQUAL(counter(b, ISW_DEVICE_unreadable_pages), 0);
    close_bench(b);
}

/* The hold ends after its time, with nobody's help; and earlier, where somebody has waited for so long as a silent peer is waited
 * for.  What only the peer had is lost then, and said. */
TEST_ON_BOTH(hold_ends_by_itself)
{
    static const struct { uint32_t grace_ms, timeout_ms; } times[] = {{150, 30000}, {GRACE_MS, 150}};
    for (size_t i = 0; i < 2; i++) {
        static uint8_t data[PAGE];
        struct bench *b = only_there(GRACE_MS);
        rig_kill(&b->rig); /* killed once more, with other times */
        client_close(&b->client);
        b->rig.config.peer_grace_ms = times[i].grace_ms;
        b->rig.config.peer_timeout_ms = times[i].timeout_ms;
        start(b);
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 1), 0);
        break_connections(b);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 2 * PAGE, PAGE, NULL, data), NBD_EIO);
        struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_LOST);
        CHECK_EQUAL(event.slab, 1);
        CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), NBD_EIO);
        close_bench(b);
    }
}

/* Who knows that the daemon has ended, or that it will not come back, says so. */
TEST_ON_BOTH(control_holds_and_ends_it)
{
    struct bench *b = open_bench(GRACE_MS);
    CHECK_EQUAL(isw_device_peer_hold(b->rig.device, 0), -EAGAIN); /* nothing there is worth it */
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    write_page(b, 0, 1);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN);
    CHECK_EQUAL(isw_device_peer_hold(b->rig.device, 0), 0);
    CHECK_EQUAL(isw_device_peer_hold(b->rig.device, 0), 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN); /* not attached */
    rig_await(&b->rig, ISW_EVENT_PEER_HELD);
    uint32_t count;
    const struct isw_peer_view *view = isw_device_peers(b->rig.device, &count);
    uint32_t attachment = view->attachment;
    CHECK(view->held == 1 && view->attached == 0);
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK(view->held == 1 && view->attached == 1 && view->attachment == attachment);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), -ENOTCONN);
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), 0);
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 0), -ENOTCONN);
    CHECK(view->held == 0 && rig_slab(&b->rig, 0).state == ISW_SLAB_UNMAPPED);
    expect_read(b, 0, 1);
    close_bench(b);
}

/* One that breaks while it is being reached again is still held, and its time goes on. */
TEST_ON_BOTH(breaks_again_before_it_is_back)
{
    struct bench *b = open_bench(GRACE_MS);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    write_page(b, 0, 1);
    break_connections(b);
    uint32_t count;
    const struct isw_peer_view *view = isw_device_peers(b->rig.device, &count);
    fake_peer_attach(b->peer, &b->rig, 0);
    fake_peer_hang_up(b->peer);
    WAIT_UNTIL(__atomic_load_n(&view->attached, __ATOMIC_RELAXED) == 0);
    CHECK_EQUAL(isw_device_peer_resume(b->rig.device, 0), -ENOTCONN);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_held), 1);
    come_back(b);
    expect_read(b, 0, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), 0);
    close_bench(b);
}

/* Silence is no restart: such a peer is lost as ever. */
TEST_ON_BOTH(silent_peer_is_not_held)
{
    struct bench *b = open_bench(GRACE_MS);
    client_close(&b->client);
    rig_stop(&b->rig);
    b->rig.config.peer_timeout_ms = 150;
    start(b);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    atomic_store(&fake_peer_manners(b->peer)->swallow_one_in, 1);
    write_page(b, 0, 1);
    rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_held), 0);
    expect_read(b, 0, 1);
    close_bench(b);
}
