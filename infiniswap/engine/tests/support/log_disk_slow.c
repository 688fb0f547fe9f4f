#include "log_disk_slow.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    REQUEST_BYTES_MAX = 1 << 20, /* pages that lie apart: what is longer goes as more than one */
    TRACK_BYTES = 1 << 18, /* what lies so little ahead comes by */
};

static uint64_t later(uint64_t *free_ns, uint64_t now_ns, uint64_t ns)
{
    *free_ns = (*free_ns > now_ns ? *free_ns : now_ns) + ns;
    return *free_ns;
}

static uint64_t by_head(struct log_disk_slow *disk, const struct backup_request *r)
{
    bool near = r->offset >= disk->head && r->offset - disk->head <= TRACK_BYTES;
    uint64_t bytes = r->bytes + (near ? r->offset - disk->head : 0);
    disk->head = r->offset + r->bytes;
    disk->seeks += !near;
    return later(&disk->write_free_ns, disk->clock.now_ns, bytes * 1000000000 / disk->bytes_per_s + (near ? 0 : disk->seek_ns));
}

static uint64_t ready_ns(struct log_disk_slow *disk, const struct backup_request *r)
{
    uint64_t now = disk->clock.now_ns, bytes_ns = r->bytes * 1000000000 / disk->bytes_per_s;
    if (disk->reads_free && r->kind == BACKUP_READ)
        return now;
    if (disk->seek_ns)
        return by_head(disk, r);
    uint64_t requests = (r->bytes + REQUEST_BYTES_MAX - 1) / REQUEST_BYTES_MAX;
    if (r->kind == BACKUP_READ)
        return later(disk->one_bandwidth ? &disk->write_free_ns : &disk->read_free_ns, now, bytes_ns);
    uint64_t by_bytes = later(&disk->write_free_ns, now, bytes_ns);
    uint64_t by_requests = later(&disk->request_free_ns, now, requests * 1000000000 / disk->writes_per_s);
    return by_bytes > by_requests ? by_bytes : by_requests;
}

static void transfer(struct log_disk_slow *disk, const struct backup_request *r)
{
    uint64_t at = r->offset;
    for (uint32_t i = 0; i < r->vectors; at += r->iov[i++].iov_len)
        if (r->kind == BACKUP_WRITE)
            memcpy(disk->image + at, r->iov[i].iov_base, r->iov[i].iov_len);
        else
            memcpy(r->iov[i].iov_base, disk->image + at, r->iov[i].iov_len);
    if (r->kind == BACKUP_WRITE) {
        disk->writes++;
        disk->written_blocks += r->bytes / ISW_PAGE_BYTES;
    } else {
        disk->reads++;
        disk->read_blocks += r->bytes / ISW_PAGE_BYTES;
    }
}

static void submit(struct backup *backup, struct backup_request *r)
{
    struct log_disk_slow *disk = (struct log_disk_slow *)backup;
    CHECK(disk->count < LOG_DISK_QUEUE);
    bool moves = r->kind == BACKUP_READ || r->kind == BACKUP_WRITE;
    disk->syncs += !moves;
    disk->waiting[disk->count++] = (struct log_disk_slow_waiting){r, moves ? ready_ns(disk, r) : disk->clock.now_ns};
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static struct backup_request *reap(struct backup *backup)
{
    struct log_disk_slow *disk = (struct log_disk_slow *)backup;
    struct backup_request *list = disk->done;
    disk->done = NULL;
    disk->done_end = &disk->done;
    return list;
}

static void destroy(struct backup *backup)
{
    CHECK(!((struct log_disk_slow *)backup)->count);
    close(backup->event_fd);
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

bool log_disk_slow_ready(const struct log_disk_slow *disk)
{
    for (uint32_t i = 0; i < disk->count; i++)
        if (disk->waiting[i].ready_ns <= disk->clock.now_ns)
            return true;
    return false;
}

bool log_disk_slow_step(struct log_disk_slow *disk)
{
    if (!disk->count)
        return false;
    uint32_t first = 0;
    for (uint32_t i = 1; i < disk->count; i++)
        if (disk->waiting[i].ready_ns < disk->waiting[first].ready_ns)
            first = i;
    struct log_disk_slow_waiting w = disk->waiting[first];
    disk->count--;
    memmove(&disk->waiting[first], &disk->waiting[first + 1], (disk->count - first) * sizeof w);
    if (w.ready_ns > disk->clock.now_ns)
        disk->clock.now_ns = w.ready_ns;
    if (w.request->kind == BACKUP_READ || w.request->kind == BACKUP_WRITE)
        transfer(disk, w.request);
    w.request->error = 0;
    w.request->next = NULL;
    *disk->done_end = w.request;
    disk->done_end = &w.request->next;
    return true;
}

struct backup *log_disk_slow_start(struct log_disk_slow *disk)
{
    disk->base = (struct backup){&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), -1, false, 0};
    CHECK(disk->base.event_fd >= 0);
    disk->done_end = &disk->done;
    return &disk->base;
}

void log_disk_slow_open(struct log_disk_slow *disk, uint64_t size_bytes)
{
    *disk = (struct log_disk_slow){.size_bytes = size_bytes, .writes_per_s = 120, .bytes_per_s = 100000000};
    log_disk_open(&disk->clock, ISW_PAGE_BYTES, chance_start(1));
    disk->fd = memfd_create("log", MFD_CLOEXEC);
    CHECK(disk->fd >= 0 && ftruncate(disk->fd, (off_t)size_bytes) == 0);
    disk->image = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, disk->fd, 0);
    CHECK(disk->image != MAP_FAILED);
}

void log_disk_slow_close(struct log_disk_slow *disk)
{
    munmap(disk->image, disk->size_bytes);
    close(disk->fd);
    log_disk_close(&disk->clock);
}
