/* Proves how a slab that was lost comes from a log to another peer: in the order of the log, so that the disk reads far less often
 * than there are pages; page-ins first; what is written meanwhile wins; and what cannot be read costs no other page. */
#include "fake_backup.h"
#include "rig.h"

#include "backup.h"
#include "log.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SIZE = 8 << 20, PAGE = ISW_PAGE_BYTES, PAGES = SIZE / PAGE, SLAB_PAGES = (1 << 20) / PAGE, LOST = 4 /* slabs */, BATCH = 16 };

/* ---- the disk under the log: its file, at once or when it may, and what was asked of it ---- */

struct counted_disk {
    struct backup base; /* first: the log's pointer */
    int fd;
    atomic_uint reads, blocks, held_reads;
    atomic_bool hold;
    atomic_ullong bad; /* block that cannot be read */
    struct backup_request *held, **held_end, *done, **done_end;
};

static void do_now(struct counted_disk *disk, struct backup_request *r)
{
    uint64_t blocks = r->bytes / PAGE, first = r->offset / PAGE;
    r->error = 0;
    if (r->kind == BACKUP_READ) {
        disk->reads++;
        disk->blocks += (unsigned)blocks;
        if (disk->bad >= first && disk->bad < first + blocks)
            r->error = EIO;
        else
            CHECK_EQUAL(preadv(disk->fd, r->iov, (int)r->vectors, (off_t)r->offset), r->bytes);
    } else if (r->kind == BACKUP_WRITE) {
        CHECK_EQUAL(pwritev(disk->fd, r->iov, (int)r->vectors, (off_t)r->offset), r->bytes);
    }
    r->next = NULL;
    *disk->done_end = r;
    disk->done_end = &r->next;
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct counted_disk *disk = (struct counted_disk *)backup;
    if (r->kind == BACKUP_READ && disk->hold) {
        r->next = NULL;
        *disk->held_end = r;
        disk->held_end = &r->next;
        disk->held_reads++;
        return;
    }
    do_now(disk, r);
    eventfd_write(disk->base.event_fd, 1);
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static struct backup_request *reap(struct backup *backup)
{
    struct counted_disk *disk = (struct counted_disk *)backup;
    eventfd_t ignored;
    eventfd_read(backup->event_fd, &ignored);
    for (struct backup_request *r = disk->hold ? NULL : disk->held, *next; r; r = next) {
        next = r->next;
        do_now(disk, r);
    }
    if (!disk->hold) {
        disk->held = NULL;
        disk->held_end = &disk->held;
    }
    struct backup_request *list = disk->done;
    disk->done = NULL;
    disk->done_end = &disk->done;
    return list;
}

static void destroy(struct backup *backup)
{
    CHECK(!((struct counted_disk *)backup)->held);
    close(backup->event_fd);
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

static struct backup *create(struct backup *backup, uint32_t capacity)
{
    (void)capacity;
    return backup;
}

static void let_go(struct counted_disk *disk)
{
    disk->hold = false;
    eventfd_write(disk->base.event_fd, 1);
}

/* ---- a device whose pages were written in no order, and whose donor has died ---- */

struct bench {
    struct rig rig;
    struct counted_disk disk;
    struct donor first, second;
    uint32_t unit, written; /* pages of a write; slabs */
    struct client client;
    uint8_t data[SIZE];
};

static void put(struct bench *b, uint64_t page, uint8_t version)
{
    for (uint32_t i = 0; i < PAGE; i += 8)
        memcpy(b->data + page * PAGE + i, (uint64_t[]){page << 16 | i << 3 | version}, 8);
}

static void write_pages(struct bench *b, uint64_t page, uint32_t pages, uint8_t version)
{
    for (uint32_t i = 0; i < pages; i++)
        put(b, page + i, version);
    CHECK(client_send(&b->client, NBD_CMD_WRITE, 0, page * PAGE, pages * PAGE, b->data + page * PAGE, NULL));
}

static void write_page(struct bench *b, uint64_t page, uint8_t version)
{
    write_pages(b, page, 1, version);
}

/* Every page of them once, some at a time. */
static void write_in_no_order(struct bench *b)
{
    struct chance chance = chance_start(3);
    uint64_t order[LOST * SLAB_PAGES];
    uint32_t units = b->written * SLAB_PAGES / b->unit;
    for (uint32_t i = 0; i < units; i++) {
        uint64_t other = chance_below(&chance, i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    for (uint32_t i = 0; i < units; i++) {
        write_pages(b, order[i] * b->unit, b->unit, 1);
        if (i % BATCH != BATCH - 1)
            continue;
        client_settle(&b->client);
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_FLUSH, 0, 0, 0, NULL, NULL), 0);
    }
}

static struct bench *open_bench_of(uint32_t unit, uint32_t written)
{
    static struct bench bench;
    struct bench *b = &bench;
    b->unit = unit;
    b->written = written;
    rig_prepare(&b->rig, SIZE);
    if (!b->rig.log)
        rig_log(&b->rig);
    b->disk = (struct counted_disk){.base = {&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), -1, true, 0},
                                    .fd = b->rig.config.backup_fd, .bad = UINT64_MAX};
    b->disk.held_end = &b->disk.held;
    b->disk.done_end = &b->disk.done;
    fake_backup_install((struct fake_backup){create, &b->disk.base});
    rig_start(&b->rig);
    donor_open(&b->first, SIZE, 1 << 20);
    donor_open(&b->second, SIZE, 1 << 20);
    donor_attach(&b->first, &b->rig, 0);
    for (uint32_t slab = 0; slab < LOST; slab++)
        CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 0, 0), 0);
    rig_connect(&b->rig, &b->client, true);
    write_in_no_order(b);
    donor_kill(&b->first);
    for (uint32_t slab = 0; slab < LOST; slab++)
        WAIT_UNTIL(rig_slab(&b->rig, slab).state == ISW_SLAB_UNMAPPED);
    donor_attach(&b->second, &b->rig, 1);
    CHECK_EQUAL(b->disk.reads, 0);
    return b;
}

static struct bench *open_bench(void)
{
    return open_bench_of(1, LOST);
}

static void expect_all(struct bench *b)
{
    static uint8_t data[SIZE];
    for (uint64_t at = 0; at < SIZE; at += 1 << 20)
        CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, at, 1 << 20, NULL, data + at), 0);
    CHECK(!memcmp(data, b->data, SIZE));
    CHECK_EQUAL(rig_counter(&b->rig, ISW_DEVICE_checksum_mismatches), 0);
}

static void close_bench(struct bench *b)
{
    client_close(&b->client);
    rig_stop(&b->rig);
    donor_close(&b->first);
    donor_close(&b->second);
    rig_end(&b->rig);
}

static void map(struct bench *b, uint32_t slab)
{
    CHECK_EQUAL(isw_device_slab_map(b->rig.device, slab, 1, 0), 0);
}

static bool is_back(const struct bench *b, uint32_t slabs, uint32_t pages)
{
    for (uint32_t slab = 0; slab < slabs; slab++)
        if (rig_slab(&b->rig, slab).remote_pages != pages)
            return false;
    return true;
}

/* Runs of neighbouring places in the order of page numbers: so often a disk reads that is asked for one page after the other. */
static uint32_t reads_in_page_order(const struct bench *b, uint32_t slabs)
{
    const uint32_t *place = b->rig.config.backup_log->place;
    uint32_t reads = 1;
    for (uint64_t page = 1; page < (uint64_t)slabs * SLAB_PAGES; page++)
        reads += place[page] != place[page - 1] + 1;
    return reads;
}

static void rebuild(uint32_t slabs, uint32_t times_fewer)
{
    struct bench *b = open_bench();
    uint32_t before = reads_in_page_order(b, slabs), pages = slabs * SLAB_PAGES;
    for (uint32_t slab = 0; slab < slabs; slab++)
        map(b, slab);
    WAIT_UNTIL(is_back(b, slabs, SLAB_PAGES));
    uint32_t reads = b->disk.reads, blocks = b->disk.blocks;
    printf("%u of %u slabs: %u pages: in their order %u reads of the disk, in the log's %u, of %.0f KiB; read for each page: %.2f\n",
           slabs, LOST, pages, before, reads, (double)blocks * 4 / reads, (double)blocks / pages);
    CHECK(reads * times_fewer <= before);
    expect_all(b);
    close_bench(b);
}

TEST(one_slab_of_many)
{
    rebuild(1, 10);
}

TEST(all_that_were_lost)
{
    rebuild(LOST, 10);
}

/* A page-in waits for one read of the rebuilding at most, however far apart the pages lie. */
TEST(page_ins_come_first)
{
    struct bench *b = open_bench();
    uint8_t data[PAGE];
    b->disk.hold = true;
    CHECK(client_send(&b->client, NBD_CMD_READ, 0, (LOST - 1) * SLAB_PAGES * PAGE, PAGE, NULL, data));
    client_pump(&b->client);
    WAIT_UNTIL(b->disk.held_reads == 1);
    map(b, 0);
    WAIT_UNTIL(b->disk.held_reads == 2);
    uint64_t loops = rig_counter(&b->rig, ISW_DEVICE_loops);
    WAIT_UNTIL(rig_counter(&b->rig, ISW_DEVICE_loops) > loops + 3);
    CHECK_EQUAL(b->disk.held_reads, 2);
    let_go(&b->disk);
    client_settle(&b->client);
    CHECK(!memcmp(data, b->data + (LOST - 1) * SLAB_PAGES * PAGE, PAGE));
    WAIT_UNTIL(is_back(b, 1, SLAB_PAGES));
    expect_all(b);
    close_bench(b);
}

/* A slab that is to leave its peer does so though the disk keeps the rebuilding waiting for pages that come by twos, each pair in a large
 * buffer. */
TEST(moves_go_on_beside_it)
{
    struct bench *b = open_bench_of(2, 1);
    struct donor third;
    donor_open(&third, SIZE, 1 << 20);
    donor_attach(&third, &b->rig, 2);
    map(b, LOST);
    for (uint64_t page = LOST * SLAB_PAGES; page < (LOST + 1) * SLAB_PAGES; page += 32)
        write_pages(b, page, 32, 1);
    client_settle(&b->client);
    CHECK_EQUAL(rig_slab(&b->rig, LOST).remote_pages, SLAB_PAGES);
    b->disk.hold = true;
    map(b, 0);
    uint64_t loops = rig_counter(&b->rig, ISW_DEVICE_loops);
    WAIT_UNTIL(b->disk.held_reads && rig_counter(&b->rig, ISW_DEVICE_loops) > loops + 3);
    CHECK_EQUAL(isw_device_slab_move(b->rig.device, LOST, 2, 0), 0);
    WAIT_UNTIL(rig_slab(&b->rig, LOST).peer == 2);
    CHECK(b->disk.hold && !rig_slab(&b->rig, 0).remote_pages);
    CHECK_EQUAL(isw_device_slab_settle(b->rig.device, LOST), 0);
    let_go(&b->disk);
    WAIT_UNTIL(is_back(b, 1, SLAB_PAGES));
    expect_all(b);
    close_bench(b);
    donor_close(&third);
}

/* Pages are written and trimmed while their old versions are read for the new peer. */
TEST(what_is_written_meanwhile_wins)
{
    struct bench *b = open_bench();
    b->disk.hold = true;
    map(b, 0);
    WAIT_UNTIL(b->disk.held_reads);
    for (uint64_t page = 0; page < SLAB_PAGES; page += 3)
        write_page(b, page, 2);
    memset(b->data + PAGE, 0, PAGE);
    CHECK(client_send(&b->client, NBD_CMD_TRIM, 0, PAGE, PAGE, NULL, NULL));
    client_pump(&b->client);
    let_go(&b->disk);
    client_settle(&b->client);
    expect_all(b);
    WAIT_UNTIL(is_back(b, 1, SLAB_PAGES - 1));
    expect_all(b);
    rig_await_backup(&b->rig);
    static uint8_t image[SIZE];
    rig_image(&b->rig, image);
    CHECK(!memcmp(image, b->data, SIZE));
    close_bench(b);
}

/* The read that has it is tried for each page alone; the rest comes. */
TEST(a_bad_sector_costs_its_page_alone)
{
    struct bench *b = open_bench();
    isw_log *log = b->rig.config.backup_log;
    uint8_t data[PAGE];
    b->disk.bad = log_place_offset(log, log->place[100]) / PAGE;
    map(b, 0);
    WAIT_UNTIL(is_back(b, 1, SLAB_PAGES - 1));
    CHECK_EQUAL(client_call(&b->client, NBD_CMD_READ, 0, 100 * PAGE, PAGE, NULL, data), NBD_EIO);
    write_page(b, 100, 2);
    client_settle(&b->client);
    b->disk.bad = UINT64_MAX;
    WAIT_UNTIL(is_back(b, 1, SLAB_PAGES));
    expect_all(b);
    close_bench(b);
}
