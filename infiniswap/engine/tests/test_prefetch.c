/* Proves that pages read ahead of their time are those that are asked for, that none is ever older than the page, and that
 * guessing stays within its bounds, costs nobody anything when it fails, and ends when it guesses wrong. */
#include "prefetch_bench.h"

#include "prefetch.h"

#include <errno.h>

enum { SIZE = 16 << 20, SLABS = 16, PAGE = ISW_PAGE_BYTES, PAGES = SIZE / PAGE, LATE_US = 1000 };

static struct bench bench;

static struct bench *prepare(void)
{
    struct bench *b = &bench;
    bench_prepare(b, SIZE);
    return b;
}

static void fill(struct bench *b)
{
    static uint8_t data[256 * PAGE];
    for (uint64_t page = 0; page < PAGES; page += 256) {
        for (uint64_t i = 0; i < 256; i++)
            memset(data + i * PAGE, bench_content(b, page + i), PAGE);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, sizeof data, data, NULL), 0);
    }
    rig_await_backup(&b->rig);
}

/* With all slabs at one peer that answers late. */
static struct bench *open_bench(struct bench *b)
{
    bench_connect(b, SLABS);
    fill(b);
    atomic_store(&b->manners->late_us, LATE_US);
    atomic_store(&b->manners->late_one_in, 1);
    return b;
}

/* Of all guesses it is known what became of them, or they are still there. */
static uint64_t held(struct bench *b)
{
    uint64_t ended = bench_count(b, ISW_DEVICE_prefetch_hits) + bench_count(b, ISW_DEVICE_prefetch_wasted) + bench_count(b, ISW_DEVICE_prefetch_dropped);
    uint64_t guesses = bench_count(b, ISW_DEVICE_prefetch_guesses);
    CHECK(guesses >= ended && guesses - ended <= PREFETCH_PAGES);
    return guesses - ended;
}

static void close_bench(struct bench *b)
{
    CHECK(!bench_count(b, ISW_DEVICE_request_errors) && !bench_count(b, ISW_DEVICE_checksum_mismatches));
    held(b);
    client_close(&b->client);
    rig_stop(&b->rig);
    if (b->peer)
        fake_peer_close(b->peer);
    rig_end(&b->rig);
}

static void read_along(struct bench *b, uint64_t first, int64_t step, uint32_t reads)
{
    for (uint32_t i = 0; i < reads; i++)
        bench_read_page(b, first + (uint64_t)(step * i));
}

static void expect_hits(struct bench *b, uint64_t least, uint64_t of)
{
    uint64_t hits = bench_count(b, ISW_DEVICE_prefetch_hits);
    if (hits < least)
        FAIL("%llu of %llu reads were here", (unsigned long long)hits, (unsigned long long)of);
}

TEST(a_sequence_is_here)
{
    struct bench *b = open_bench(prepare());
    read_along(b, 100, 1, 600);
    expect_hits(b, 560, 600);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_reads_remote_pages), 600); /* where they came from is told as ever */
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_wasted), 0);
    close_bench(b);
}

TEST(steps_are_here)
{
    struct bench *b = open_bench(prepare());
    read_along(b, 0, 7, 300);
    read_along(b, 4000, -11, 300);
    expect_hits(b, 560, 600);
    close_bench(b);
}

TEST(sealed_pages_are_here)
{
    struct bench *b = prepare();
    rig_seal(&b->rig);
    open_bench(b);
    read_along(b, 100, 1, 300);
    expect_hits(b, 270, 300);
    close_bench(b);
}

TEST(chance_is_left_alone)
{
    struct bench *b = open_bench(prepare());
    struct chance chance = chance_start(1);
    for (uint32_t i = 0; i < 500; i++)
        bench_read_page(b, chance_below(&chance, PAGES));
    CHECK(bench_count(b, ISW_DEVICE_prefetch_guesses) < 25);
    close_bench(b);
}

TEST(a_short_way_is_left_alone)
{
    struct bench *b = prepare();
    b->rig.config.prefetch_floor_us = 60 * 1000000;
    open_bench(b);
    read_along(b, 100, 1, 200);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_guesses), 0);
    close_bench(b);
}

/* From the backup in sequence alone. */
TEST_ON_BOTH(a_sequence_of_the_backup_is_here)
{
    struct bench *b = prepare();
    b->rig.config.prefetch_floor_us = 60 * 1000000;
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    fill(b);
    read_along(b, 0, 7, 200);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_guesses), 0);
    read_along(b, 2000, 1, 600);
    expect_hits(b, 560, 600);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_reads_backup_pages), 800);
    close_bench(b);
}

/* Until guesses are out whose pages have not been read; the next page is returned. */
static uint64_t lead(struct bench *b, uint64_t first)
{
    read_along(b, first, 1, 200);
    WAIT_UNTIL(held(b) > 0);
    return first + 200;
}

static void expect_dropped(struct bench *b, uint64_t page)
{
    uint64_t hits = bench_count(b, ISW_DEVICE_prefetch_hits);
    bench_read_page(b, page);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_hits), hits);
}

TEST(what_is_written_meanwhile_is_read_anew)
{
    struct bench *b = open_bench(prepare());
    for (uint32_t round = 0; round < 8; round++) {
        uint64_t next = lead(b, 300 * round);
        bench_write_page(b, next);
        rig_await_backup(&b->rig); /* until then its pending buffer is read */
        expect_dropped(b, next);
        bench_read_page(b, next + 1);
    }
    WAIT_UNTIL(bench_count(b, ISW_DEVICE_prefetch_dropped) > 0 || held(b) > 0);
    close_bench(b);
}

TEST(what_is_zeroed_meanwhile_is_zero)
{
    struct bench *b = open_bench(prepare());
    static const uint16_t commands[] = {NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};
    for (uint32_t round = 0; round < 2; round++) {
        uint64_t next = lead(b, 300 * round);
        CHECK_EQUAL(client_call(&b->client, commands[round], 0, next * PAGE, PAGE, NULL, NULL), 0);
        b->version[next] = (uint8_t)(0 - next * 13);
        CHECK_EQUAL(bench_content(b, next), 0);
        expect_dropped(b, next);
    }
    close_bench(b);
}

/* Written, and gone to a peer or the backup, while the guess of the old version is on its way. */
TEST(what_is_written_on_its_way_is_read_anew)
{
    struct bench *b = open_bench(prepare());
    for (uint32_t round = 0; round < 6; round++) {
        uint64_t next = lead(b, 300 * round);
        atomic_store(&b->manners->late_us, 100 * LATE_US);
        for (uint32_t i = 0; i < 40; i++) /* guesses of the last of them are out now */
            bench_read_page(b, next + i);
        atomic_store(&b->manners->late_one_in, 0);
        for (uint32_t i = 40; i < 60; i++)
            bench_write_page(b, next + i);
        rig_await_backup(&b->rig);
        atomic_store(&b->manners->late_us, LATE_US);
        atomic_store(&b->manners->late_one_in, 1);
        read_along(b, next + 40, 1, 20);
    }
    CHECK_MET(bench_count(b, ISW_DEVICE_prefetch_dropped) > 0);
    close_bench(b);
}

/* Who wants a page that is on its way waits for it, and does not ask for it again. */
TEST(a_page_is_asked_for_once)
{
    struct bench *b = open_bench(prepare());
    atomic_store(&b->manners->late_us, 5 * LATE_US);
    read_along(b, 100, 1, 300);
    CHECK(bench_count(b, ISW_DEVICE_prefetch_waits) > 0);
    uint32_t peers;
    const struct isw_peer_view *view = isw_device_peers(b->rig.device, &peers);
    uint64_t bytes = __atomic_load_n(&view->bytes_in, __ATOMIC_RELAXED);
    CHECK(bytes / PAGE <= 300 + PREFETCH_PAGES + PAGES / 32); /* answers to writes have their bytes, too */
    close_bench(b);
}

/* One peer, then several, that answer nothing any more: those on their way have a limit for each, and one for all. */
TEST(those_on_their_way_are_few)
{
    enum { PEERS = 4, STREAMS = 8, READS = 150, MOST = 400 };
    struct bench *b = prepare();
    struct fake_peer *peer[PEERS];
    rig_start(&b->rig);
    for (uint32_t i = 0; i < PEERS; i++) {
        peer[i] = fake_peer_open(SIZE, 5 + i);
        fake_peer_attach(peer[i], &b->rig, i);
    }
    for (uint32_t slab = 0; slab < SLABS; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, slab / 4, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    fill(b);
    for (uint32_t i = 0; i < PEERS; i++) {
        atomic_store(&fake_peer_manners(peer[i])->late_us, LATE_US);
        atomic_store(&fake_peer_manners(peer[i])->late_one_in, 1);
    }
    uint32_t reads = 0;
    for (; reads < READS || (held(b) < STREAMS * 8 && reads < MOST); reads++) /* two streams a peer */
        for (uint64_t s = 0; s < STREAMS; s++)
            bench_read_page(b, s * 512 + reads);
    bool led = held(b) >= STREAMS * 8; /* else this machine stands still too often for it */
    for (uint32_t i = 0; i < PEERS; i++)
        atomic_store(&fake_peer_manners(peer[i])->mute, true);
    for (uint32_t peers = 1; peers <= PEERS; peers++) {
        /* All that is here is read: then the last of them asks for as many again. */
        static uint8_t in[STREAMS][64][PAGE];
        uint64_t s = (peers - 1) * 2;
        for (uint32_t i = 0; i < 64; i++)
            for (uint64_t k = s; k < s + 2; k++)
                CHECK(client_send(&b->client, NBD_CMD_READ, 0, (k * 512 + reads + i) * PAGE, PAGE, NULL, in[k][i]));
        WAIT_UNTIL((client_pump(&b->client), bench_count(b, ISW_DEVICE_read_requests) >= STREAMS * reads + peers * 128));
        uint64_t flying = held(b);
        CHECK(flying <= peers * PREFETCH_PEER_FLYING + (PEERS - peers) * 2 * TREND_WINDOW_MAX);
        if (peers == PEERS)
            CHECK(flying <= PREFETCH_FLYING);
    }
    CHECK(!led || held(b) > PREFETCH_PEER_FLYING);
    for (uint32_t i = 0; i < PEERS; i++)
        atomic_store(&fake_peer_manners(peer[i])->mute, false);
    client_settle(&b->client);
    close_bench(b);
    for (uint32_t i = 0; i < PEERS; i++)
        fake_peer_close(peer[i]);
}

/* As many streams as there are pages for, at once. */
TEST(many_streams_at_once)
{
    enum { STREAMS = 7, READS = 300 };
    struct bench *b = open_bench(prepare());
    for (uint32_t i = 0; i < READS; i++)
        for (uint64_t s = 0; s < STREAMS; s++)
            bench_read_page(b, s * 585 + i);
    expect_hits(b, STREAMS * (READS - 20), STREAMS * READS);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_wasted), 0); /* none made room for another */
    close_bench(b);
}

/* A peer that is lost takes guesses with it, and nobody hears of it. */
TEST(a_guess_that_fails_is_silent)
{
    struct bench *b = open_bench(prepare());
    uint64_t next = lead(b, 0);
    atomic_store(&b->manners->mute, true);
    uint8_t in[40][PAGE];
    for (uint64_t i = 0; i < 40; i++)
        CHECK(client_send(&b->client, NBD_CMD_READ, 0, (next + i) * PAGE, PAGE, NULL, in[i]));
    WAIT_UNTIL((client_pump(&b->client), bench_count(b, ISW_DEVICE_read_requests) >= 240));
    fake_peer_hang_up(b->peer);
    client_settle(&b->client);
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQUAL(in[i][7], bench_content(b, next + i));
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_peers_lost), 1);
    read_along(b, next + 40, 1, 100);
    close_bench(b);
}

/* The peer answers nothing, and the backup has it: who waits for a guess is served in time. */
TEST(a_guess_is_not_waited_for_for_ever)
{
    struct bench *b = prepare();
    b->rig.config.request_deadline_ms = 300;
    open_bench(b);
    uint64_t next = lead(b, 0);
    atomic_store(&b->manners->mute, true);
    read_along(b, next, 1, 60); /* each fails after 120 s */
    CHECK(bench_count(b, ISW_DEVICE_reads_backup_pages) > 0);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_peers_lost), 0);
    atomic_store(&b->manners->mute, false);
    close_bench(b);
}

/* Without a peer, over a disk that fails when it is told to. */
static struct fake_disk *open_on_disk(struct bench *b)
{
    struct fake_disk *disk = fake_disk_open(&b->rig, 3);
    fake_disk_install(disk);
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    fill(b);
    return disk;
}

static void close_on_disk(struct bench *b, struct fake_disk *disk)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    fake_disk_close(disk);
    rig_end(&b->rig);
}

/* A page that the backup cannot read fails whoever asks for it, and nobody before. */
TEST_ON_BOTH(a_bad_sector_is_told_to_its_reader)
{
    struct bench *b = prepare();
    struct fake_disk *disk = open_on_disk(b);
    read_along(b, 0, 1, 300);
    expect_hits(b, 260, 300);
    atomic_store(&fake_disk_manners(disk)->read_error_one_in, 1);
    uint8_t data[PAGE];
    uint32_t failed = 0;
    for (uint64_t page = 300; page < 400; page++)
        failed += client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, data) != 0;
    atomic_store(&fake_disk_manners(disk)->read_error_one_in, 0);
    CHECK(failed >= 100 - TREND_WINDOW_MAX);
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_backup_errors), failed); /* of guesses nobody heard */
    CHECK_EQUAL(bench_count(b, ISW_DEVICE_request_errors), failed);
    read_along(b, 300, 1, 100);
    close_on_disk(b, disk);
}

/* After it the backup may have had an older version: what it gave before is asked for again. */
TEST_ON_BOTH(a_failed_sync_drops_what_the_backup_gave)
{
    struct bench *b = prepare();
    struct fake_disk *disk = open_on_disk(b);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    uint64_t next = lead(b, 0);
    bench_write_page(b, 4000);
    atomic_store(&fake_disk_manners(disk)->fail_syncs, 1);
    CHECK(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL) != 0);
    expect_dropped(b, next);
    bench_write_page(b, 4000);
    WAIT_UNTIL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL) == 0);
    close_on_disk(b, disk);
}

/* Streams that end as soon as they are believed: guessing pauses, longer each time. */
TEST(wrong_guesses_make_it_pause)
{
    struct bench *b = open_bench(prepare());
    uint64_t began = now_ns(), page = 0;
    while (!bench_count(b, ISW_DEVICE_prefetch_pauses)) {
        read_along(b, page, 1, 9);
        page = (page + 61) % (PAGES - 600);
        CHECK(now_ns() - began < WAIT_S_MAX * 1000000000ull);
    }
    CHECK(bench_count(b, ISW_DEVICE_prefetch_hits) < PREFETCH_JUDGED / 2);
    uint64_t guesses = bench_count(b, ISW_DEVICE_prefetch_guesses), paused = now_ns();
    for (uint32_t i = 0; i < 10; i++)
        read_along(b, (page + 61 * i) % (PAGES - 600), 1, 9);
    if (now_ns() - paused < PREFETCH_PAUSE_MIN_MS / 2 * 1000000ull)
        CHECK_EQUAL(bench_count(b, ISW_DEVICE_prefetch_guesses), guesses);
    WAIT_UNTIL((read_along(b, 3000, 1, 100), bench_count(b, ISW_DEVICE_prefetch_guesses) > guesses)); /* and is tried again */
    close_bench(b);
}

/* What nobody reads is given up by and by. */
TEST(what_nobody_reads_goes)
{
    struct bench *b = open_bench(prepare());
    lead(b, 0);
    WAIT_UNTIL(!held(b));
    CHECK(bench_count(b, ISW_DEVICE_prefetch_wasted) > 0);
    close_bench(b);
}
