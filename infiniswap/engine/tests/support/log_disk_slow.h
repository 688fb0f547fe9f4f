/* A disk under a log that takes its time, which is counted and not waited for: so many requests and bytes a second, written and
 * read apart, as a control group holds a disk; or one head for all, that takes its time from one place to another; and what it was
 * asked for. */
#ifndef LOG_DISK_SLOW_H
#define LOG_DISK_SLOW_H

#include "log_disk.h"

struct log_disk_slow {
    struct backup base; /* first: the log's pointer */
    struct log_disk clock; /* of the process: what time it is (sim_wraps.c) */
    uint64_t writes_per_s, bytes_per_s;
    uint64_t seek_ns; /* 0: it has no head */
    uint64_t head;    /* where it stands; offset */
    bool one_bandwidth; /* reads and writes share it */
    bool reads_free;  /* what is read comes from elsewhere, and at once */
    uint64_t request_free_ns, write_free_ns, read_free_ns; /* when it takes the next one; the head: write_free_ns */
    int fd;
    uint8_t *image;
    uint64_t size_bytes;
    struct log_disk_slow_waiting {
        struct backup_request *request;
        uint64_t ready_ns;
    } waiting[LOG_DISK_QUEUE];
    uint32_t count;
    struct backup_request *done, **done_end;
    uint64_t writes, written_blocks, reads, read_blocks, seeks, syncs;
};

void log_disk_slow_open(struct log_disk_slow *disk, uint64_t size_bytes);
struct backup *log_disk_slow_start(struct log_disk_slow *disk);
bool log_disk_slow_ready(const struct log_disk_slow *disk); /* a request is */
/* The request that is ready first is done, when it is.  False: there is none. */
bool log_disk_slow_step(struct log_disk_slow *disk);
void log_disk_slow_close(struct log_disk_slow *disk);

#endif
