/* Proves that pages whose pending copies died with a process count like pending ones in the next: for FLUSH, for a stop, for a
 * slab that is given up (invariants 11 and 12), whatever else goes on, and that what is lost is said (invariant 13). */
#include "disk_bench.h"

#include <errno.h>
#include <unistd.h>

enum { SIZE = DISK_BENCH_SIZE, PAGE = ISW_PAGE_BYTES, PAGES = 200, SLAB_PAGES = 256 };

static uint8_t value_of(uint64_t page)
{
    return (uint8_t)(page % 250 + 1);
}

static void write_page(struct disk_bench *b, uint64_t page, uint8_t value)
{
    uint8_t data[PAGE];
    memset(data, value, PAGE);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
}

static uint32_t flush(struct disk_bench *b)
{
    return client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL);
}

static uint32_t not_durable(struct disk_bench *b)
{
    uint32_t wrong = 0;
    fake_disk_durable(b->disk, b->image);
    for (uint64_t page = 0; page < PAGES; page++)
        wrong += b->image[page * PAGE] != value_of(page);
    return wrong;
}

/* A device whose predecessor was killed: PAGES acknowledged pages are in the donor's memory alone.  Nothing is mapped yet. */
static struct disk_bench *after_a_kill_with(uint64_t pending_limit_bytes)
{
    struct disk_bench *b = disk_bench_prepare(8);
    disk_bench_start(b, 1);
    atomic_store(&b->manners->write_error_one_in, 1);
    for (uint64_t page = 0; page < PAGES; page++)
        write_page(b, page, value_of(page));
    CHECK_EQUAL(isw_device_stop(b->rig.device, 1), -ETIMEDOUT);
    rig_kill(&b->rig);
    client_close(&b->client);
    atomic_store(&b->manners->write_error_one_in, 0);
    for (uint64_t page = 0; page < SIZE / PAGE; page++)
        b->rig.page[page].meta &= ISW_PAGE_PERSISTENT;
    fake_disk_install(b->disk);
    b->rig.config.recovering = 1;
    b->rig.config.pending_limit_bytes = pending_limit_bytes;
    rig_start(&b->rig);
    rig_connect(&b->rig, &b->client, true);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages), PAGES);
    return b;
}

static struct disk_bench *after_a_kill(void)
{
    return after_a_kill_with(4 << 20);
}

static void adopt(struct disk_bench *b)
{
    donor_attach(&b->donor, &b->rig, 0);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 0, 0, 1), 0);
    CHECK_EQUAL(isw_device_adoption_end(b->rig.device), 0);
}

TEST_ON_BOTH(stop_brings_them_to_the_backup)
{
    struct disk_bench *b = after_a_kill();
    atomic_store(&b->manners->hold_writes, true);
    adopt(b);
    CHECK_EQUAL(isw_device_stop(b->rig.device, 50), -ETIMEDOUT);
    atomic_store(&b->manners->hold_writes, false);
    rig_stop(&b->rig);
    CHECK_EQUAL(not_durable(b), 0);
    client_close(&b->client);
    donor_close(&b->donor);
    fake_disk_close(b->disk);
    rig_end(&b->rig);
}

TEST_ON_BOTH(flush_waits_for_them)
{
    struct disk_bench *b = after_a_kill();
    atomic_store(&b->manners->delay_us_max, 3000);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL)); /* before anything is adopted, too */
    client_pump(&b->client);
    adopt(b);
    client_settle(&b->client);
    CHECK_EQUAL(not_durable(b), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages), 0);
    disk_bench_close(b);
}

/* What is written over before it was resynced belongs to the same FLUSH: its old version will never be on the backup. */
TEST_ON_BOTH(flush_waits_for_what_was_written_over_them)
{
    struct disk_bench *b = after_a_kill();
    adopt(b);
    atomic_store(&b->manners->hold_writes, true);
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    client_pump(&b->client);
    static uint8_t fresh[PAGES * PAGE];
    memset(fresh, 0xff, sizeof fresh);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 0, PAGES * PAGE, fresh, NULL));
    WAIT_UNTIL((client_pump(&b->client), b->client.calls_out == 1)); /* the write is acknowledged, the FLUSH waits */
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    fake_disk_durable(b->disk, b->image);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK(b->image[page * PAGE] == 0xff || b->image[page * PAGE] == value_of(page));
    disk_bench_close(b);
}

TEST_ON_BOTH(trimmed_ones_are_zero_after_a_flush)
{
    struct disk_bench *b = after_a_kill();
    adopt(b);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE_ZEROES, 0, 0, PAGES * PAGE, NULL, NULL), 0);
    CHECK_EQUAL(flush(b), 0);
    fake_disk_durable(b->disk, b->image);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQUAL(b->image[page * PAGE], 0);
    disk_bench_close(b);
}

TEST_ON_BOTH(load_does_not_starve_them)
{
    struct disk_bench *b = after_a_kill();
    static uint8_t data[PAGE];
    struct chance chance = chance_start(3);
    atomic_store(&b->manners->delay_us_max, 2000);
    adopt(b);
    uint64_t deadline = now_ns() + WAIT_S_MAX * 1000000000ull;
    while (rig_counter(&b->rig, ISW_DEVICE_only_remote_pages)) { /* never less than 300 writes out, of 1,024 buffers */
        CHECK(now_ns() < deadline);
        while (b->client.calls_out < 300) {
            uint64_t page = SLAB_PAGES + chance_below(&chance, SIZE / PAGE - SLAB_PAGES);
            CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL));
        }
        clients_pump(&b->client, 1, 1);
    }
    client_settle(&b->client);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    disk_bench_close(b);
}

/* Nor do they take all buffers from the load, though the disk stands still. */
TEST_ON_BOTH(they_do_not_starve_the_load)
{
    struct disk_bench *b = after_a_kill_with(1 << 20);
    atomic_store(&b->manners->hold_writes, true);
    adopt(b);
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, 1, 0, 0), 0);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_resynced_pages) >= 64);
    for (uint64_t page = 0; page < 40; page++)
        write_page(b, SLAB_PAGES + page, 1);
    CHECK(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages) > 0);
    atomic_store(&b->manners->hold_writes, false);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(not_durable(b), 0);
    disk_bench_close(b);
}

/* A page that is busy when its turn comes has another one. */
TEST_ON_BOTH(busy_ones_are_not_forgotten)
{
    struct disk_bench *b = after_a_kill();
    atomic_store(&b->manners->hold_writes, true);
    adopt(b);
    static uint8_t part[100];
    for (uint64_t page = 0; page < 8; page++) /* each fetches the rest of its page, and is busy meanwhile */
        CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE + 50, 100, part, NULL));
    client_settle(&b->client);
    atomic_store(&b->manners->hold_writes, false);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages) == 0);
    CHECK_EQUAL(flush(b), 0);
    fake_disk_durable(b->disk, b->image);
    CHECK(b->image[7 * PAGE] == value_of(7) && b->image[7 * PAGE + 60] == 0);
    disk_bench_close(b);
}

TEST_ON_BOTH(slab_that_is_given_up_takes_them_to_the_backup)
{
    struct disk_bench *b = after_a_kill();
    uint8_t in[PAGE];
    atomic_store(&b->manners->hold_writes, true);
    adopt(b);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    for (uint64_t page = 0; page < PAGES; page += 13) { /* readable meanwhile */
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, in), 0);
        CHECK_EQUAL(in[7], value_of(page));
    }
    CHECK_EQUAL(rig_slab(&b->rig, 0).state, ISW_SLAB_DRAINING);
    atomic_store(&b->manners->hold_writes, false);
    rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    donor_scrub(&b->donor, 0);
    for (uint64_t page = 0; page < PAGES; page += 13) {
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, in), 0);
        CHECK_EQUAL(in[7], value_of(page));
    }
    disk_bench_close(b);
}

/* The donor dies before they are on the backup: reads say so, one FLUSH says so, and a stop ends. */
TEST_ON_BOTH(lost_ones_are_said)
{
    struct disk_bench *b = after_a_kill_with(1 << 20); /* buffers for fewer than all, whose writes wait until the donor is dead */
    uint8_t in[PAGE];
    atomic_store(&b->manners->hold_writes, true);
    adopt(b);
    donor_kill(&b->donor);
    rig_await(&b->rig, ISW_EVENT_PEER_LOST);
    atomic_store(&b->manners->hold_writes, false);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_only_remote_pages) == 0); /* they are gone through a few at a time */
    uint64_t lost = rig_counter(&b->rig, ISW_DEVICE_lost_pages);
    CHECK(lost > 0);
    CHECK_EQUAL(flush(b), EIO);
    CHECK_EQUAL(flush(b), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_unreadable_pages), lost);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, (PAGES - 1) * PAGE, PAGE, NULL, in), EIO);
    disk_bench_close(b);
}

/* What was on a donor that is not to be had again is lost at the end of the adoption, not for ever waited for. */
TEST_ON_BOTH(unadopted_ones_are_lost)
{
    struct disk_bench *b = after_a_kill();
    CHECK(client_send(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL));
    client_pump(&b->client);
    CHECK_EQUAL(b->client.calls_out, 1);
    CHECK_EQUAL(isw_device_adoption_end(b->rig.device), 0);
    WAIT_UNTIL((client_pump(&b->client), b->client.calls_out == 0));
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_unreadable_pages), PAGES);
    uint8_t data[PAGE] = {1};
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_WRITE, 0, page * PAGE, PAGE, data, NULL), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_unreadable_pages), 0);
    disk_bench_close(b);
}

/* ---- write-throughs that fail ---- */

/* A slab that drains is written through; where the disk refuses, the remote copy is still the page. */
TEST_ON_BOTH(failed_write_through_keeps_the_remote_copy)
{
    struct disk_bench *b = after_a_kill();
    uint8_t in[PAGE], data[PAGE] = {9};
    adopt(b);
    CHECK_EQUAL(flush(b), 0);
    write_page(b, 3, 77); /* pending, so that the slab stays in its draining */
    atomic_store(&b->manners->hold_writes, true);
    write_page(b, 4, 78);
    CHECK_EQUAL(isw_device_slab_unmap(b->rig.device, 0), 0);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, 10 * PAGE, PAGE, data, NULL));
    WAIT_UNTIL((client_pump(&b->client), fake_disk_waiting_writes(b->disk) > 0));
    atomic_store(&b->manners->write_error_one_in, 1);
    atomic_store(&b->manners->hold_writes, false);
    client_settle(&b->client);
    atomic_store(&b->manners->write_error_one_in, 0);
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 10 * PAGE, PAGE, NULL, in), 0);
    CHECK(in[0] == value_of(10) || in[0] == 9); /* the refused write, or none of it */
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_lost_pages), 0);
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches), 0);
    rig_await(&b->rig, ISW_EVENT_SLAB_RELEASED);
    disk_bench_close(b);
}
