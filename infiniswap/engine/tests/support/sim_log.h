/* A log as the simulated device's backup: the real sources of src/log/ over a disk of bytes (log_disk.h), whose requests take
 * simulated time and are done in any order.  It takes sim_disk's place; that keeps the book of what failed when. */
#ifndef SIM_LOG_H
#define SIM_LOG_H

#include "log_disk.h"
#include "sim_disk.h"

struct sim_log {
    struct backup base; /* first: the log's pointer */
    struct log_disk disk;
    struct sim_disk *book;
    struct sim_system *system;
    struct chance chance;
    struct backup *inner;
    isw_log *log;    /* NULL: there is no process that has it */
    bool used;       /* else the backup is an image */
    uint32_t life;   /* events of an earlier process' requests end with it */
    uint64_t borrowed; /* pages, in all lives */
    uint64_t state_syncs, read_faults, write_faults;
};

/* An empty one. */
void sim_log_open(struct sim_log *log, struct sim_disk *book, uint64_t size_bytes, struct chance chance);
void sim_log_close(struct sim_log *log);
/* A process opens it, and the next device to start gets it. */
isw_log *sim_log_start(struct sim_log *log, bool same_boot);
void sim_log_install(struct sim_log *log);
/* In order: the device is gone. */
void sim_log_stop(struct sim_log *log);
void sim_log_killed(struct sim_log *log);
void sim_log_power_cut(struct sim_log *log);
bool sim_log_has(const struct sim_log *log, uint64_t page);
/* What each page is on the disk, once power has failed. */
void sim_log_durable(struct sim_log *log, uint8_t *image);

#endif
