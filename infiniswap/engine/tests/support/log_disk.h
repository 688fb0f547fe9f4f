/* A disk under a log: the inner backup of src/log/ (backup.h), in memory and in one thread, and the file that the log is opened
 * from.  It completes requests in any order, fails in the ways that disks and kernels do, and keeps beside what reads return
 * what a power cut would leave.
 *
 * What the log itself does to the descriptor (pread, pwrite, fdatasync: the linker wraps them, log_disk_fd.c) is
 * accounted for like its requests.  There is one such disk at a time. */
#ifndef LOG_DISK_H
#define LOG_DISK_H

#include "backup.h"
#include "check.h"

enum { LOG_DISK_QUEUE = 1024, LOG_DISK_SYNCS = 8 /* out at once */ };

struct log_disk_manners { /* one_in: 0 is never */
    uint32_t read_error_one_in, write_error_one_in, sync_error_one_in;
    int error;             /* of writes: EIO, ENOSPC */
    uint64_t front_fails;  /* writes of so many bytes at the beginning */
    uint32_t drop_one_in;  /* of the blocks that a failed sync was about: reads as what is durable from then on */
    uint32_t late_one_in;  /* a request is done only when nothing else waits, or by chance */
    uint32_t pieces_one_in; /* a transfer goes in two, and moves its vector on, as the real backends do */
    uint32_t hold;         /* kinds (1 << enum backup_kind) of which none is done */
    bool in_order;
};

enum log_block_flags {
    LOG_BLOCK_DIRTY = 1,     /* changed since the last sync began */
    LOG_BLOCK_FORGOTTEN = 2, /* a sync of it failed, so the kernel thinks that it is clean */
    LOG_BLOCK_BAD = 4,       /* cannot be read until it is written */
    LOG_BLOCK_WRITING = 8,   /* a write of it is in flight */
    LOG_BLOCK_SYNCING = 16,  /* a sync is out that covers it: the first of LOG_DISK_SYNCS */
};

struct log_disk {
    struct backup base; /* first: the log's pointer */
    struct chance chance;
    struct log_disk_manners manners;
    int fd;
    uint64_t size_bytes, blocks;
    uint8_t *image, *durable;
    uint16_t *flags;
    struct log_disk_waiting {
        struct backup_request *request;
        bool kicked, late;
        uint16_t flag; /* a sync's */
    } waiting[LOG_DISK_QUEUE];
    uint32_t count, count_max;
    struct backup_request *done, **done_end;
    uint64_t now_ns;  /* what time it is for the log (sim_wraps.c) */
    uint64_t kill_in; /* 0: never; else dies after so many steps, writes and requests */
    bool dead;        /* the process is: nothing has an effect any more */
    bool running;
    bool eager;       /* all that is handed in is done at once: for who waits for it, as tools do */
    uint64_t requests, reads, writes, syncs, state_syncs, written_blocks;
    uint64_t descriptor_reads; /* what the log asks of it itself */
    uint64_t read_faults, write_faults, sync_faults;
    void (*sync_failed)(void *owner); /* any: the log's own as well */
    void *owner;
};

void log_disk_open(struct log_disk *disk, uint64_t size_bytes, struct chance chance);
void log_disk_close(struct log_disk *disk);
/* A new process': the inner backup. */
struct backup *log_disk_start(struct log_disk *disk);
/* The same for who waits (fake_backup.c): in place of threads. */
struct backup *log_disk_start_eager(struct log_disk *disk);
/* Does one of the requests that wait.  False: there is none that may be done. */
bool log_disk_step(struct log_disk *disk);
/* Requests that wait, and whether one of them may be done. */
uint32_t log_disk_waiting(const struct log_disk *disk);
/* The process has died; its requests are done, not done, or done in part.  Until the next start, and also for what
 * its remains still try, nothing has an effect. */
void log_disk_kill(struct log_disk *disk);
/* Of every block changed since the last good sync there is the old content, the new, or some sectors of both. */
void log_disk_power_cut(struct log_disk *disk);
/* All that was written is durable: what a formatted file is. */
void log_disk_settle(struct log_disk *disk);
/* One bit of the block is another, and durably so; or it cannot be read. */
void log_disk_rot(struct log_disk *disk, uint64_t block, uint32_t byte);
void log_disk_spoil(struct log_disk *disk, uint64_t block);
/* NULL: there is none. */
struct log_disk *log_disk_present(void);
/* Is it this disk's file? NULL: no. */
struct log_disk *log_disk_of(int fd);
/* A point where the process may die. */
void log_disk_point(struct log_disk *disk);

/* Between its own files: */
bool log_disk_one_in(struct log_disk *disk, uint32_t n); /* 0: never */
/* Bytes of the file change; data: NULL for zeroes. */
void log_disk_change(struct log_disk *disk, uint64_t at, const void *data, uint64_t bytes);
uint16_t log_disk_sync_begins(struct log_disk *disk); /* its flag; it covers what was done before, and no more */
int log_disk_sync_ends(struct log_disk *disk, uint16_t flag); /* its error */
void log_disk_syncs_end(struct log_disk *disk); /* those under way answer for nothing any more */
int log_disk_sync_now(struct log_disk *disk);

#endif
