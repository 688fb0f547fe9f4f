/* A log: a backup that is written in sequence (src/log/, ARCHITECTURE.md).  Part of infiniswap_engine.h. */
#ifndef INFINISWAP_LOG_H
#define INFINISWAP_LOG_H

#include <stddef.h>
#include <stdint.h>

typedef struct isw_log isw_log;

enum isw_log_flags {
    ISW_LOG_READ_ONLY = 1u << 0,
    ISW_LOG_SAME_BOOT = 1u << 1, /* no power cut since it was written: what was complete when its process ended must be there */
    ISW_LOG_DAMAGED = 1u << 2,   /* also where what was written last cannot be found (pages may be older ones then), or a map in part (EIO) */
};
/* When the pages that it moves come from peers and memory, and not from its disk; 0: where that is slow. */
enum { ISW_BORROW_ALWAYS = 1, ISW_BORROW_NEVER = 2 };
struct isw_log_info {
    uint8_t id[16];
    uint64_t size_bytes;  /* of the device */
    uint64_t file_bytes;
    uint64_t live_pages;  /* that have a place in it */
    uint64_t segments, free_segments, cleaned_segments, checkpoints;
    uint64_t borrowed_pages;  /* of those that were moved by cleaning: from peers or memory, and not read */
    uint64_t replayed_chunks; /* at the opening */
    uint64_t torn_pages;      /* found there: under way when the writer ended; their version before counts */
    uint64_t ends_early;      /* 1: what was written last could not be found (ISW_LOG_DAMAGED) */
    uint64_t bad_pages;       /* that did not meet their checksum when they were read: EIO until they are written */
};
/* What a log for a device of that size takes. */
int isw_log_file_bytes(uint64_t size_bytes, uint64_t *file_bytes);
/* What the log in fd takes, by its superblock: also of one that cannot be opened because it was cut short.  -EMEDIUMTYPE: it has none. */
int isw_log_told_bytes(int fd, uint64_t *file_bytes);
/* An empty one; fd: a file or block device of isw_log_file_bytes at least, all of which it uses; written and synced when this returns.
 * -errno. */
int isw_log_format(int fd, uint64_t size_bytes);
/* fd: the engine dups it.  NULL: error tells why; an errno of EMEDIUMTYPE: it holds no log; of EUCLEAN or EBADMSG: ISW_LOG_DAMAGED may do. */
isw_log *isw_log_open(int fd, uint32_t flags, char *error, size_t error_bytes);
/* Where a device had it that device is closed.  Says in the log that all is durable. */
void isw_log_close(isw_log *log);
void isw_log_info(const isw_log *log, struct isw_log_info *info);
/* The next stretch of pages that have a place, from that page on.  0: there is none. */
int isw_log_extent(const isw_log *log, uint64_t from, uint64_t *first, uint64_t *end);
/* For tools, and while no device has it: these block.  Offsets and lengths are multiples of the page, at most 1 MiB. -errno. */
int isw_log_read(isw_log *log, void *data, uint64_t offset, uint32_t bytes);
int isw_log_write(isw_log *log, const void *data, uint64_t offset, uint32_t bytes);
int isw_log_sync(isw_log *log);

#endif
