/* A backup file that somebody cuts short. */
#ifndef ISW_BACKUP_WATCH_H
#define ISW_BACKUP_WATCH_H

#include <stdint.h>

struct device;

struct backup_file_watch {
    uint64_t next_ns, checked_ns;
    uint64_t lowest; /* page of all writes since none was in flight */
};

void backup_watch(struct device *d);
void backup_before_write(struct device *d, uint64_t page);

#endif
