#include "backup.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stddef.h>

enum { ZERO_PIECE_VECTORS = 16 }; /* a MiB: what else waits for the disk has its turn in between */

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

/* First the way that keeps the image as the user wanted it, then the other, then by hand. */
int backup_zero_mode(const struct backup *backup, const struct backup_request *request)
{
    bool punch = backup->sparse == (request->zero_way == 0);
    return (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
}

const struct iovec *backup_zero_piece(const struct backup_request *request, uint32_t *vectors, uint32_t *bytes)
{
    enum { BLOCK = 65536 };
    static _Alignas(4096) const char zeroes[BLOCK];
    static const struct iovec piece[ZERO_PIECE_VECTORS] = {[0 ... ZERO_PIECE_VECTORS - 1] = {(void *)(uintptr_t)zeroes, BLOCK}};
    uint64_t left = request->bytes - request->moved;
    *vectors = left / BLOCK < ZERO_PIECE_VECTORS ? (uint32_t)(left / BLOCK) : ZERO_PIECE_VECTORS;
    *bytes = *vectors * BLOCK;
    if (!*vectors) {
        *vectors = 1;
        *bytes = (uint32_t)left;
    }
    return piece;
}

bool backup_zeroed(struct backup *backup, struct backup_request *request, int64_t result)
{
    if (result == -EAGAIN || result == -EINTR)
        return false;
    if (request->zero_way == BACKUP_ZERO_WRITES) {
        request->error = result > 0 ? 0 : result ? (int)-result : EIO;
        request->moved += result > 0 ? (uint64_t)result : 0;
        return request->error || request->moved >= request->bytes;
    }
    request->error = 0;
    if (result >= 0)
        return true;
    request->zero_way++;
    if (result == -EOPNOTSUPP) /* nor will it ever */
        __atomic_store_n(&backup->zero_way, request->zero_way, __ATOMIC_RELAXED);
    return false;
}
