/* What a log does to its descriptor without a backup behind it, while it is formatted and opened, and for tools: the linker
 * wraps these calls, and those that are about a log_disk go to it.  So a process may die in the middle of them, too. */
#include "log_disk.h"

#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

ssize_t __real_pread(int fd, void *data, size_t bytes, off_t at);
ssize_t __real_pwrite(int fd, const void *data, size_t bytes, off_t at);
ssize_t __real_preadv(int fd, const struct iovec *iov, int count, off_t at);
ssize_t __real_pwritev(int fd, const struct iovec *iov, int count, off_t at);
int __real_fdatasync(int fd);
int __real_fsync(int fd);
ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t at);
ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t at);
ssize_t __wrap_preadv(int fd, const struct iovec *iov, int count, off_t at);
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t at);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);

enum { SECTOR = 512 };

static ssize_t disk_read(struct log_disk *disk, const struct iovec *iov, int count, uint64_t from)
{
    uint64_t at = from;
    for (int i = 0; i < count; i++)
        for (size_t done = 0, run; done < iov[i].iov_len && at < disk->size_bytes; done += run, at += run) {
            run = ISW_PAGE_BYTES - at % ISW_PAGE_BYTES;
            run = run < iov[i].iov_len - done ? run : iov[i].iov_len - done;
            run = run < disk->size_bytes - at ? run : disk->size_bytes - at;
            if (disk->flags[at / ISW_PAGE_BYTES] & LOG_BLOCK_BAD) {
                disk->read_faults++;
                errno = EIO;
                return at == from ? -1 : (ssize_t)(at - from);
            }
            memcpy((uint8_t *)iov[i].iov_base + done, disk->image + at, run);
        }
    return (ssize_t)(at - from);
}

/* Whoever dies in the middle has written some of it. */
static ssize_t disk_write(struct log_disk *disk, const struct iovec *iov, int count, uint64_t at)
{
    ssize_t moved = 0;
    if (disk->dead) {
        errno = EIO;
        return -1;
    }
    log_disk_point(disk);
    bool failed = log_disk_one_in(disk, disk->manners.write_error_one_in), cut = disk->dead || failed;
    disk->writes++;
    for (int i = 0; i < count; i++) {
        size_t bytes = iov[i].iov_len;
        CHECK(at + bytes <= disk->size_bytes);
        if (cut)
            bytes = chance_below(&disk->chance, bytes / SECTOR + 1) * SECTOR;
        log_disk_change(disk, at, iov[i].iov_base, bytes);
        at += bytes;
        moved += (ssize_t)bytes;
        if (cut && (bytes < iov[i].iov_len || i + 1 == count)) {
            disk->write_faults += failed;
            errno = failed ? disk->manners.error : EIO;
            return -1;
        }
    }
    return moved;
}

ssize_t __wrap_preadv(int fd, const struct iovec *iov, int count, off_t at)
{
    struct log_disk *disk = log_disk_of(fd);
    return disk ? disk_read(disk, iov, count, (uint64_t)at) : __real_preadv(fd, iov, count, at);
}

ssize_t __wrap_pread(int fd, void *data, size_t bytes, off_t at)
{
    struct log_disk *disk = log_disk_of(fd);
    if (!disk)
        return __real_pread(fd, data, bytes, at);
    disk->descriptor_reads++;
    return disk_read(disk, &(struct iovec){data, bytes}, 1, (uint64_t)at);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t at)
{
    struct log_disk *disk = log_disk_of(fd);
    return disk ? disk_write(disk, iov, count, (uint64_t)at) : __real_pwritev(fd, iov, count, at);
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t at)
{
    struct log_disk *disk = log_disk_of(fd);
    struct iovec iov = {(void *)(uintptr_t)data, bytes};
    return disk ? disk_write(disk, &iov, 1, (uint64_t)at) : __real_pwrite(fd, data, bytes, at);
}

static int disk_sync(struct log_disk *disk)
{
    if (!disk->dead)
        log_disk_point(disk);
    errno = disk->dead ? EIO : log_disk_sync_now(disk);
    return errno ? -1 : 0;
}

int __wrap_fdatasync(int fd)
{
    struct log_disk *disk = log_disk_of(fd);
    return disk ? disk_sync(disk) : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    struct log_disk *disk = log_disk_of(fd);
    return disk ? disk_sync(disk) : __real_fsync(fd);
}
