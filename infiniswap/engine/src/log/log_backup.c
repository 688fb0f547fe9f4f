/* The log as a backup: what is handed in, what comes back from the inner one, and whose it is. */
#include "log.h"

#include <errno.h>
#include <sys/eventfd.h>

void log_done(isw_log *log, struct backup_request *request, int error)
{
    request->error = error;
    request->next = NULL;
    *log->done_end = request;
    log->done_end = &request->next;
}

/* Everything that can go on does. */
static void pump(isw_log *log)
{
    log_read_more(log);
    log_clean_run(log);
    log_append(log);
    log_checkpoint_run(log);
    log_append(log); /* a checkpoint may have mended the chain */
    log_sync_run(log);
}

static isw_log *of(struct backup *backup)
{
    return (isw_log *)backup; /* its first member */
}

static void submit(struct backup *backup, struct backup_request *request)
{
    isw_log *log = of(backup);
    request->moved = 0;
    request->error = 0;
    request->zero_way = 0;
    switch (request->kind) {
    case BACKUP_READ:
        log_list_add(&log->reads, request);
        break;
    case BACKUP_WRITE:
    case BACKUP_ZERO:
        log_add(log, request);
        break;
    case BACKUP_SYNC:
        log_list_add(&log->sync.waiting, request);
        break;
    case BACKUP_SYNC_STATE:
        log->inner->methods->submit(log->inner, request);
        break;
    }
}

static void kick(struct backup *backup)
{
    isw_log *log = of(backup);
    log_listing_run(log); /* here, not in pump: one slice for each round of the user's loop */
    pump(log);
    log->inner->methods->kick(log->inner);
    if (log->done || log->clean.listing.runs) /* the next slice waits for no disk, or other victims are chosen before the last one */
        eventfd_write(backup->event_fd, 1);
}

static void dispatch(isw_log *log, struct backup_request *request)
{
    void *owner = request->owner;
    if (request == &log->sync.inner)
        log_sync_done(log);
    else if (request == &log->checkpoint.inner)
        log_checkpoint_moved(log);
    else if (request == &log->clean.inner)
        log_clean_read(log);
    else if (request->kind == BACKUP_READ)
        log_piece_done(log, owner);
    else if (request->kind == BACKUP_WRITE)
        log_chunk_done(log, owner);
    else
        log_done(log, request, request->error);
}

static struct backup_request *reap(struct backup *backup)
{
    isw_log *log = of(backup);
    struct backup_request *list = log->inner->methods->reap(log->inner);
    while (list) {
        struct backup_request *request = list;
        list = request->next;
        dispatch(log, request);
    }
    pump(log);
    log->inner->methods->kick(log->inner);
    list = log->done;
    log->done = NULL;
    log->done_end = &log->done;
    return list;
}

static void destroy(struct backup *backup)
{
    isw_log *log = of(backup);
    log->inner->methods->destroy(log->inner);
    log->inner = NULL;
}

/* What is handed in at once is written in one go.  So while some of it is being written only a full chunk more is wanted: the
 * slower the disk, the more gathers meanwhile. */
static uint32_t wants(const struct backup_load *load)
{
    if (load->beside < load->depth) /* a chunk is what a page-in waits for */
        return load->writes ? 0 : LOG_CHUNK_ENTRIES;
    bool room = load->writes <= load->depth / 2, enough = !load->writes || load->used >= load->pages + LOG_CHUNK_ENTRIES;
    return load->hurry || (room && enough) ? load->depth : 0;
}

static uint32_t place(const struct backup *backup, uint64_t page)
{
    return ((const isw_log *)backup)->place[page];
}

static void lender(struct backup *backup, const struct backup_lender *of_whom)
{
    of(backup)->clean.borrow.lender = *of_whom;
}

static void lent(struct backup *backup, struct backup_loan *loan)
{
    log_borrow_lent(of(backup), loan);
}

/* The kernel tells of a failed fdatasync once. */
static bool busy(const struct backup *backup)
{
    return ((const isw_log *)backup)->sync.in_flight;
}

static const struct backup_methods methods = {submit, kick, reap, destroy, NULL, wants, place, lender, lent, busy};

struct backup *log_backup_create(isw_log *log, struct backup *inner)
{
    log->inner = inner;
    log->base = (struct backup){&methods, inner->engine, inner->event_fd, -1, inner->sparse, 0};
    return &log->base;
}
