/* Proves that no client keeps another from being served: not by writing faster than the backup takes it, by stopping in the middle of
 * a request, by not reading its answers, or by asking for very much at once. */
#include "disk_bench.h"
#include "fake_peer.h"

#include <errno.h>
#include <unistd.h>

enum { SIZE = DISK_BENCH_SIZE, PAGE = ISW_PAGE_BYTES, SLAB_PAGES = (1 << 20) / PAGE, HOGS = 8 };

static struct client second, hog[HOGS];
static uint8_t data[64 * PAGE], sink[64 * PAGE];

/* A device with 256 pending buffers, 32 of them for late answers, all slabs at one donor, two clients. */
static struct disk_bench *open_bench(uint32_t stall_timeout_ms)
{
    struct disk_bench *b = disk_bench_prepare(16);
    b->rig.config.pending_limit_bytes = 256 * PAGE;
    b->rig.config.client_stall_timeout_ms = stall_timeout_ms;
    disk_bench_start(b, 4);
    rig_connect(&b->rig, &second, true);
    return b;
}

static void close_bench(struct disk_bench *b)
{
    client_close(&second);
    disk_bench_close(b);
}

/* Page-ins are served that stand behind page-outs which wait for the disk, on the same connection, as the kernel mixes them. */
TEST_ON_BOTH(reads_pass_writes_that_wait)
{
    struct disk_bench *b = open_bench(30000);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, PAGE, data, NULL), 0);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->hold_writes, true);
    for (uint64_t page = 10; page < 10 + 224 + 15; page++)
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, sink), 0);
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), b->client.calls_out == 15));
    /* Without end it does not go: there are 256 buffers, and no write of another client finds all of them taken. */
    for (uint64_t page = 300; page < 500; page++)
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), rig_counter(&b->rig, ISW_DEVICE_pending_pages) == 240));
    CHECK(client_send(&second, NBD_CMD_WRITE, 0, 600 * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&second, 1, 1), rig_counter(&b->rig, ISW_DEVICE_pending_pages) == 241));
    CHECK_EQUAL(b->client.calls_out, 215);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    client_settle(&second);
    close_bench(b);
}

/* A client that goes away while its answers are held back does not keep its place. */
TEST_ON_BOTH(who_waits_for_room_and_leaves_is_forgotten)
{
    struct disk_bench *b = open_bench(30000);
    atomic_store(&b->manners->hold_writes, true);
    for (uint64_t page = 0; page < 240; page++)
        CHECK(client_send(&second, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((clients_pump(&second, 1, 1), second.calls_out == 16));
    client_close(&second);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_connections) == 1);
    rig_connect(&b->rig, &second, true);
    atomic_store(&b->manners->hold_writes, false);
    close_bench(b);
}

/* A large write needs many buffers: it takes them as they come free, in its turn, beside small ones without end. */
TEST_ON_BOTH(large_write_beside_small_ones)
{
    struct disk_bench *b = open_bench(30000);
    struct chance chance = chance_start(5);
    uint32_t small = 0, begun = 0;
    atomic_store(&b->manners->delay_us_max, 16000); /* slower than this client even where it gets a small part of a processor */
    while (!begun || second.calls_out) {
        while (b->client.calls_out < 128) {
            uint64_t page = chance_below(&chance, 3 * SLAB_PAGES / 2) * 2; /* no two of them adjoin */
            CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
            if (++small == 1000) {
                begun = small;
                CHECK(client_send(&second, NBD_CMD_WRITE, 0, 3 * SLAB_PAGES * PAGE, sizeof data, data, NULL));
            }
        }
        clients_pump(&b->client, 1, 1);
        clients_pump(&second, 1, 0);
        CHECK(small < 1000 + 50000); /* some hundreds when all goes well */
    }
    CHECK(rig_counter(&b->rig, ISW_DEVICE_pending_waits) > 0);
    client_settle(&b->client);
    close_bench(b);
}

/* Clients that stop inside a WRITE, or send a byte of it now and then, hold no buffer, and not for ever. */
TEST_ON_BOTH(half_writes_hold_nothing)
{
    struct disk_bench *b = open_bench(500);
    for (uint32_t i = 0; i < 4; i++) {
        uint8_t head[NBD_REQUEST_BYTES + 1] = {0};
        rig_connect(&b->rig, &hog[i], true);
        nbd_put_request(head, NBD_CMD_WRITE, 0, 1, (uint64_t)(2 * SLAB_PAGES) * PAGE, 64 * PAGE);
        CHECK(write(hog[i].fd, head, sizeof head) == sizeof head);
    }
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_write_requests) == 4);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL), 0);
    while (rig_counter(&b->rig, ISW_DEVICE_connections) > 2) {
        ssize_t ignored = write(hog[0].fd, data, 1);
        (void)ignored;
        pause_us(10000);
    }
    for (uint32_t i = 0; i < 4; i++)
        client_close(&hog[i]);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, sink), 0);
    close_bench(b);
}

/* Clients that do not read their answers, or a byte now and then, leave buffers to others, and do not stay. */
TEST_ON_BOTH(answers_not_taken_hold_a_share)
{
    struct disk_bench *b = open_bench(1000);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, 0, sizeof data, data, NULL), 0);
    for (uint32_t i = 0; i < HOGS; i++) {
        rig_connect(&b->rig, &hog[i], true);
        hog[i].receive_most = 1;
        for (uint32_t n = 0; n < 64; n++)
            CHECK(client_send(&hog[i], NBD_CMD_READ, 0, 0, n % 2 ? 64 * PAGE : PAGE, NULL, sink));
        for (uint32_t n = 0; n < 100; n++)
            clients_pump(&hog[i], 1, 0);
    }
    /* Buffers of either size: an answer in one chunk needs a large one, and one of them is left to each of the first few. */
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, sizeof sink, NULL, sink), 0);
    CHECK(!memcmp(sink, data, sizeof sink));
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, sink), 0);
    for (uint32_t i = 0; i < HOGS; i++)
        hog[i].ended = false;
    uint64_t deadline_ns = now_ns() + WAIT_S_MAX * 1000000000ull;
    while (rig_counter(&b->rig, ISW_DEVICE_connections) > 2) {
        uint8_t byte;
        for (uint32_t i = 0; i < HOGS; i++) {
            ssize_t ignored = read(hog[i].fd, &byte, 1);
            (void)ignored;
        }
        CHECK(now_ns() < deadline_ns);
        pause_us(10000);
    }
    for (uint32_t i = 0; i < HOGS; i++) {
        hog[i].calls_out = 0;
        client_close(&hog[i]);
    }
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 0, sizeof sink, NULL, sink), 0);
    close_bench(b);
}

/* The kernel's largest READ, on the connection that has simple replies only, waits for the disk: what comes behind it is answered, and
 * a whole queue of them leaves another client what it needs. */
TEST_ON_BOTH(large_reads_hold_nobody_up)
{
    enum { LARGE = 1280 << 10, QUEUE = 128 };
    static uint8_t out[LARGE], in[QUEUE][LARGE];
    static struct rig rig;
    static struct client c, other;
    rig_prepare(&rig, SIZE);
    struct fake_disk *disk = fake_disk_open(&rig, 7);
    fake_disk_install(disk);
    rig_start(&rig);
    rig_connect(&rig, &c, false);
    rig_connect(&rig, &other, false);
    for (uint32_t i = 0; i < LARGE; i++)
        out[i] = (uint8_t)(i / PAGE * 5 + i);
    CHECK_EQUAL(client_call(&c, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, LARGE, out, NULL), 0);
    atomic_store(&fake_disk_manners(disk)->hold_reads, true);
    CHECK(client_send(&c, NBD_CMD_READ, 0, 0, LARGE, NULL, in[0]));
    CHECK_EQUAL(client_call(&c, NBD_CMD_READ, 0, SIZE - PAGE, PAGE, NULL, sink), 0);
    CHECK_EQUAL(c.calls_out, 1);
    for (uint32_t i = 1; i < QUEUE; i++)
        CHECK(client_send(&c, NBD_CMD_READ, 0, 0, LARGE, NULL, in[i]));
    WAIT_UNTIL((client_pump(&c), c.tx_start == c.tx_end));
    CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, SIZE - 64 * PAGE, 64 * PAGE, NULL, sink), 0);
    CHECK_EQUAL(client_call(&other, NBD_CMD_WRITE, 0, SIZE - 64 * PAGE, 64 * PAGE, data, NULL), 0);
    CHECK_EQUAL(c.calls_out, QUEUE);
    atomic_store(&fake_disk_manners(disk)->hold_reads, false);
    client_settle(&c);
    for (uint32_t i = 0; i < QUEUE; i++)
        CHECK(!memcmp(in[i], out, LARGE));
    client_close(&c);
    client_close(&other);
    rig_stop(&rig);
    fake_disk_close(disk);
    rig_end(&rig);
}

/* Clients that keep asking a peer for much at once hold the larger part of what is large, each his share: pages that the backup alone has
 * come to their peer all the same. */
TEST_ON_BOTH(large_reads_keep_no_page_on_the_backup)
{
    enum { QUEUE = 40, SLOW_SLAB = 3, BACK = 1, PIECE = 16 * PAGE };
    static uint8_t in[2][QUEUE][PIECE];
    struct disk_bench *b = disk_bench_prepare(16);
    b->rig.config.request_deadline_ms = b->rig.config.peer_timeout_ms = 10 * WAIT_S_MAX * 1000;
    disk_bench_start(b, 1);
    rig_connect(&b->rig, &second, true);
    struct fake_peer *peer = fake_peer_open(SIZE, 9);
    fake_peer_attach(peer, &b->rig, 1);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, SLOW_SLAB, 1, 0), 0);
    for (uint32_t slab = BACK; slab <= SLOW_SLAB; slab += SLOW_SLAB - BACK)
        for (uint32_t page = 0; page < SLAB_PAGES; page += 64)
            CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, (uint64_t)(slab * SLAB_PAGES + page) * PAGE, sizeof data, data, NULL), 0);
    rig_await_backup(&b->rig);
    CHECK_EQUAL(rig_slab(&b->rig, SLOW_SLAB).remote_pages, SLAB_PAGES);
    atomic_store(&fake_peer_manners(peer)->mute, true);
    for (uint32_t i = 0; i < QUEUE; i++) {
        uint64_t at = ((uint64_t)SLOW_SLAB << 20) + i % 16 * PIECE;
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, at, PIECE, NULL, in[0][i]) && client_send(&second, NBD_CMD_READ, 0, at, PIECE, NULL, in[1][i]));
    }
    WAIT_UNTIL((client_pump(&b->client), client_pump(&second), rig_counter(&b->rig, ISW_DEVICE_in_flight) == 2 * QUEUE));
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, BACK, 0, 0), 0);
    WAIT_UNTIL(rig_slab(&b->rig, BACK).remote_pages == SLAB_PAGES);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_in_flight), 2 * QUEUE);
    CHECK_EQUAL(isw_device_peer_detach(b->rig.device, 1), 0);
    client_settle(&b->client);
    client_settle(&second);
    fake_peer_close(peer);
    close_bench(b);
}

/* What goes through millions of pages does so in slices: at some time a read is answered while dozens of such requests are in the works.
 * Several tries, since this thread may be kept from looking for as long as they take.  Nothing is on the backup. */
static void read_beside(uint16_t command)
{
    static struct rig rig;
    static struct client c, other;
    static uint8_t extents[150][4096];
    uint32_t requests = (uint32_t)scaled(150) < 150 ? (uint32_t)scaled(150) : 150;
    int fds[2];
    bool seen = false;
    rig_prepare(&rig, 5ull << 30);
    rig.config.slab_bytes = 1 << 30;
    rig_start(&rig);
    stream_pair(fds, false, false);
    CHECK_EQUAL(isw_device_connection_add(rig.device, fds[1], ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION, NULL, 0), 0);
    client_open(&c, fds[0], true);
    rig_connect(&rig, &other, true);
    for (uint32_t attempt = 0; attempt < 10 && !seen; attempt++) {
        uint64_t before = rig_counter(&rig, ISW_DEVICE_other_requests) + rig_counter(&rig, ISW_DEVICE_trim_requests);
        for (uint32_t i = 0; i < requests; i++)
            CHECK(client_send(&c, command, 0, 0, 0xfffff000u, NULL, extents[i]));
        WAIT_UNTIL((client_pump(&c), rig_counter(&rig, ISW_DEVICE_other_requests) + rig_counter(&rig, ISW_DEVICE_trim_requests) > before));
        CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, 0, PAGE, NULL, sink), 0);
        seen = rig_counter(&rig, ISW_DEVICE_in_flight) > 20;
        client_settle(&c);
    }
    CHECK(seen);
    for (uint32_t i = 0; command == NBD_CMD_BLOCK_STATUS && i < requests; i++)
        CHECK_EQUAL(nbd_get32(extents[i]), 0xfffff000u); /* one extent, over all the slices */
    client_close(&c);
    client_close(&other);
    rig_stop(&rig);
    rig_end(&rig);
}

TEST(read_beside_many_block_status)
{
    read_beside(NBD_CMD_BLOCK_STATUS);
}

TEST(read_beside_many_trims)
{
    read_beside(NBD_CMD_TRIM);
}

/* ---- FLUSH beside trims ---- */

static uint32_t trims;
static bool trimming;

static void write_and_trim(void *owner, struct client *c, struct call *call)
{
    (void)owner;
    if (!trimming)
        return;
    bool written = call->command == NBD_CMD_WRITE;
    trims += written;
    struct call *next = client_send(c, written ? NBD_CMD_TRIM : NBD_CMD_WRITE, 0, call->offset, PAGE, written ? NULL : data, NULL);
    CHECK(next);
    next->done = write_and_trim;
}

/* A FLUSH waits for what was before it, and not for what is written and trimmed in the same slab all the time. */
TEST_ON_BOTH(flush_beside_trims)
{
    struct disk_bench *b = open_bench(30000);
    trimming = true;
    trims = 0;
    atomic_store(&b->manners->delay_us_max, 3000);
    for (uint32_t i = 0; i < 32; i++)
        client_send(&b->client, NBD_CMD_WRITE, 0, i * 7 * PAGE, PAGE, data, NULL)->done = write_and_trim;
    while (trims < 100)
        clients_pump(&b->client, 1, 1);
    for (uint32_t round = 0; round < 5; round++) {
        uint32_t before = trims;
        CHECK(client_send(&second, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
        while (second.calls_out) {
            clients_pump(&b->client, 1, 1);
            clients_pump(&second, 1, 0);
            CHECK(trims - before < 20000); /* some hundreds when all goes well */
        }
    }
    trimming = false;
    client_settle(&b->client);
    close_bench(b);
}

/* A TRIM goes on in slices, and a WRITE of one of its pages that came behind it is not undone: not by its later slices, nor by
 * itself when it had to wait for a page. */
TEST_ON_BOTH(what_is_written_behind_a_trim_stays)
{
    struct disk_bench *b = open_bench(30000);
    enum { LAST = SIZE / PAGE - 1 };
    memset(data, 0x5a, sizeof data);
    for (uint32_t round = 0; round < 50; round++) {
        uint64_t page = round % 2 ? LAST : round * 7;
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
        CHECK(client_send(&b->client, NBD_CMD_TRIM, 0, 0, SIZE, NULL, NULL));
        data[0] = (uint8_t)round;
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
        client_settle(&b->client);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, sink), 0);
        CHECK(!memcmp(sink, data, PAGE));
    }
    close_bench(b);
}

/* A trim costs the same in a large slab as in a small one: what is gone through is where something was trimmed.  And what is busy, or
 * is trimmed behind the pass, is zeroed all the same. */
TEST_ON_BOTH(trims_are_found_wherever_they_are)
{
    struct disk_bench *b = open_bench(30000);
    memset(data, 0x5a, sizeof data);
    struct chance chance = chance_start(3);
    atomic_store(&b->manners->delay_us_max, 500);
    for (uint32_t i = 0; i < 2000; i++) {
        uint64_t page = chance_below(&chance, SIZE / PAGE), pages = 1 + chance_below(&chance, 8);
        uint16_t command = chance_in(&chance, 2) ? NBD_CMD_TRIM : NBD_CMD_WRITE;
        if (page + pages > SIZE / PAGE)
            continue;
        while (!client_send(&b->client, command, 0, page * PAGE, (uint32_t)pages * PAGE, command == NBD_CMD_WRITE ? data : NULL, NULL))
            clients_pump(&b->client, 1, 10);
        if (i % 16 == 0)
            clients_pump(&b->client, 1, 0);
    }
    client_settle(&b->client);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE_ZEROES, 0, 0, SIZE, NULL, NULL), 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    fake_disk_durable(b->disk, b->image);
    for (uint32_t i = 0; i < SIZE; i++)
        CHECK(!b->image[i]);
    close_bench(b);
}
