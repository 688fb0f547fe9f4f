#include "backup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stddef.h>
#include <unistd.h>

bool backup_transferred(struct backup_request *request, int64_t result)
{
    if (result == -EAGAIN || result == -EINTR)
        return false;
    if (result <= 0) {
        request->error = result ? (int)-result : EIO; /* nothing moved: the image ends early */
        return true;
    }
    request->moved += (uint64_t)result;
    if (request->moved >= request->bytes) {
        request->error = 0;
        return true;
    }
    uint64_t skip = (uint64_t)result;
    while (skip >= request->iov->iov_len) {
        skip -= request->iov->iov_len;
        request->iov++;
        request->vectors--;
    }
    request->iov->iov_base = (char *)request->iov->iov_base + skip;
    request->iov->iov_len -= skip;
    return false;
}

int backup_zero(int fd, bool sparse, uint64_t offset, uint64_t bytes)
{
    static const int modes[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    /* First the way that keeps the image as the user wanted it, then the other, then by hand. */
    for (int i = 0; i < 2; i++)
        if (fallocate(fd, modes[sparse ? i : 1 - i], (off_t)offset, (off_t)bytes) == 0)
            return 0;
    static _Alignas(4096) const char zeroes[65536];
    while (bytes) {
        size_t now = bytes < sizeof zeroes ? (size_t)bytes : sizeof zeroes;
        ssize_t done = pwrite(fd, zeroes, now, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? errno : EIO;
        offset += (uint64_t)done;
        bytes -= (uint64_t)done;
    }
    return 0;
}
