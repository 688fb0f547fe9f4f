/* Backup I/O through io_uring.  Zeroing goes through it too where the kernel and the file system know how. */
#include "backup.h"
#include "infiniswap_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct uring {
    struct backup base;
    struct io_uring ring;
    struct backup_request *retry; /* short transfers: submitted anew at the next kick */
};

static void prepare_zero(struct uring *u, struct io_uring_sqe *sqe, struct backup_request *request, uint64_t offset)
{
    if (request->zero_way < BACKUP_ZERO_WRITES) {
        io_uring_prep_fallocate(sqe, u->base.fd, backup_zero_mode(&u->base, request), (off_t)offset, (off_t)request->bytes);
        return;
    }
    uint32_t vectors, bytes;
    const struct iovec *piece = backup_zero_piece(request, &vectors, &bytes);
    if (vectors == 1)
        io_uring_prep_write(sqe, u->base.fd, piece->iov_base, bytes, offset);
    else
        io_uring_prep_writev(sqe, u->base.fd, piece, vectors, offset);
}

static void prepare(struct uring *u, struct backup_request *request)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe) { /* the queue is as long as the caller's bound; full means not yet submitted */
        io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
        if (!sqe) {
            request->next = u->retry;
            u->retry = request;
            return;
        }
    }
    uint64_t offset = request->offset + request->moved;
    switch (request->kind) {
    case BACKUP_READ:
        if (request->vectors == 1) /* spares the kernel a copy of the vector */
            io_uring_prep_read(sqe, u->base.fd, request->iov->iov_base, (unsigned)request->iov->iov_len, offset);
        else
            io_uring_prep_readv(sqe, u->base.fd, request->iov, request->vectors, offset);
        break;
    case BACKUP_WRITE:
        if (request->vectors == 1)
            io_uring_prep_write(sqe, u->base.fd, request->iov->iov_base, (unsigned)request->iov->iov_len, offset);
        else
            io_uring_prep_writev(sqe, u->base.fd, request->iov, request->vectors, offset);
        break;
    case BACKUP_SYNC:
        io_uring_prep_fsync(sqe, u->base.fd, IORING_FSYNC_DATASYNC);
        break;
    case BACKUP_SYNC_STATE:
        io_uring_prep_fsync(sqe, request->fd, IORING_FSYNC_DATASYNC);
        break;
    case BACKUP_ZERO:
        prepare_zero(u, sqe, request, offset);
        break;
    }
    io_uring_sqe_set_data(sqe, request);
}

static void submit(struct backup *backup, struct backup_request *request)
{
    request->moved = 0;
    request->zero_way = backup->zero_way;
    prepare((struct uring *)backup, request);
}

static void kick(struct backup *backup)
{
    struct uring *u = (struct uring *)backup;
    struct backup_request *again = u->retry;
    u->retry = NULL;
    while (again) {
        struct backup_request *next = again->next;
        prepare(u, again);
        again = next;
    }
    if (io_uring_sq_ready(&u->ring))
        io_uring_submit(&u->ring); /* what it refuses for want of memory stays queued for the next kick */
}

static bool finished(struct uring *u, struct backup_request *request, int result)
{
    if (request->kind == BACKUP_READ || request->kind == BACKUP_WRITE)
        return backup_transferred(request, result);
    if (request->kind == BACKUP_ZERO)
        return backup_zeroed(&u->base, request, result);
    request->error = result < 0 ? -result : 0;
    return true;
}

static struct backup_request *reap(struct backup *backup)
{
    struct uring *u = (struct uring *)backup;
    struct backup_request *list = NULL, **end = &list;
    struct io_uring_cqe *cqe;
    eventfd_t ignored;
    unsigned head, seen = 0;
    eventfd_read(backup->event_fd, &ignored);
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        struct backup_request *request = io_uring_cqe_get_data(cqe);
        seen++;
        if (finished(u, request, cqe->res)) {
            *end = request;
            end = &request->next;
        } else {
            request->next = u->retry;
            u->retry = request;
        }
    }
    *end = NULL;
    io_uring_cq_advance(&u->ring, seen);
    if (u->retry)
        kick(backup);
    return list;
}

static void destroy(struct backup *backup)
{
    struct uring *u = (struct uring *)backup;
    io_uring_queue_exit(&u->ring);
    close(backup->event_fd);
    close(backup->fd);
    free(u);
}

static const struct backup_methods methods = {submit, kick, reap, destroy};

struct backup *backup_uring_create(int fd, bool sparse, uint32_t capacity)
{
    struct uring *u = calloc(1, sizeof *u);
    if (!u)
        return NULL;
    int result = io_uring_queue_init(capacity, &u->ring, IORING_SETUP_CLAMP);
    if (result < 0) {
        free(u);
        errno = -result;
        return NULL;
    }
    u->base = (struct backup){&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
                              fcntl(fd, F_DUPFD_CLOEXEC, 0), sparse, 0};
    result = u->base.event_fd < 0 || u->base.fd < 0 ? -EMFILE : io_uring_register_eventfd(&u->ring, u->base.event_fd);
    if (result < 0) {
        destroy(&u->base);
        errno = -result;
        return NULL;
    }
    return &u->base;
}
