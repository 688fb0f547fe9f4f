/* Proves that no peer, whatever it does, costs a client more than time: late, wrong, missing, doubled, torn and refused
 * answers are noticed, counted, and answered from the pending buffers or the backup (invariants 7 and 8). */
#include "fake_peer.h"
#include "load.h"

#include <errno.h>

enum { SIZE = (2 << 20) + (300 << 10), SLABS = 3, PAGE = ISW_PAGE_BYTES, PEERS = 3 };

struct bench {
    struct rig rig;
    struct fake_peer *peer;
    struct peer_manners *manners;
    struct client client;
};

static struct bench *open_bench(uint32_t peer_timeout_ms)
{
    static struct bench bench;
    struct bench *b = &bench;
    rig_prepare(&b->rig, SIZE);
    b->rig.config.peer_timeout_ms = peer_timeout_ms;
    rig_start(&b->rig);
    b->peer = fake_peer_open(SIZE, 5);
    b->manners = fake_peer_manners(b->peer);
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
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
    static uint8_t data[256 * PAGE];
    memset(data, value, pages * PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, pages * PAGE, data, NULL), 0);
}

static void expect_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t value)
{
    static uint8_t data[256 * PAGE];
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, pages * PAGE, NULL, data), 0);
    for (uint32_t i = 0; i < pages * PAGE; i++)
        if (data[i] != value)
            FAIL("page %llu: %02x, not %02x", (unsigned long long)(page + i / PAGE), data[i], value);
}

TEST(good_peer_serves)
{
    struct bench *b = open_bench(30000);
    write_pages(b, 0, 64, 1);
    rig_await_backup(&b->rig);
    expect_pages(b, 0, 64, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_remote_pages), 64);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_write_remote_pages), 64);
    CHECK_EQUAL(fake_peer_byte(b->peer, 64 * PAGE - 1), 1);
    close_bench(b);
}

/* News of a peer say which of its attachments they mean, so that those of the last one are not taken for news of this one. */
TEST(news_say_which_attachment)
{
    static struct donor donor;
    static struct rig rig;
    rig_prepare(&rig, 4 << 20);
    rig_start(&rig);
    donor_open(&donor, 4 << 20, 1 << 20);
    for (uint32_t attachment = 1; attachment <= 3; attachment++) {
        donor_attach(&donor, &rig, 0);
        CHECK_EQUAL(isw_device_slab_map(rig.device, 0, 0, 0), 0);
        CHECK_EQUAL(isw_device_slab_unmap(rig.device, 0), 0);
        CHECK_EQUAL(rig_await(&rig, ISW_EVENT_SLAB_RELEASED).attachment, attachment);
        donor_kill(&donor);
        CHECK_EQUAL(rig_await(&rig, ISW_EVENT_PEER_LOST).attachment, attachment);
    }
    rig_stop(&rig);
    donor_close(&donor);
    rig_end(&rig);
}

/* What a slab's next place goes on record on: no flag speaks of the last one, however many pages are still to be forgotten. */
TEST_ON_BOTH(forgotten_before_the_next_place)
{
    static struct donor donor;
    struct bench *b = open_bench(30000);
    CHECK_EQUAL(isw_device_slab_forget(b->rig.device, 0), -EBUSY);
    CHECK_EQUAL(isw_device_slab_forget(b->rig.device, SLABS), -EINVAL);
    rig_unmap(&b->rig, 0);
    donor_open(&donor, SIZE, 1 << 20);
    donor_attach(&donor, &b->rig, 1);
    for (uint32_t round = 0; round < 40; round++) {
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 1, 0), 0);
        write_pages(b, 0, 256, (uint8_t)round);
        rig_unmap(&b->rig, 0);
        CHECK_EQUAL(isw_device_slab_forget(b->rig.device, 0), 0);
        for (uint32_t page = 0; page < 256; page++)
            CHECK_EQUAL(__atomic_load_n(&b->rig.page[page].meta, __ATOMIC_RELAXED) & ISW_PAGE_REMOTE, 0);
    }
    close_bench(b);
    donor_close(&donor);
}

TEST_ON_BOTH(wrong_data_is_answered_from_the_backup)
{
    struct bench *b = open_bench(30000);
    write_pages(b, 0, 8, 2);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->corrupt_read_one_in, 1);
    expect_pages(b, 0, 8, 2);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_MISMATCH);
    CHECK(event.peer == 0 && event.slab == 0 && event.value < 8);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches), 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_reads_backup_pages), 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    close_bench(b);
}

/* While the only good copy is a pending buffer. */
TEST_ON_BOTH(wrong_data_never_reaches_a_client)
{
    struct bench *b = open_bench(30000);
    atomic_store(&b->manners->corrupt_write_one_in, 1);
    for (uint32_t page = 0; page < 32; page++)
        write_pages(b, page, 1, (uint8_t)(page + 1));
    for (uint32_t page = 0; page < 32; page++)
        expect_pages(b, page, 1, (uint8_t)(page + 1));
    rig_await_backup(&b->rig);
    for (uint32_t page = 0; page < 32; page++)
        expect_pages(b, page, 1, (uint8_t)(page + 1));
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    CHECK(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches) > 0);
    close_bench(b);
}

/* The daemon says that it has not got the slab (any more): the slab is lost, the peer is not. */
TEST_ON_BOTH(refusal_loses_the_slab_only)
{
    struct bench *b = open_bench(30000);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), 0);
    write_pages(b, 0, 4, 3);
    write_pages(b, 256, 4, 4);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->error, NBD_ESHUTDOWN);
    atomic_store(&b->manners->error_one_in, 1);
    write_pages(b, 1, 2, 5); /* fails over to the backup */
    atomic_store(&b->manners->error_one_in, 0);
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_SLAB_LOST);
    CHECK(event.slab == 0 && event.peer == 0 && event.value == NBD_ESHUTDOWN);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_UNMAPPED);
    CHECK_EQUAL(rig_slab(&b->rig, 1).state, ISW_SLAB_MAPPED);
    expect_pages(b, 0, 1, 3);
    expect_pages(b, 1, 2, 5);
    expect_pages(b, 256, 4, 4);
    atomic_store(&b->manners->error_one_in, 1);
    expect_pages(b, 256, 4, 4); /* a refused read likewise */
    atomic_store(&b->manners->error_one_in, 0);
    CHECK_EQUAL(rig_await(&b->rig, ISW_EVENT_SLAB_LOST).slab, 1);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_peers_lost), 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), 0); /* and it can be mapped there again */
    write_pages(b, 256, 4, 6);
    expect_pages(b, 256, 4, 6);
    close_bench(b);
}

static void expect_loss(struct bench *b, int error)
{
    struct isw_event event = rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    CHECK_EQUAL(event.peer, 0);
    if (error)
        CHECK_EQUAL(event.value, error);
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_UNMAPPED);
}

/* Reads and a write that the manners spoil are answered rightly all the same, and the peer is lost. */
static void spoil(struct bench *b, atomic_uint *one_in, int error)
{
    write_pages(b, 0, 16, 7);
    rig_await_backup(&b->rig);
    atomic_store(one_in, 1);
    expect_pages(b, 0, 16, 7);
    expect_loss(b, error);
    atomic_store(one_in, 0);
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    write_pages(b, 0, 16, 8);
    atomic_store(one_in, 1);
    write_pages(b, 4, 8, 9);
    expect_loss(b, error);
    atomic_store(one_in, 0);
    expect_pages(b, 0, 4, 8);
    expect_pages(b, 4, 8, 9);
    expect_pages(b, 12, 4, 8);
}

TEST_ON_BOTH(garbage_loses_the_peer)
{
    struct bench *b = open_bench(30000);
    spoil(b, &b->manners->garbage_one_in, EPROTO);
    close_bench(b);
}

TEST_ON_BOTH(foreign_cookie_loses_the_peer)
{
    struct bench *b = open_bench(30000);
    spoil(b, &b->manners->cookie_one_in, EPROTO);
    close_bench(b);
}

TEST_ON_BOTH(end_in_the_middle_of_an_answer)
{
    struct bench *b = open_bench(30000);
    spoil(b, &b->manners->close_one_in, 0);
    close_bench(b);
}

TEST_ON_BOTH(second_answer_loses_the_peer)
{
    struct bench *b = open_bench(30000);
    atomic_store(&b->manners->duplicate_one_in, 1);
    write_pages(b, 0, 1, 1);
    expect_loss(b, EPROTO);
    expect_pages(b, 0, 1, 1);
    close_bench(b);
}

TEST_ON_BOTH(silence_loses_the_peer)
{
    struct bench *b = open_bench(300);
    write_pages(b, 0, 16, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->mute, true);
    uint64_t before = now_ns();
    expect_pages(b, 0, 16, 1);
    CHECK(now_ns() - before >= 300000000);
    expect_loss(b, ETIMEDOUT);
    fake_peer_hang_up(b->peer);
    atomic_store(&b->manners->mute, false);
    fake_peer_attach(b->peer, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 0), 0);
    atomic_store(&b->manners->deaf, true); /* with more to send than a socket holds */
    for (uint32_t i = 0; i < 4; i++)
        write_pages(b, 16 + i * 48, 48, (uint8_t)(i + 2));
    expect_loss(b, ETIMEDOUT);
    for (uint32_t i = 0; i < 4; i++)
        expect_pages(b, 16 + i * 48, 48, (uint8_t)(i + 2));
    atomic_store(&b->manners->deaf, false); /* the late writes reach memory that nobody reads */
    expect_pages(b, 16, 48, 2);
    close_bench(b);
}

/* It answers all but one request: that one counts. */
TEST_ON_BOTH(one_answer_missing_loses_the_peer)
{
    struct bench *b = open_bench(300);
    static uint8_t in[PAGE];
    struct client other;
    rig_connect(&b->rig, &other, false);
    write_pages(b, 0, 16, 1);
    rig_await_backup(&b->rig);
    atomic_store(&b->manners->swallow_one_in, 1);
    CHECK(client_send(&b->client, NBD_CMD_READ, 0, 0, PAGE, NULL, in));
    uint64_t requests = fake_peer_requests(b->peer), until = now_ns() + 10 * 1000000000ull;
    WAIT_UNTIL((clients_pump(&b->client, 1, 1), fake_peer_requests(b->peer) > requests));
    atomic_store(&b->manners->swallow_one_in, 0);
    while (b->client.calls_out && now_ns() < until) {
        uint8_t page[PAGE];
        CHECK_EQUAL(client_call(&other, NBD_CMD_READ, 0, 8 * PAGE, PAGE, NULL, page), 0);
        clients_pump(&b->client, 1, 1);
    }
    CHECK_EQUAL(b->client.calls_out, 0);
    CHECK(in[0] == 1 && in[PAGE - 1] == 1);
    expect_loss(b, ETIMEDOUT);
    client_close(&other);
    close_bench(b);
}

/* ---- everything at once, against the model ---- */

struct world {
    struct rig rig;
    struct load load;
    struct fake_peer *peer[PEERS];
    bool attached[PEERS];
    struct chance chance;
    uint64_t lost, refused, mismatches;
};

static void take_news(struct world *w)
{
    struct isw_event events[64];
    int count = isw_device_events(w->rig.device, events, 64);
    for (int i = 0; i < count; i++) {
        if (events[i].kind == ISW_EVENT_PEER_LOST)
            w->attached[events[i].peer] = false;
        w->lost += events[i].kind == ISW_EVENT_PEER_LOST;
        w->refused += events[i].kind == ISW_EVENT_SLAB_LOST;
        w->mismatches += events[i].kind == ISW_EVENT_MISMATCH;
    }
}

static uint32_t rarely(struct chance *c, uint32_t one_in)
{
    return chance_in(c, 5) ? one_in : 0;
}

static void change_manners(struct world *w)
{
    struct chance *c = &w->chance;
    struct peer_manners *m = fake_peer_manners(w->peer[chance_below(c, PEERS)]);
    static const uint32_t errors[] = {NBD_ESHUTDOWN, NBD_EIO, NBD_EINVAL, 0xffffffff, 1u << 31};
    atomic_store(&m->delay_us_max, chance_in(c, 2) ? (uint32_t)chance_below(c, 5000) : 0);
    atomic_store(&m->late_us, (uint32_t)chance_below(c, 120000));
    atomic_store(&m->late_one_in, rarely(c, 20));
    atomic_store(&m->error, errors[chance_below(c, 5)]);
    atomic_store(&m->error_one_in, rarely(c, 20));
    atomic_store(&m->corrupt_read_one_in, rarely(c, 5));
    atomic_store(&m->corrupt_write_one_in, rarely(c, 5));
    atomic_store(&m->swallow_one_in, rarely(c, 100));
    atomic_store(&m->garbage_one_in, rarely(c, 100));
    atomic_store(&m->duplicate_one_in, rarely(c, 100));
    atomic_store(&m->cookie_one_in, rarely(c, 100));
    atomic_store(&m->close_one_in, rarely(c, 100));
    atomic_store(&m->early_one_in, rarely(c, 100));
    atomic_store(&m->mute, chance_in(c, 20));
    atomic_store(&m->deaf, chance_in(c, 20));
}

static void change_mapping(struct world *w)
{
    uint32_t slab = (uint32_t)chance_below(&w->chance, SLABS), peer = (uint32_t)chance_below(&w->chance, PEERS);
    take_news(w);
    if (!w->attached[peer]) {
        fake_peer_hang_up(w->peer[peer]);
        fake_peer_attach(w->peer[peer], &w->rig, peer);
        w->attached[peer] = true;
    }
    if (chance_in(&w->chance, 5))
        isw_device_slab_unmap(w->rig.device, slab);
    else
        isw_device_slab_map(w->rig.device, slab, peer, 0);
}

TEST_ON_BOTH(bad_peers_against_the_model)
{
    static struct world world;
    static uint8_t image[SIZE];
    struct world *w = &world;
    w->chance = chance_start(200);
    rig_prepare(&w->rig, SIZE);
    rig_crowd(&w->rig);
    w->rig.config.peer_timeout_ms = 150;
    w->rig.config.request_deadline_ms = 50;
    w->rig.config.hedge_floor_us = 1000;
    w->rig.config.pending_limit_bytes = 2 << 20;
    rig_start(&w->rig);
    for (uint32_t i = 0; i < PEERS; i++)
        w->peer[i] = fake_peer_open(SIZE, 201 + i);
    load_open(&w->load, &w->rig, NULL, 210);
    for (uint64_t step = 0; step < scaled(900); step++) {
        load_step(&w->load);
        if (chance_in(&w->chance, 3))
            change_mapping(w);
        if (chance_in(&w->chance, 10))
            change_manners(w);
        take_news(w);
    }
    load_settle(&w->load);
    load_read_all(&w->load);
    load_disconnect(&w->load);
    take_news(w);
    CHECK_EQUAL(rig_counter(&w->rig, ISW_DEVICE_lost_pages), 0);
    CHECK_MET(w->lost > 3 && w->refused && w->mismatches);
    rig_stop(&w->rig);
    rig_image(&w->rig, image);
    model_check(&w->load.model, image, "the image after a stop");
    load_close(&w->load);
    for (uint32_t i = 0; i < PEERS; i++)
        fake_peer_close(w->peer[i]);
    rig_end(&w->rig);
}
