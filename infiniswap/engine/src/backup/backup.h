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
    const uint32_t *crc; /* WRITE, for a log: CRC32C of each page where the user knows it, or NULL */
    bool together;      /* READ, for a log: one read may bring it and what was handed in behind it, which says so as well */
    int fd;             /* SYNC_STATE */
    int error;          /* errno, once reaped */
    uint64_t moved;     /* backend's own */
    uint32_t zero_way;  /* ZERO, backend's own: see backup_zero_mode */
    void *owner;
    struct backup_request *next; /* backend's own, then the reaped list */
};

struct backup;

struct backup_loan { /* a page that a log wants to write anew, and need not read from the disk where its user has it elsewhere */
    uint64_t page;
    uint8_t *data; /* where it is to come */
    bool got;      /* answered: it is there */
    bool newer;    /* and it may be of a version that has not come to the backup */
};

struct backup_lender { /* the backup's user */
    void *owner;
    uint32_t when; /* 0: where it pays, or ISW_BORROW_* */
    /* So many, by the numbers of their pages.  Each is answered once by methods->lent, at once or later; while one is not, the lender
     * may be asked for no more. */
    void (*lend)(void *owner, struct backup_loan *loans, uint32_t count);
};

struct backup_load { /* of write-behind */
    uint32_t depth;         /* writes that may be in flight at most */
    uint32_t writes, pages; /* that are; and pages in them */
    uint32_t used, buffers; /* pending buffers in use, those pages included, of so many */
    uint32_t beside;        /* writes that may be in flight beside page-ins; depth: there are none */
    bool hurry;             /* somebody waits */
};

/* Reading over what nobody wants of so little takes a disk no longer than another read: flash by its bandwidth, one that seeks by far. */
enum { BACKUP_GAP_PAGES = 16 };

struct backup_methods {
    void (*submit)(struct backup *backup, struct backup_request *request);
    void (*kick)(struct backup *backup); /* submitted requests reach the kernel no later than this */
    struct backup_request *(*reap)(struct backup *backup); /* list of what is done */
    void (*destroy)(struct backup *backup);
    /* Whether reap would bring anything.  told: event_fd is to tell of what is done from now on; else it need not, and who waits for
     * nothing is not woken.  NULL: it always tells. */
    bool (*attend)(struct backup *backup, bool told);
    uint32_t (*wants)(const struct backup_load *load); /* how many writes it would have in flight now, those that are included */
    uint32_t (*place)(const struct backup *backup, uint64_t page); /* where a page lies, in pages; NULL: where its number says */
    void (*lender)(struct backup *backup, const struct backup_lender *lender); /* of whom it may borrow from now on; NULL: it never does */
    void (*lent)(struct backup *backup, struct backup_loan *loan);
    bool (*busy)(const struct backup *backup); /* with what a stop has to hear the end of; NULL: it never is */
};

struct backup {
    const struct backup_methods *methods;
    int engine;   /* ISW_BACKUP_* */
    int event_fd; /* an eventfd that is written when there is something to reap; wait for edges, or read it */
    int fd;
    bool sparse;
    uint32_t zero_way; /* the first that the file system is not known to refuse */
};

/* NULL and errno when this way of doing I/O does not work here. */
struct backup *backup_uring_create(int fd, bool sparse, uint32_t capacity);
struct backup *backup_threads_create(int fd, bool sparse, uint32_t capacity);

uint32_t backup_image_wants(const struct backup_load *load); /* wants of an image, whatever the way of doing I/O */

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
