/* Proves that a slab moves from one peer to another with its pages, while it is used and whatever becomes of either peer:
 * what is copied is served from the new one at once, what is not comes from elsewhere, and nothing waits for a slow disk. */
#include "fake_backup.h"
#include "fake_peer.h"

#include <errno.h>

enum { SIZE = 3 << 20, SLAB_PAGES = 256, PAGE = ISW_PAGE_BYTES, OLD = 0, NEW = 1 };

struct bench {
    struct rig rig;
    struct fake_peer *peer[3];
    struct client client;
};

static struct bench *prepare(void)
{
    static struct bench bench;
    rig_prepare(&bench.rig, SIZE);
    return &bench;
}

/* Slab 0 is at the old peer. */
static void start(struct bench *b)
{
    rig_start(&b->rig);
    for (uint32_t i = 0; i < 3; i++) {
        b->peer[i] = fake_peer_open(SIZE, 700 + i);
        fake_peer_attach(b->peer[i], &b->rig, i);
    }
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, OLD, 0), 0);
    rig_connect(&b->rig, &b->client, true);
}

static struct bench *open_bench(void)
{
    struct bench *b = prepare();
    start(b);
    return b;
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    for (uint32_t i = 0; i < 3; i++)
        fake_peer_close(b->peer[i]);
    rig_end(&b->rig);
}

static void write_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[SLAB_PAGES * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, pages * PAGE, data, NULL), 0);
}

static void expect_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[SLAB_PAGES * PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, pages * PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < pages * PAGE; i++)
        if (data[i] != value)
            FAIL("page %llu: %02x, not %02x", (unsigned long long)(page + i / PAGE), data[i], value);
}

static uint64_t counter(struct bench *b, enum isw_device_counter which)
{
    return rig_counter(&b->rig, which);
}

static int move(struct bench *b, uint32_t limit_ms)
{
    return isw_device_slab_move(b->rig.device, 0, NEW, limit_ms);
}

static struct isw_event expect_moved(struct bench *b)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_MOVED);
    CHECK(event.slab == 0 && event.peer == NEW && event.attachment == 1);
    struct isw_slab_view view = rig_slab(&b->rig, 0);
    CHECK(view.state == ISW_SLAB_DRAINING && view.peer == NEW);
    CHECK_EQUAL(event.value, view.remote_pages);
    return event;
}

/* From here on the old one's memory may be anybody's. */
static void settle(struct bench *b)
{
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    CHECK(event.slab == 0 && event.peer == OLD);
    struct isw_slab_view view = rig_slab(&b->rig, 0);
    CHECK(view.state == ISW_SLAB_MAPPED && view.peer == NEW);
    atomic_store(&fake_peer_manners(b->peer[OLD])->corrupt_read_one_in, 1);
    atomic_store(&fake_peer_manners(b->peer[OLD])->corrupt_write_one_in, 1);
}

/* Pages that are read are counted as remote or backup. */
static void expect_sources(struct bench *b, uint64_t remote, uint64_t backup)
{
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_remote_pages), remote);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_backup_pages), backup);
}

TEST_ON_BOTH(pages_are_taken_along)
{
    struct bench *b = open_bench();
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(move(b, 0), 0);
    CHECK_EQUAL(expect_moved(b).value, SLAB_PAGES);
    expect_pages(b, 0, 64, 1);  /* before it is settled, too */
    expect_sources(b, 64, 0);
    settle(b);
    expect_pages(b, 0, SLAB_PAGES, 1);
    expect_sources(b, 64 + SLAB_PAGES, 0);
    write_pages(b, 3, 100, 2);
    expect_pages(b, 0, 3, 1);
    expect_pages(b, 3, 100, 2);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_backup_pages), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moved_pages), SLAB_PAGES);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moves_begun), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moves_done), 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(fake_peer_byte(b->peer[NEW], 50 * PAGE), 2);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED).peer, NEW);
    CHECK_EQUAL(counter(b, ISW_DEVICE_slabs_mapped), counter(b, ISW_DEVICE_slabs_released));
    expect_pages(b, 3, 100, 2);
    close_bench(b);
}

/* One that is being given up can still be taken along, and one with nothing in it moves, too. */
TEST_ON_BOTH(draining_and_empty_slabs_move)
{
    static struct fake_disk *disk;
    struct bench *b = prepare();
    disk = fake_disk_open(&b->rig, 710);
    fake_disk_install(disk);
    start(b);
    CHECK_EQUAL(move(b, 0), 0);
    CHECK_EQUAL(expect_moved(b).value, 0);
    settle(b);
    write_pages(b, 0, 100, 1);
    expect_pages(b, 0, 100, 1);
    atomic_store(&fake_disk_manners(disk)->hold_writes, true);
    write_pages(b, 0, 100, 3);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, 0, 2, 0), 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_MOVED); /* and no page of it is on the backup */
    CHECK(event.peer == 2 && event.value == 100);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED).peer, NEW);
    CHECK_EQUAL(rig_slab(&b->rig, 0).pending_pages, 100);
    CHECK_EQUAL(fake_peer_byte(b->peer[2], 99 * PAGE), 3);
    atomic_store(&fake_disk_manners(disk)->hold_writes, false);
    expect_pages(b, 0, 100, 3);
    close_bench(b);
    fake_disk_close(disk);
}

/* While pages are copied, page-ins come from the old peer, and page-outs go there and are copied after that. */
TEST_ON_BOTH(it_is_used_as_ever)
{
    struct bench *b = open_bench();
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&fake_peer_manners(b->peer[NEW])->mute, true);
    uint64_t asked = fake_peer_requests(b->peer[NEW]);
    CHECK_EQUAL(move(b, 0), 0);
    while (fake_peer_requests(b->peer[NEW]) == asked) /* the first copies have landed there */
        expect_pages(b, 200, 1, 1);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_MAPPED);
    write_pages(b, 0, 8, 2);
    expect_pages(b, 0, 8, 2);
    expect_pages(b, 8, 200, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_reads_backup_pages), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_backup_pages), 0);
    atomic_store(&fake_peer_manners(b->peer[NEW])->mute, false);
    fake_peer_hang_up(b->peer[NEW]); /* what it did not answer never comes */
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_MOVE_FAILED);
    CHECK(event.slab == 0 && event.peer == NEW && event.value == ENOTCONN);
    fake_peer_attach(b->peer[NEW], &b->rig, NEW);
    CHECK_EQUAL(move(b, 0), 0);
    for (uint8_t value = 3; counter(b, ISW_DEVICE_slabs_mapped) == 1; value++) {
        write_pages(b, 40, 2, value);
        expect_pages(b, 40, 2, value);
    }
    event = rig_await(&b->rig, ISW_EVENT_SLAB_MOVED);
    CHECK_EQUAL(event.attachment, 2);
    settle(b);
    write_pages(b, 40, 1, 99);
    expect_pages(b, 40, 1, 99);
    expect_pages(b, 0, 8, 2);
    expect_pages(b, 8, 30, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moves_failed), 1);
    close_bench(b);
}

static void expect_still_there(struct bench *b, int error)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_MOVE_FAILED);
    CHECK(event.slab == 0 && event.peer == NEW && event.value == (uint64_t)error);
    struct isw_slab_view view = rig_slab(&b->rig, 0);
    CHECK(view.state == ISW_SLAB_MAPPED && view.peer == OLD && view.remote_pages == SLAB_PAGES);
    uint64_t remote = counter(b, ISW_DEVICE_reads_remote_pages);
    expect_pages(b, 0, SLAB_PAGES, 1);
    expect_sources(b, remote + SLAB_PAGES, 0);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), -EINVAL);
}

TEST_ON_BOTH(target_that_fails_leaves_it_where_it_is)
{
    struct bench *b = open_bench();
    struct peer_manners *m = fake_peer_manners(b->peer[NEW]);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&m->error, NBD_ESHUTDOWN); /* the daemon has taken its slab back */
    atomic_store(&m->error_one_in, 1);
    CHECK_EQUAL(move(b, 0), 0);
    expect_still_there(b, NBD_ESHUTDOWN);
    atomic_store(&m->error_one_in, 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_slabs_lost), 0);

    atomic_store(&m->mute, true);
    CHECK_EQUAL(move(b, 0), 0);
    CHECK_EQUAL(isw_device_slab_move_cancel(b->rig.device, 0), 0);
    atomic_store(&m->mute, false);
    CHECK_EQUAL(isw_device_slab_move_cancel(b->rig.device, 0), -EINVAL);
    fake_peer_hang_up(b->peer[NEW]);
    expect_still_there(b, ECANCELED);
    fake_peer_attach(b->peer[NEW], &b->rig, NEW);

    atomic_store(&m->garbage_one_in, 1);
    CHECK_EQUAL(move(b, 0), 0);
    expect_still_there(b, ENOTCONN);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moves_failed), 3);
    close_bench(b);
}

/* When the old peer is gone what has come over is what counts; the rest is on the backup. */
static void lose_old_peer(bool refuses)
{
    struct bench *b = open_bench();
    struct peer_manners *m = fake_peer_manners(b->peer[OLD]);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&m->delay_us_max, 20000);
    CHECK_EQUAL(move(b, 0), 0);
    while (!counter(b, ISW_DEVICE_moved_pages))
        expect_pages(b, 0, 1, 1);
    if (refuses) {
        atomic_store(&m->error, NBD_ESHUTDOWN);
        atomic_store(&m->error_one_in, 1);
    } else {
        fake_peer_hang_up(b->peer[OLD]);
    }
    uint64_t moved = expect_moved(b).value, before = counter(b, ISW_DEVICE_reads_remote_pages);
    CHECK(moved);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED).peer, OLD);
    expect_pages(b, 0, SLAB_PAGES, 1);
    CHECK(counter(b, ISW_DEVICE_reads_remote_pages) - before >= moved);
    CHECK_EQUAL(counter(b, ISW_DEVICE_lost_pages), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_slabs_lost), 0);
    CHECK_EQUAL(counter(b, ISW_DEVICE_peers_lost), !refuses);
    close_bench(b);
}

TEST_ON_BOTH(old_peer_dies)
{
    lose_old_peer(false);
}

TEST_ON_BOTH(old_peer_takes_its_memory_back)
{
    lose_old_peer(true);
}

/* Between SLAB_MOVED and the settling. */
TEST_ON_BOTH(new_peer_dies_before_it_is_settled)
{
    struct bench *b = open_bench();
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(move(b, 0), 0);
    expect_moved(b);
    fake_peer_hang_up(b->peer[NEW]);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    CHECK(event.peer == NEW && event.slab == 1);
    event = rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    CHECK(event.peer == OLD && event.slab == 0);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, 0), -EINVAL);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_UNMAPPED);
    expect_pages(b, 0, SLAB_PAGES, 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, OLD, 0), 0);
    write_pages(b, 0, 4, 2);
    expect_pages(b, 0, 4, 2);
    CHECK_EQUAL(counter(b, ISW_DEVICE_lost_pages), 0);
    close_bench(b);
}

/* What is not copied in time, and is on the backup, is left behind. */
TEST_ON_BOTH(time_is_bounded)
{
    struct bench *b = prepare();
    b->rig.config.peer_timeout_ms = 3000; /* what is promoted there afterwards is not answered, either */
    start(b);
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&fake_peer_manners(b->peer[NEW])->mute, true);
    uint64_t before = now_ns();
    CHECK_EQUAL(move(b, 200), 0);
    CHECK_EQUAL(move(b, 400), 0); /* there is more time now */
    CHECK_EQUAL(expect_moved(b).value, 0);
    CHECK(now_ns() - before >= 400000000);
    write_pages(b, 0, 4, 2); /* to the backup, for it is not settled */
    CHECK_EQUAL(counter(b, ISW_DEVICE_write_backup_pages), 4);
    settle(b);
    expect_pages(b, 0, 4, 2);
    expect_pages(b, 4, SLAB_PAGES - 4, 1);
    expect_sources(b, 0, SLAB_PAGES);
    CHECK_EQUAL(counter(b, ISW_DEVICE_moves_done), 1);
    close_bench(b);
}

/* Copies that were wrong already are noticed, told, and not taken along. */
TEST_ON_BOTH(wrong_copies_are_left_behind)
{
    struct bench *b = open_bench();
    write_pages(b, 0, SLAB_PAGES, 1);
    rig_await_backup(&b->rig);
    atomic_store(&fake_peer_manners(b->peer[OLD])->corrupt_read_one_in, 3);
    CHECK_EQUAL(move(b, 0), 0);
    uint64_t moved = expect_moved(b).value, wrong = counter(b, ISW_DEVICE_checksum_mismatches);
    CHECK(moved < SLAB_PAGES && wrong && moved == SLAB_PAGES - wrong);
    settle(b);
    expect_pages(b, 0, SLAB_PAGES, 1);
    CHECK_EQUAL(counter(b, ISW_DEVICE_checksum_mismatches), wrong);
    CHECK_EQUAL(counter(b, ISW_DEVICE_lost_pages), 0);
    close_bench(b);
}

TEST(nonsense_is_refused)
{
    struct bench *b = open_bench();
    isw_device *d = b->rig.device;
    CHECK_EQUAL(isw_device_slab_move(d, 1, NEW, 0), -EINVAL); /* nobody holds it */
    CHECK_EQUAL(isw_device_slab_move(d, 99, NEW, 0), -EINVAL);
    CHECK_EQUAL(isw_device_slab_move(d, 0, OLD, 0), -EINVAL); /* it is there */
    CHECK_EQUAL(isw_device_slab_move(d, 0, 5, 0), -ENOTCONN);
    CHECK_EQUAL(isw_device_slab_move(d, 0, 99, 0), -EINVAL);
    CHECK_EQUAL(isw_device_slab_move_region(d, 0, NEW, 0, 0, 0), -EINVAL); /* it is no RDMA peer */
    CHECK_EQUAL(isw_device_slab_settle(d, 0), -EINVAL);
    CHECK_EQUAL(isw_device_slab_move_cancel(d, 0), -EINVAL);
    write_pages(b, 0, 16, 1);
    CHECK_EQUAL(move(b, 0), 0);
    CHECK_EQUAL(isw_device_slab_move(d, 0, 2, 0), -EBUSY);
    expect_moved(b);
    CHECK_EQUAL(isw_device_slab_move_cancel(d, 0), -EALREADY);
    CHECK_EQUAL(isw_device_slab_unmap(d, 0), -EINVAL);
    CHECK_EQUAL(move(b, 0), -EINVAL);
    CHECK_EQUAL(isw_device_slab_move(d, 0, 2, 0), -EBUSY);
    settle(b);
    CHECK_EQUAL(isw_device_slab_settle(d, 0), -EINVAL);
    CHECK_EQUAL(isw_device_slab_move(d, 0, 2, 0), 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_MOVED).peer, 2);
    close_bench(b); /* stops with a slab that is never settled */
}

/* A stop waits for no move. */
TEST_ON_BOTH(stop_ends_it)
{
    struct bench *b = open_bench();
    b->rig.config.peer_timeout_ms = 30000;
    write_pages(b, 0, SLAB_PAGES, 1);
    atomic_store(&fake_peer_manners(b->peer[OLD])->delay_us_max, 100000);
    CHECK_EQUAL(move(b, 0), 0);
    close_bench(b);
}
