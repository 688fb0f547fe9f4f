/* Backup I/O by a few threads with preadv and pwritev: for kernels and containers where io_uring is switched off, and for
 * devices that serve swap.  A disk request takes memory from a reserve that it shares with page-outs on their way to us:
 * when there is none left it waits for those, and io_uring would have the loop wait that they wait for (docs/vm.md). */
#include "backup.h"
#include "infiniswap_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    WORKERS = 8, /* enough to keep a disk's queue filled; each blocks in the kernel */
    READERS = 2, /* of them, which are left to reads: a page-in waits for no page-out */
};

struct list {
    struct backup_request *first, **end;
};

struct pool {
    struct backup base;
    pthread_mutex_t lock; /* guards all that follows */
    pthread_cond_t work;
    struct list reads, others; /* to do */
    struct list done;
    bool ending;
    uint32_t workers, busy_with_others;
    pthread_t thread[WORKERS];
};

static bool zero(struct pool *pool, struct backup_request *request)
{
    int fd = pool->base.fd;
    off_t offset = (off_t)(request->offset + request->moved);
    ssize_t result;
    if (request->zero_way < BACKUP_ZERO_WRITES) {
        result = fallocate(fd, backup_zero_mode(&pool->base, request), offset, (off_t)request->bytes);
    } else {
        uint32_t vectors, bytes;
        const struct iovec *piece = backup_zero_piece(request, &vectors, &bytes);
        result = vectors == 1 ? pwrite(fd, piece->iov_base, bytes, offset) : pwritev(fd, piece, (int)vectors, offset);
    }
    return backup_zeroed(&pool->base, request, result < 0 ? -errno : result);
}

/* False: more of it is to be done, after what else waits. */
static bool perform(struct pool *pool, struct backup_request *request)
{
    int fd = pool->base.fd;
    ssize_t result;
    switch (request->kind) {
    case BACKUP_READ:
    case BACKUP_WRITE:
        do {
            off_t offset = (off_t)(request->offset + request->moved);
            result = request->kind == BACKUP_READ ? preadv(fd, request->iov, (int)request->vectors, offset)
                                                  : pwritev(fd, request->iov, (int)request->vectors, offset);
        } while (!backup_transferred(request, result < 0 ? -errno : result));
        break;
    case BACKUP_SYNC:
        request->error = fdatasync(fd) < 0 ? errno : 0;
        break;
    case BACKUP_SYNC_STATE:
        request->error = fdatasync(request->fd) < 0 ? errno : 0;
        break;
    case BACKUP_ZERO:
        return zero(pool, request);
    }
    return true;
}

static void append(struct list *list, struct backup_request *request)
{
    request->next = NULL;
    *list->end = request;
    list->end = &request->next;
}

static struct backup_request *take(struct list *list)
{
    struct backup_request *request = list->first;
    if (request && !(list->first = request->next))
        list->end = &list->first;
    return request;
}

/* What is next for a worker; NULL: nothing that it may do. */
static struct backup_request *next(struct pool *pool)
{
    struct backup_request *request = take(&pool->reads);
    if (!request && pool->busy_with_others < WORKERS - READERS && (request = take(&pool->others)))
        pool->busy_with_others++;
    return request;
}

static void *run_worker(void *argument)
{
    struct pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct backup_request *request;
        while (!(request = next(pool)) && !(pool->ending && !pool->others.first))
            pthread_cond_wait(&pool->work, &pool->lock);
        if (!request)
            break;
        bool read = request->kind == BACKUP_READ;
        pthread_mutex_unlock(&pool->lock);
        bool finished = perform(pool, request);
        pthread_mutex_lock(&pool->lock);
        append(finished ? &pool->done : &pool->others, request);
        if (!read) {
            pool->busy_with_others--;
            pthread_cond_signal(&pool->work); /* somebody may have left it to the others that were at work */
        }
        if (finished)
            eventfd_write(pool->base.event_fd, 1);
    }
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void submit(struct backup *backup, struct backup_request *request)
{
    struct pool *pool = (struct pool *)backup;
    request->moved = 0;
    request->zero_way = __atomic_load_n(&backup->zero_way, __ATOMIC_RELAXED);
    pthread_mutex_lock(&pool->lock);
    append(request->kind == BACKUP_READ ? &pool->reads : &pool->others, request);
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static struct backup_request *reap(struct backup *backup)
{
    struct pool *pool = (struct pool *)backup;
    eventfd_t ignored;
    eventfd_read(backup->event_fd, &ignored);
    pthread_mutex_lock(&pool->lock);
    struct backup_request *list = pool->done.first;
    pool->done = (struct list){NULL, &pool->done.first};
    pthread_mutex_unlock(&pool->lock);
    return list;
}

static void destroy(struct backup *backup)
{
    struct pool *pool = (struct pool *)backup;
    pthread_mutex_lock(&pool->lock);
    pool->ending = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->workers; i++)
        pthread_join(pool->thread[i], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    close(backup->event_fd);
    close(backup->fd);
    free(pool);
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

struct backup *backup_threads_create(int fd, bool sparse, uint32_t capacity)
{
    (void)capacity; /* requests are linked through themselves */
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return NULL;
    pool->base = (struct backup){&methods, ISW_BACKUP_THREADS, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
                                 fcntl(fd, F_DUPFD_CLOEXEC, 0), sparse, 0};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pool->reads.end = &pool->reads.first;
    pool->others.end = &pool->others.first;
    pool->done.end = &pool->done.first;
    bool works = pool->base.event_fd >= 0 && pool->base.fd >= 0;
    for (; works && pool->workers < WORKERS; pool->workers++)
        works = pthread_create(&pool->thread[pool->workers], NULL, run_worker, pool) == 0;
    if (!works) {
        destroy(&pool->base);
        errno = EAGAIN;
        return NULL;
    }
    return &pool->base;
}
