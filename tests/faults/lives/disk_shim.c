/* Preloaded into the programs: a disk that fails, tears and forgets, a state directory that is full, another boot.
 *
 * It sees what a process does with the one image, the one state directory and the boot id that its control page names.
 * The control page is shared with the test, which changes faults in it while the program runs. io_uring passes it by.
 * The shadow is what a power cut leaves: it gets an image's pages when fdatasync has returned without an error, and a
 * page that a failing fdatasync was to write is clean from then on, as in Linux, and never gets there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES_MAX = 16384, PATH_BYTES = 256, FDS_MAX = 4096 };

/* Mirrored by CONTROL in disk.py. */
struct control {
    char image[PATH_BYTES], shadow[PATH_BYTES], state[PATH_BYTES], boot_id[PATH_BYTES];
    _Atomic uint64_t image_dev, image_ino;
    _Atomic int32_t write_errno, write_every; /* one write of so many fails */
    _Atomic int32_t read_errno, read_every;
    _Atomic int32_t sync_errno, sync_left;    /* so many more fail */
    _Atomic int32_t delay_us, delay_every;
    _Atomic int32_t state_errno, state_nth, state_all; /* the Nth operation fails; and all that follow */
    _Atomic uint32_t writes, reads, syncs, state_ops, faults;
    _Atomic uint8_t dirty[PAGES_MAX];
};

static struct control *control;
static pthread_rwlock_t image_lock = PTHREAD_RWLOCK_INITIALIZER;
static int shadow_fd = -1, plain_fd = -1;
static _Atomic bool is_state[FDS_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int lives_attach(const char *path);

int lives_attach(const char *path)
{
    int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return errno;
    control = mapped;
    return 0;
}

static bool is_image(int fd)
{
    struct stat st;
    return control && control->image_ino && fstat(fd, &st) == 0 && st.st_ino == control->image_ino &&
           st.st_dev == control->image_dev;
}

/* Whether this one fails; sets errno. */
static bool hit(_Atomic int32_t *error, _Atomic int32_t *every, _Atomic uint32_t *count)
{
    uint32_t number = atomic_fetch_add(count, 1) + 1;
    int32_t n = *every;
    if (*error == 0 || n <= 0 || number % (uint32_t)n != 0)
        return false;
    atomic_fetch_add(&control->faults, 1);
    errno = *error;
    return true;
}

static void delay(void)
{
    int32_t every = control->delay_every;
    if (control->delay_us > 0 && every > 0 && control->writes % (uint32_t)every == 0)
        usleep((useconds_t)control->delay_us);
}

static void mark(off_t offset, size_t bytes)
{
    for (size_t page = (size_t)offset / PAGE; page < PAGES_MAX && page * PAGE < (size_t)offset + bytes; page++)
        control->dirty[page] = 1;
}

static int sync_image(void)
{
    atomic_fetch_add(&control->syncs, 1);
    delay();
    pthread_rwlock_wrlock(&image_lock);
    int error = 0;
    if (control->sync_errno && control->sync_left > 0) {
        atomic_fetch_sub(&control->sync_left, 1);
        atomic_fetch_add(&control->faults, 1);
        error = control->sync_errno;
    }
    if (shadow_fd < 0)
        shadow_fd = REAL(open)(control->shadow, O_RDWR | O_CLOEXEC);
    if (plain_fd < 0)
        plain_fd = REAL(open)(control->image, O_RDONLY | O_CLOEXEC);
    static char page[PAGE];
    for (size_t i = 0; i < PAGES_MAX; i++) {
        if (!control->dirty[i])
            continue;
        ssize_t got = error ? 0 : pread(plain_fd, page, PAGE, (off_t)i * PAGE);
        if (got > 0 && REAL(pwrite)(shadow_fd, page, (size_t)got, (off_t)i * PAGE) != got)
            error = EIO;
        control->dirty[i] = 0; /* last: who is killed before has not synced it, and the kernel still would */
    }
    pthread_rwlock_unlock(&image_lock);
    errno = error;
    return error ? -1 : 0;
}

/* An operation on the state directory: whether it fails. */
static bool state_fails(void)
{
    int32_t number = (int32_t)atomic_fetch_add(&control->state_ops, 1) + 1;
    int32_t nth = control->state_nth;
    if (!control->state_errno || nth <= 0 || (number != nth && !(control->state_all && number > nth)))
        return false;
    atomic_fetch_add(&control->faults, 1);
    errno = control->state_errno;
    return true;
}

static bool in_state(const char *path)
{
    size_t length = control ? strnlen(control->state, PATH_BYTES) : 0;
    return length && strncmp(path, control->state, length) == 0;
}

static int opened(int fd, const char *path)
{
    struct stat st;
    if (fd >= 0 && fd < FDS_MAX)
        is_state[fd] = in_state(path);
    if (fd >= 0 && control && strcmp(path, control->image) == 0 && fstat(fd, &st) == 0) {
        control->image_ino = st.st_ino;
        control->image_dev = st.st_dev;
    }
    return fd;
}

static const char *redirected(const char *path)
{
    return control && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0 ? control->boot_id : path;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && in_state(path) && state_fails())                                \
            return -1;                                                                                                 \
        return opened(REAL(name)(redirected(path), flags, mode), path);                                                \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...)                                                             \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && in_state(path) && state_fails())                                \
            return -1;                                                                                                 \
        return opened(REAL(name)(folder, redirected(path), flags, mode), path);                                        \
    }
OPENAT(openat)
OPENAT(openat64)

static bool state_fd_fails(int fd)
{
    return control && fd >= 0 && fd < FDS_MAX && is_state[fd] && state_fails();
}

int close(int fd)
{
    if (fd >= 0 && fd < FDS_MAX)
        is_state[fd] = false;
    return REAL(close)(fd);
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    return state_fd_fails(fd) ? -1 : REAL(write)(fd, data, bytes);
}

int rename(const char *from, const char *to)
{
    return in_state(to) && state_fails() ? -1 : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    return in_state(path) && state_fails() ? -1 : REAL(mkdir)(path, mode);
}

/* One transfer to the image under the lock, so that the shadow never gets half a page. Its pages are dirty before it
 * begins: the process may be killed as soon as they are in the page cache, and the next life's fdatasync writes them. */
#define TO_IMAGE(fd, offset, bytes, call)                                                                              \
    do {                                                                                                               \
        if (hit(&control->write_errno, &control->write_every, &control->writes))                                       \
            return -1;                                                                                                 \
        delay();                                                                                                       \
        pthread_rwlock_rdlock(&image_lock);                                                                            \
        mark(offset, bytes);                                                                                           \
        __typeof__(call) done = call;                                                                                  \
        int error = errno;                                                                                             \
        pthread_rwlock_unlock(&image_lock);                                                                            \
        errno = error;                                                                                                 \
        return done;                                                                                                   \
    } while (0)

static size_t total(const struct iovec *iov, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

#define PWRITEV(name)                                                                                                  \
    ssize_t name(int fd, const struct iovec *iov, int count, off_t offset)                                             \
    {                                                                                                                  \
        if (!is_image(fd))                                                                                             \
            return REAL(name)(fd, iov, count, offset);                                                                 \
        TO_IMAGE(fd, offset, total(iov, count), REAL(name)(fd, iov, count, offset));                                   \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define PREADV(name)                                                                                                   \
    ssize_t name(int fd, const struct iovec *iov, int count, off_t offset)                                             \
    {                                                                                                                  \
        if (is_image(fd) && hit(&control->read_errno, &control->read_every, &control->reads))                          \
            return -1;                                                                                                 \
        return REAL(name)(fd, iov, count, offset);                                                                     \
    }
PREADV(preadv)
PREADV(preadv64)

#define PWRITE(name)                                                                                                   \
    ssize_t name(int fd, const void *data, size_t bytes, off_t offset)                                                 \
    {                                                                                                                  \
        if (state_fd_fails(fd))                                                                                        \
            return -1;                                                                                                 \
        if (!is_image(fd))                                                                                             \
            return REAL(name)(fd, data, bytes, offset);                                                                \
        TO_IMAGE(fd, offset, bytes, REAL(name)(fd, data, bytes, offset));                                              \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define FALLOCATE(name)                                                                                                \
    int name(int fd, int mode, off_t offset, off_t bytes)                                                              \
    {                                                                                                                  \
        if (!is_image(fd))                                                                                             \
            return REAL(name)(fd, mode, offset, bytes);                                                                \
        TO_IMAGE(fd, offset, (size_t)bytes, REAL(name)(fd, mode, offset, bytes));                                      \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

#define POSIX_FALLOCATE(name)                                                                                          \
    int name(int fd, off_t offset, off_t bytes)                                                                        \
    {                                                                                                                  \
        return state_fd_fails(fd) ? errno : REAL(name)(fd, offset, bytes);                                             \
    }
POSIX_FALLOCATE(posix_fallocate)
POSIX_FALLOCATE(posix_fallocate64)

#define SYNC(name)                                                                                                     \
    int name(int fd)                                                                                                   \
    {                                                                                                                  \
        if (state_fd_fails(fd))                                                                                        \
            return -1;                                                                                                 \
        return is_image(fd) ? sync_image() : REAL(name)(fd);                                                           \
    }
SYNC(fsync)
SYNC(fdatasync)
