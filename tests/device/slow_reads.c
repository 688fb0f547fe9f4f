/* A disk on which half a MiB or more takes 20 ms to read (LD_PRELOAD): what a log reads in order to clean a segment does. */
#include <dlfcn.h>
#include <sys/uio.h>
#include <time.h>

enum { LONG_BYTES = 1 << 19, LONG_NS = 20000000 };

static ssize_t slowly(const char *name, int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int, const struct iovec *, int, off_t);
    *(void **)&real = dlsym(RTLD_NEXT, name);
    ssize_t done = real(fd, iov, count, offset);
    if (done >= LONG_BYTES)
        nanosleep(&(struct timespec){.tv_nsec = LONG_NS}, NULL);
    return done;
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    return slowly("preadv", fd, iov, count, offset);
}

ssize_t preadv64(int fd, const struct iovec *iov, int count, off_t offset)
{
    return slowly("preadv64", fd, iov, count, offset);
}
