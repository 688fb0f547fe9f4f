/* Backup I/O through io_uring.  Zeroing goes through it too where the kernel and the file system know how. */
#include "backup.h"
#include "infiniswap_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FETCHES_MAX = 4 }; /* for one reap */

struct uring {
    struct backup base;
    struct io_uring ring;
    bool enabled; /* by the thread that uses it */
    struct backup_request *retry; /* short transfers: submitted anew at the next kick */
};

/* Requests have ended, and the kernel waits for us to come for the results. */
static bool results_wait(const struct uring *u)
{
    return IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static void enable(struct uring *u)
{
    if (!u->enabled) /* liburing 2.3 forgets to export its function for it */
        syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    u->enabled = true;
}

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
        enable(u);
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
    enable(u);
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

static void tell(struct uring *u, bool told)
{
    if (io_uring_cq_eventfd_enabled(&u->ring) == told)
        return;
    io_uring_cq_eventfd_toggle(&u->ring, told);
    atomic_thread_fence(memory_order_seq_cst); /* who ends a request now tells of it, or we see it */
}

/* Without being told that they have come; of what comes meanwhile we are, or see it. */
static void fetch_results(struct uring *u)
{
    bool told = io_uring_cq_eventfd_enabled(&u->ring);
    for (int tries = 0; results_wait(u) && tries < FETCHES_MAX; tries++) {
        tell(u, false);
        io_uring_get_events(&u->ring);
        tell(u, told);
    }
    if (told && results_wait(u))
        eventfd_write(u->base.event_fd, 1);
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
    unsigned head, seen = 0;
    enable(u);
    fetch_results(u);
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

static bool attend(struct backup *backup, bool told)
{
    struct uring *u = (struct uring *)backup;
    tell(u, told);
    return io_uring_cq_ready(&u->ring) || results_wait(u);
}

/* The kernel does what is left to do for requests that have ended when it is asked for results, for many at once: it does not interrupt
 * the loop for each.  Kernels before 6.1 cannot do that. */
static int open_ring(struct uring *u, uint32_t capacity)
{
    unsigned at_leisure = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    int result = io_uring_queue_init(capacity, &u->ring, IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED | at_leisure);
    if (result != -EINVAL)
        return result;
    u->enabled = true;
    return io_uring_queue_init(capacity, &u->ring, IORING_SETUP_CLAMP);
}

static const struct backup_methods methods = {submit, kick, reap, destroy, attend, backup_image_wants, NULL, NULL, NULL, NULL};

struct backup *backup_uring_create(int fd, bool sparse, uint32_t capacity)
{
    struct uring *u = calloc(1, sizeof *u);
    if (!u)
        return NULL;
    int result = open_ring(u, capacity);
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
