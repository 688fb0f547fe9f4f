#include "fake_backup.h"

#include "fake_image.h"
#include "log_disk.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { WAITING_MAX = 512 };

struct waiting {
    struct backup_request *request;
    uint64_t due_ns;
};

struct fake_disk {
    struct backup base; /* first: the engine's pointer */
    struct fake_manners manners;
    atomic_bool stalled;
    pthread_mutex_t lock; /* guards all that follows */
    pthread_cond_t work;
    pthread_t thread;
    bool running, ending, told;
    struct chance chance;
    struct waiting waiting[WAITING_MAX];
    uint32_t count, capacity;
    struct backup_request *done, **done_end;
    struct fake_image image;
    uint8_t *block_in_flight;
    bool sync_waits, state_sync_waits;
    uint64_t syncs, state_syncs;
    const struct isw_page *table;
    struct isw_page *table_syncing, *table_durable;
    uint64_t table_pages;
};

static struct fake_disk *installed;
static struct fake_backup installed_backup;
int fake_fallocate_error;

int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (!fake_fallocate_error)
        return __real_fallocate(fd, mode, offset, length);
    errno = fake_fallocate_error;
    return -1;
}

struct backup *__real_backup_uring_create(int fd, bool sparse, uint32_t capacity);
struct backup *__real_backup_threads_create(int fd, bool sparse, uint32_t capacity);
struct backup *__wrap_backup_uring_create(int fd, bool sparse, uint32_t capacity);
struct backup *__wrap_backup_threads_create(int fd, bool sparse, uint32_t capacity);

static uint64_t bytes_of(const struct backup_request *r)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < r->vectors; i++)
        bytes += r->iov[i].iov_len;
    return bytes;
}

static bool changes(const struct backup_request *r)
{
    return r->kind == BACKUP_WRITE || r->kind == BACKUP_ZERO;
}

static void mark(struct fake_disk *disk, const struct backup_request *r, bool in_flight)
{
    for (uint64_t block = r->offset / ISW_PAGE_BYTES; block < (r->offset + r->bytes) / ISW_PAGE_BYTES; block++) {
        if (in_flight && disk->block_in_flight[block])
            FAIL("block %llu: two backup writes in flight", (unsigned long long)block);
        disk->block_in_flight[block] = in_flight;
    }
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct fake_disk *disk = (struct fake_disk *)backup;
    atomic_store(&disk->stalled, atomic_load(&disk->manners.stall));
    while (atomic_load(&disk->manners.stall))
        usleep(100);
    atomic_store(&disk->stalled, false);
    pthread_mutex_lock(&disk->lock);
    CHECK(disk->count < disk->capacity);
    if (r->kind == BACKUP_SYNC_STATE) {
        CHECK(!disk->state_sync_waits);
        disk->state_sync_waits = true;
        memcpy(disk->table_syncing, disk->table, disk->table_pages * sizeof *disk->table);
    } else if (r->kind == BACKUP_SYNC) {
        CHECK(!disk->sync_waits);
        disk->sync_waits = true;
        fake_image_sync_begins(&disk->image);
    } else {
        CHECK(r->bytes && r->offset % ISW_PAGE_BYTES == 0 && r->bytes % ISW_PAGE_BYTES == 0);
        CHECK(r->offset + r->bytes <= disk->image.bytes);
        CHECK(r->kind == BACKUP_ZERO || bytes_of(r) == r->bytes);
    }
    if (changes(r))
        mark(disk, r, true);
    uint32_t delay_us = atomic_load(&disk->manners.delay_us_max);
    uint64_t due_ns = delay_us ? now_ns() + chance_below(&disk->chance, delay_us) * 1000 : 0;
    disk->waiting[disk->count++] = (struct waiting){r, due_ns};
    pthread_cond_signal(&disk->work);
    pthread_mutex_unlock(&disk->lock);
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static bool held(struct fake_disk *disk, const struct backup_request *r)
{
    if (disk->ending)
        return false;
    if (changes(r) && atomic_load(&disk->manners.hold_writes) && atomic_load(&disk->manners.let_writes) > 0) {
        atomic_fetch_sub(&disk->manners.let_writes, 1);
        return false;
    }
    if (r->kind == BACKUP_SYNC_STATE)
        return atomic_load(&disk->manners.hold_syncs);
    return atomic_load(r->kind == BACKUP_SYNC   ? &disk->manners.hold_syncs
                       : r->kind == BACKUP_READ ? &disk->manners.hold_reads
                                                : &disk->manners.hold_writes);
}

static bool fails(struct fake_disk *disk, const struct backup_request *r)
{
    bool reads = r->kind == BACKUP_READ;
    uint64_t first = r->offset / ISW_PAGE_BYTES;
    uint64_t bad = (uint64_t)atomic_load(reads ? &disk->manners.bad_read : &disk->manners.bad_block);
    if (bad && (reads || r->kind == BACKUP_WRITE) && first <= bad - 1 && bad - 1 < first + r->bytes / ISW_PAGE_BYTES)
        return true;
    if (r->kind == BACKUP_SYNC && atomic_load(&disk->manners.fail_syncs) > 0) {
        atomic_fetch_sub(&disk->manners.fail_syncs, 1);
        return true;
    }
    uint32_t one_in = atomic_load(r->kind == BACKUP_SYNC         ? &disk->manners.sync_error_one_in
                                  : r->kind == BACKUP_SYNC_STATE ? &disk->manners.state_error_one_in
                                  : r->kind == BACKUP_READ ? &disk->manners.read_error_one_in
                                                           : &disk->manners.write_error_one_in);
    return one_in && chance_in(&disk->chance, one_in);
}

static void perform(struct fake_disk *disk, struct backup_request *r)
{
    r->error = fails(disk, r) ? EIO : 0;
    if (r->kind == BACKUP_SYNC_STATE) {
        disk->state_sync_waits = false;
        disk->state_syncs++;
        if (!r->error)
            memcpy(disk->table_durable, disk->table_syncing, disk->table_pages * sizeof *disk->table);
    } else if (r->kind == BACKUP_SYNC) {
        disk->sync_waits = false;
        disk->syncs++;
        fake_image_sync_ends(&disk->image, !r->error, atomic_load(&disk->manners.sync_loses));
    } else { /* what fails may have been done in part */
        uint64_t pages = r->bytes / ISW_PAGE_BYTES;
        fake_image_move(&disk->image, r, r->error ? chance_below(&disk->chance, pages + 1) * ISW_PAGE_BYTES : r->bytes);
    }
    if (changes(r))
        mark(disk, r, false);
    r->next = NULL;
    *disk->done_end = r;
    disk->done_end = &r->next;
    if (disk->told)
        eventfd_write(disk->base.event_fd, 1);
}

static void *run(void *argument)
{
    struct fake_disk *disk = argument;
    pthread_mutex_lock(&disk->lock);
    while (!disk->ending || disk->count) {
        uint64_t now = now_ns(), next_ns = now + 1000000;
        bool moved = false;
        for (uint32_t i = 0; i < disk->count; i++) {
            struct waiting *w = &disk->waiting[i];
            if (held(disk, w->request))
                continue;
            if (w->due_ns > now && !disk->ending) {
                next_ns = w->due_ns < next_ns ? w->due_ns : next_ns;
                continue;
            }
            struct backup_request *r = w->request;
            memmove(w, w + 1, (size_t)(disk->waiting + --disk->count - w) * sizeof *w); /* in the order they came */
            i--;
            perform(disk, r);
            moved = true;
        }
        if (moved)
            continue;
        struct timespec until = {(time_t)(next_ns / 1000000000), (long)(next_ns % 1000000000)};
        if (disk->count)
            pthread_cond_timedwait(&disk->work, &disk->lock, &until);
        else if (!disk->ending)
            pthread_cond_wait(&disk->work, &disk->lock);
    }
    pthread_mutex_unlock(&disk->lock);
    return NULL;
}

static struct backup_request *reap(struct backup *backup)
{
    struct fake_disk *disk = (struct fake_disk *)backup;
    eventfd_t ignored;
    eventfd_read(backup->event_fd, &ignored);
    pthread_mutex_lock(&disk->lock);
    struct backup_request *list = disk->done;
    disk->done = NULL;
    disk->done_end = &disk->done;
    pthread_mutex_unlock(&disk->lock);
    return list;
}

static void destroy(struct backup *backup)
{
    struct fake_disk *disk = (struct fake_disk *)backup;
    pthread_mutex_lock(&disk->lock);
    disk->ending = true;
    pthread_cond_signal(&disk->work);
    pthread_mutex_unlock(&disk->lock);
    pthread_join(disk->thread, NULL);
    disk->running = false;
}

static bool attend(struct backup *backup, bool told)
{
    struct fake_disk *disk = (struct fake_disk *)backup;
    pthread_mutex_lock(&disk->lock);
    disk->told = told;
    bool done = disk->done;
    pthread_mutex_unlock(&disk->lock);
    return done;
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};
static const struct backup_methods quiet_methods = {submit, kick, reap, destroy, attend, backup_image_wants, NULL, NULL, NULL, NULL};

static struct backup *start(struct fake_disk *disk, uint32_t capacity)
{
    CHECK(!disk->running);
    fake_image_start(&disk->image);
    disk->ending = false;
    disk->running = disk->told = true;
    disk->base.methods = atomic_load(&disk->manners.quiet) ? &quiet_methods : &methods;
    disk->capacity = capacity < WAITING_MAX ? capacity : WAITING_MAX;
    disk->done = NULL;
    disk->done_end = &disk->done;
    CHECK(pthread_create(&disk->thread, NULL, run, disk) == 0);
    return &disk->base;
}

struct backup *__wrap_backup_uring_create(int fd, bool sparse, uint32_t capacity)
{
    struct fake_disk *disk = installed;
    struct fake_backup other = installed_backup;
    installed = NULL;
    installed_backup = (struct fake_backup){0};
    if (other.create)
        return other.create(other.backup, capacity);
    return disk ? start(disk, capacity) : __real_backup_uring_create(fd, sparse, capacity);
}

struct backup *__wrap_backup_threads_create(int fd, bool sparse, uint32_t capacity)
{
    struct log_disk *disk = log_disk_of(fd);
    return disk ? log_disk_start_eager(disk) : __real_backup_threads_create(fd, sparse, capacity);
}

struct fake_disk *fake_disk_open(const struct rig *rig, uint64_t chance_number)
{
    struct fake_disk *disk = calloc(1, sizeof *disk);
    pthread_condattr_t monotonic;
    CHECK(disk);
    disk->base = (struct backup){&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), -1, true, 0};
    disk->chance = chance_start(chance_number);
    fake_image_open(&disk->image, rig);
    disk->block_in_flight = calloc(disk->image.bytes / ISW_PAGE_BYTES, 1);
    CHECK(disk->base.event_fd >= 0 && disk->block_in_flight);
    pthread_mutex_init(&disk->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&disk->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return disk;
}

void fake_disk_install(struct fake_disk *disk)
{
    installed = disk;
}

void fake_backup_install(struct fake_backup backup)
{
    installed_backup = backup;
}

void fake_disk_close(struct fake_disk *disk)
{
    CHECK(!disk->running);
    close(disk->base.event_fd);
    pthread_cond_destroy(&disk->work);
    pthread_mutex_destroy(&disk->lock);
    fake_image_close(&disk->image);
    free(disk->block_in_flight);
    free(disk->table_syncing);
    free(disk->table_durable);
    free(disk);
}

struct fake_manners *fake_disk_manners(struct fake_disk *disk)
{
    return &disk->manners;
}

static void read_all(struct fake_disk *disk, bool durable, uint8_t *out)
{
    pthread_mutex_lock(&disk->lock);
    fake_image_read(&disk->image, durable, out);
    pthread_mutex_unlock(&disk->lock);
}

void fake_disk_image(struct fake_disk *disk, uint8_t *out)
{
    read_all(disk, false, out);
}

void fake_disk_durable(struct fake_disk *disk, uint8_t *out)
{
    read_all(disk, true, out);
}

static uint32_t count(struct fake_disk *disk, bool only_changes)
{
    uint32_t found = 0;
    pthread_mutex_lock(&disk->lock);
    for (uint32_t i = 0; i < disk->count; i++)
        found += !only_changes || changes(disk->waiting[i].request);
    pthread_mutex_unlock(&disk->lock);
    return found;
}

bool fake_disk_stalled(struct fake_disk *disk)
{
    return atomic_load(&disk->stalled);
}

bool fake_disk_told(struct fake_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    bool told = disk->told;
    pthread_mutex_unlock(&disk->lock);
    return told;
}

uint32_t fake_disk_waiting(struct fake_disk *disk)
{
    return count(disk, false);
}

uint32_t fake_disk_waiting_writes(struct fake_disk *disk)
{
    return count(disk, true);
}

uint64_t fake_disk_oldest_write(struct fake_disk *disk)
{
    uint64_t page = UINT64_MAX;
    pthread_mutex_lock(&disk->lock);
    for (uint32_t i = disk->count; i-- > 0;)
        if (changes(disk->waiting[i].request))
            page = disk->waiting[i].request->offset / ISW_PAGE_BYTES;
    pthread_mutex_unlock(&disk->lock);
    return page;
}

uint64_t fake_disk_syncs(struct fake_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    uint64_t syncs = disk->syncs;
    pthread_mutex_unlock(&disk->lock);
    return syncs;
}

void fake_disk_state(struct fake_disk *disk, const struct isw_page *table, uint64_t pages)
{
    CHECK(!disk->running);
    disk->table = table;
    disk->table_pages = pages;
    disk->table_syncing = calloc(pages, sizeof *table);
    disk->table_durable = calloc(pages, sizeof *table);
    CHECK(disk->table_syncing && disk->table_durable);
}

struct isw_page fake_disk_durable_entry(struct fake_disk *disk, uint64_t page)
{
    pthread_mutex_lock(&disk->lock);
    struct isw_page entry = disk->table_durable[page];
    pthread_mutex_unlock(&disk->lock);
    return entry;
}

uint64_t fake_disk_state_syncs(struct fake_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    uint64_t syncs = disk->state_syncs;
    pthread_mutex_unlock(&disk->lock);
    return syncs;
}
