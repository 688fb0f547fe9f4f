#include "log_disk.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, BLOCK = ISW_PAGE_BYTES };

static struct log_disk *only;

static bool changes(const struct backup_request *r)
{
    return r->kind == BACKUP_WRITE || r->kind == BACKUP_ZERO;
}

static bool is_sync(const struct backup_request *r)
{
    return r->kind == BACKUP_SYNC || r->kind == BACKUP_SYNC_STATE;
}

bool log_disk_one_in(struct log_disk *disk, uint32_t n)
{
    return n && chance_in(&disk->chance, n);
}

void log_disk_point(struct log_disk *disk)
{
    if (disk->kill_in && !--disk->kill_in)
        disk->dead = true;
}

static uint8_t *payload_at(const struct backup_request *r, uint64_t at)
{
    for (uint32_t i = 0; i < r->vectors; i++) {
        if (at < r->iov[i].iov_len)
            return (uint8_t *)r->iov[i].iov_base + at;
        at -= r->iov[i].iov_len;
    }
    FAIL("a request without a place for its bytes");
}

static void change_block(struct log_disk *disk, const struct backup_request *r, uint64_t at, uint32_t bytes)
{
    if (bytes)
        log_disk_change(disk, r->offset + at, r->kind == BACKUP_ZERO ? NULL : payload_at(r, at), bytes);
}

/* What fails, or is cut off, is done in part: from the front, or here and there. */
static void change_some(struct log_disk *disk, const struct backup_request *r)
{
    uint64_t way = chance_below(&disk->chance, 4), end = chance_below(&disk->chance, r->bytes / SECTOR + 1) * SECTOR;
    for (uint64_t at = 0; at < r->bytes; at += BLOCK) {
        uint64_t bytes = way == 0   ? 0
                         : way == 1 ? (at >= end ? 0 : end - at < BLOCK ? end - at : BLOCK)
                         : way == 2 ? chance_below(&disk->chance, 2) * BLOCK
                                    : chance_below(&disk->chance, BLOCK / SECTOR + 1) * SECTOR;
        change_block(disk, r, at, (uint32_t)bytes);
    }
}

static void transfer(struct log_disk *disk, struct backup_request *r)
{
    for (uint64_t at = 0; at < r->bytes; at += BLOCK)
        if (changes(r))
            change_block(disk, r, at, BLOCK);
        else
            memcpy(payload_at(r, at), disk->image + r->offset + at, BLOCK);
    uint64_t first = log_disk_one_in(disk, disk->manners.pieces_one_in) ? chance_below(&disk->chance, r->bytes / SECTOR) * SECTOR : 0;
    r->moved = 0;
    if (r->kind == BACKUP_ZERO)
        return;
    if (first)
        CHECK(!backup_transferred(r, (int64_t)first));
    CHECK(backup_transferred(r, (int64_t)(r->bytes - first)));
}

/* ---- requests ---- */

static void finish(struct log_disk *disk, struct backup_request *r, int error)
{
    r->error = error;
    r->next = NULL;
    *disk->done_end = r;
    disk->done_end = &r->next;
    eventfd_write(disk->base.event_fd, 1);
}

static bool bad(const struct log_disk *disk, const struct backup_request *r)
{
    for (uint64_t at = r->offset; at < r->offset + r->bytes; at += BLOCK)
        if (disk->flags[at / BLOCK] & LOG_BLOCK_BAD)
            return true;
    return false;
}

static int read_done(struct log_disk *disk, struct backup_request *r)
{
    disk->reads++;
    if (bad(disk, r) || log_disk_one_in(disk, disk->manners.read_error_one_in)) {
        disk->read_faults++;
        for (uint64_t at = 0; at < r->bytes; at += BLOCK) /* what is there then is nobody's promise */
            memset(payload_at(r, at), 0xdb, BLOCK);
        return EIO;
    }
    transfer(disk, r);
    return 0;
}

static int change_done(struct log_disk *disk, struct backup_request *r)
{
    disk->writes++;
    for (uint64_t at = r->offset; at < r->offset + r->bytes; at += BLOCK)
        disk->flags[at / BLOCK] &= (uint16_t)~LOG_BLOCK_WRITING;
    if (log_disk_one_in(disk, disk->manners.write_error_one_in) || r->offset < disk->manners.front_fails) {
        disk->write_faults++;
        change_some(disk, r);
        return disk->manners.error;
    }
    transfer(disk, r);
    return 0;
}

static int sync_done(struct log_disk *disk, const struct log_disk_waiting *w)
{
    if (w->request->kind == BACKUP_SYNC)
        return log_disk_sync_ends(disk, w->flag);
    disk->state_syncs++; /* of another file */
    return log_disk_one_in(disk, disk->manners.sync_error_one_in) ? EIO : 0;
}

static struct backup_request *take(struct log_disk *disk, uint32_t slot)
{
    struct backup_request *r = disk->waiting[slot].request;
    disk->count--;
    memmove(&disk->waiting[slot], &disk->waiting[slot + 1], (disk->count - slot) * sizeof *disk->waiting);
    return r;
}

static bool may_be_done(const struct log_disk *disk, uint32_t slot)
{
    const struct log_disk_waiting *w = &disk->waiting[slot];
    return w->kicked && !(disk->manners.hold >> w->request->kind & 1);
}

uint32_t log_disk_waiting(const struct log_disk *disk)
{
    return disk->count;
}

/* Which one: any, but of those that are late, if there are others, only seldom one. */
static uint32_t choose(struct log_disk *disk)
{
    uint32_t some[LOG_DISK_QUEUE], all[LOG_DISK_QUEUE], few = 0, many = 0;
    for (uint32_t i = 0; i < disk->count; i++)
        if (may_be_done(disk, i)) {
            all[many++] = i;
            if (!disk->waiting[i].late)
                some[few++] = i;
        }
    if (!many)
        return LOG_DISK_QUEUE;
    if (disk->manners.in_order)
        return all[0];
    if (!few || chance_in(&disk->chance, 64))
        return all[chance_below(&disk->chance, many)];
    return some[chance_below(&disk->chance, few)];
}

bool log_disk_step(struct log_disk *disk)
{
    uint32_t slot = choose(disk);
    if (slot == LOG_DISK_QUEUE)
        return false;
    log_disk_point(disk);
    if (disk->dead)
        return false;
    struct log_disk_waiting w = disk->waiting[slot];
    struct backup_request *r = take(disk, slot);
    disk->requests++;
    finish(disk, r, r->kind == BACKUP_READ ? read_done(disk, r) : changes(r) ? change_done(disk, r) : sync_done(disk, &w));
    return true;
}

static void check_request(struct log_disk *disk, const struct backup_request *r)
{
    uint64_t bytes = 0;
    CHECK(r->bytes && r->offset % BLOCK == 0 && r->bytes % BLOCK == 0 && r->offset + r->bytes <= disk->size_bytes);
    for (uint32_t i = 0; r->kind != BACKUP_ZERO && i < r->vectors; i++) {
        CHECK((uintptr_t)r->iov[i].iov_base % BLOCK == 0 && r->iov[i].iov_len % BLOCK == 0 && r->iov[i].iov_len);
        bytes += r->iov[i].iov_len;
    }
    CHECK(r->kind == BACKUP_ZERO || (bytes == r->bytes && r->vectors <= 1024)); /* UIO_MAXIOV */
    for (uint64_t block = r->offset / BLOCK; changes(r) && block < (r->offset + r->bytes) / BLOCK; block++) {
        if (disk->flags[block] & LOG_BLOCK_WRITING)
            FAIL("block %llu: two writes in flight", (unsigned long long)block);
        disk->flags[block] |= LOG_BLOCK_WRITING;
    }
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct log_disk *disk = (struct log_disk *)backup;
    CHECK(disk->running);
    log_disk_point(disk);
    if (disk->dead) {
        finish(disk, r, EIO);
        return;
    }
    CHECK(disk->count < LOG_DISK_QUEUE);
    if (!is_sync(r))
        check_request(disk, r);
    uint16_t flag = r->kind == BACKUP_SYNC ? log_disk_sync_begins(disk) : 0; /* it covers what was done before, and no more */
    disk->waiting[disk->count++] = (struct log_disk_waiting){r, false, log_disk_one_in(disk, disk->manners.late_one_in), flag};
    if (disk->count > disk->count_max)
        disk->count_max = disk->count;
}

static struct backup_request *reap(struct backup *backup)
{
    struct log_disk *disk = (struct log_disk *)backup;
    struct backup_request *list = disk->done;
    eventfd_t ignored;
    eventfd_read(backup->event_fd, &ignored);
    disk->done = NULL;
    disk->done_end = &disk->done;
    return list;
}

/* What is in flight still is done, or cut off, before its memory goes. */
static void abandon(struct log_disk *disk, bool answered)
{
    while (disk->count) {
        bool kicked = disk->waiting[0].kicked;
        struct backup_request *r = take(disk, 0);
        if (!is_sync(r) && r->kind != BACKUP_READ) {
            uint64_t fate = kicked ? chance_below(&disk->chance, 3) : 0;
            for (uint64_t at = r->offset; at < r->offset + r->bytes; at += BLOCK)
                disk->flags[at / BLOCK] &= (uint16_t)~LOG_BLOCK_WRITING;
            if (fate == 1)
                change_some(disk, r);
            else if (fate == 2)
                for (uint64_t at = 0; at < r->bytes; at += BLOCK)
                    change_block(disk, r, at, BLOCK);
        }
        if (answered)
            finish(disk, r, EIO);
    }
    log_disk_syncs_end(disk);
}

/* The kernel hears of it no sooner. */
static void kick(struct backup *backup)
{
    struct log_disk *disk = (struct log_disk *)backup;
    for (uint32_t i = 0; i < disk->count; i++)
        disk->waiting[i].kicked = true;
    while (disk->eager && disk->count && log_disk_step(disk))
        ;
    if (disk->eager && disk->dead)
        abandon(disk, true);
}

static void destroy(struct backup *backup)
{
    struct log_disk *disk = (struct log_disk *)backup;
    CHECK(disk->running);
    abandon(disk, false);
    close(backup->event_fd);
    close(backup->fd);
    disk->running = false;
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

/* ---- its life ---- */

struct backup *log_disk_start(struct log_disk *disk)
{
    CHECK(!disk->running);
    disk->base = (struct backup){&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), dup(disk->fd), true, 0};
    CHECK(disk->base.event_fd >= 0 && disk->base.fd >= 0);
    disk->done = NULL;
    disk->done_end = &disk->done;
    disk->running = true;
    disk->eager = false;
    return &disk->base;
}

struct backup *log_disk_start_eager(struct log_disk *disk)
{
    struct backup *backup = log_disk_start(disk);
    disk->eager = true;
    return backup;
}

void log_disk_open(struct log_disk *disk, uint64_t size_bytes, struct chance chance)
{
    CHECK(!only);
    *disk = (struct log_disk){.chance = chance, .size_bytes = size_bytes, .blocks = (size_bytes + BLOCK - 1) / BLOCK,
                              .now_ns = 1000000000};
    disk->manners = (struct log_disk_manners){.error = EIO, .pieces_one_in = 8};
    disk->fd = memfd_create("log", MFD_CLOEXEC);
    CHECK(disk->fd >= 0 && ftruncate(disk->fd, (off_t)(disk->blocks * BLOCK)) == 0);
    disk->image = mmap(NULL, disk->blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, disk->fd, 0);
    disk->durable = calloc(disk->blocks, BLOCK);
    disk->flags = calloc(disk->blocks, sizeof *disk->flags);
    CHECK(disk->image != MAP_FAILED && disk->durable && disk->flags);
    only = disk;
}

void log_disk_close(struct log_disk *disk)
{
    CHECK(!disk->running);
    munmap(disk->image, disk->blocks * BLOCK);
    close(disk->fd);
    free(disk->durable);
    free(disk->flags);
    only = NULL;
}

struct log_disk *log_disk_present(void)
{
    return only;
}

struct log_disk *log_disk_of(int fd)
{
    struct stat one, other;
    if (!only || fstat(fd, &one) < 0 || fstat(only->fd, &other) < 0)
        return NULL;
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino ? only : NULL;
}

void log_disk_kill(struct log_disk *disk)
{
    disk->dead = true;
    disk->kill_in = 0;
    abandon(disk, disk->running);
}
