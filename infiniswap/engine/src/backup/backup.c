#include "backup.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stddef.h>

enum { ZERO_PIECE_VECTORS = 16 }; /* a MiB: what else waits for the disk has its turn in between */

/* Nothing is gained by haste: a page that waits may be rewritten, trimmed, or joined by its neighbours.  So the disk's queue is
 * filled in proportion to the pending buffers in use, and wholly when somebody waits.  It is filled again when half of that is
 * done: one system call then begins many writes. */
uint32_t backup_image_wants(const struct backup_load *load)
{
    uint32_t most = load->hurry ? load->depth : 2 + (uint32_t)((uint64_t)load->used * load->depth / load->buffers);
    if (most > load->beside)
        most = load->beside;
    return load->writes <= most / 2 ? most : 0;
}

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
