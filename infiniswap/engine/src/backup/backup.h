/* Where pages go behind the request: an image on a disk, behind an interface (a log-structured one may come).
 *
 * One thread submits and reaps.  The caller keeps at most `capacity` requests in flight; requests are its memory. */
#ifndef ISW_BACKUP_H
#define ISW_BACKUP_H

#include "infiniswap_engine.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum backup_kind { BACKUP_READ, BACKUP_WRITE, BACKUP_SYNC, BACKUP_ZERO, BACKUP_SYNC_STATE /* of another file: fd */ };

struct backup_request {
    enum backup_kind kind;
    struct iovec *iov; /* READ, WRITE: page-aligned; may be advanced by a short transfer */
    uint32_t vectors;
    uint64_t offset;
    uint64_t bytes;
    int fd;             /* SYNC_STATE */
    int error;          /* errno, once reaped */
    uint64_t moved;     /* backend's own */
    uint32_t zero_way;  /* ZERO, backend's own: see backup_zero_mode */
    void *owner;
    struct backup_request *next; /* backend's own, then the reaped list */
};

struct backup;

struct backup_methods {
    void (*submit)(struct backup *backup, struct backup_request *request);
    void (*kick)(struct backup *backup); /* submitted requests reach the kernel no later than this */
    struct backup_request *(*reap)(struct backup *backup); /* list of what is done */
    void (*destroy)(struct backup *backup);
};

struct backup {
    const struct backup_methods *methods;
    int engine;   /* ISW_BACKUP_* */
    int event_fd; /* readable when there is something to reap */
    int fd;
    bool sparse;
    uint32_t zero_way; /* the first that the file system is not known to refuse */
};

/* NULL and errno when this way of doing I/O does not work here. */
struct backup *backup_uring_create(int fd, bool sparse, uint32_t capacity);
struct backup *backup_threads_create(int fd, bool sparse, uint32_t capacity);

/* Shared by the backends: account for a transfer of result bytes (or -errno).  True: the request is finished. */
bool backup_transferred(struct backup_request *request, int64_t result);
/* Zeroing goes from one way to the next as they are refused: fallocate in one mode or the other, at last writes, in pieces. */
enum { BACKUP_ZERO_WRITES = 2 };
int backup_zero_mode(const struct backup *backup, const struct backup_request *request);
/* The next piece to be written: all of its vectors or, where there is one, *bytes of it. */
const struct iovec *backup_zero_piece(const struct backup_request *request, uint32_t *vectors, uint32_t *bytes);
/* As backup_transferred, for a step of zeroing. */
bool backup_zeroed(struct backup *backup, struct backup_request *request, int64_t result);

/* Adds a page to a vector of count elements, to its last one where they adjoin; returns the new count. */
static inline uint32_t vector_append(struct iovec *iov, uint32_t count, uint8_t *page)
{
    if (count && (uint8_t *)iov[count - 1].iov_base + iov[count - 1].iov_len == page) {
        iov[count - 1].iov_len += ISW_PAGE_BYTES;
        return count;
    }
    iov[count] = (struct iovec){page, ISW_PAGE_BYTES};
    return count + 1;
}

#endif
