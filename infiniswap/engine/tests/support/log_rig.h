/* A log, the disk under it, what its pages may be, and who asks for them: one thread, from one seed. */
#ifndef LOG_RIG_H
#define LOG_RIG_H

#include "log_disk.h"
#include "log_oracle.h"

enum {
    LOG_RIG_SLOTS = 32,        /* requests out at once */
    LOG_RIG_WRITE_PAGES = 256, /* as the engine's: RUN_PAGES_MAX, ISW_OP_PAGES_MAX, PUNCH_RUN_PAGES_MAX */
    LOG_RIG_READ_PAGES = 64,
    LOG_RIG_ZERO_PAGES = 4096,
};

struct log_rig_slot {
    struct backup_request request;
    struct iovec iov[LOG_RIG_WRITE_PAGES];
    uint8_t *data;
    bool out;
    uint64_t faults, read_faults, steps; /* when it was sent */
};

struct log_rig_load { /* what is asked for; of 100: the rest are writes */
    uint32_t reads, zeroes, syncs, states;
    uint32_t depth;      /* so many are kept out */
    uint32_t pages_max;  /* of one write */
    uint64_t hot_first, hot_pages; /* where three of four go; 0: anywhere */
};

struct log_rig {
    struct log_disk disk;
    struct log_oracle oracle;
    struct chance chance;
    uint64_t size_bytes;
    isw_log *log;
    struct backup *backup;
    struct log_rig_slot slot[LOG_RIG_SLOTS];
    uint8_t *data;
    uint32_t out;
    bool sync_out;       /* a SYNC or SYNC_STATE is: one at a time, as the device */
    uint64_t steps;      /* of the disk */
    uint32_t lends;           /* 0: nobody lends the pages that the log moves; ISW_BORROW_*: what it is told of when to ask */
    struct backup_loan *loan; /* not answered yet ... */
    uint32_t loans;           /* ... so many */
    uint64_t lent, lent_newer, corrupted;
    uint32_t together_one_in; /* so many reads may be done together with others; 0: none */
    uint64_t last_fault_ns, faults_seen, faults_synced; /* faults_synced: at the last good SYNC */
    uint64_t requests, errors, sync_errors;
};

/* A formatted log of a device of that size, opened; replaces what rig was, whose memory it takes over. */
void log_rig_open(struct log_rig *rig, uint64_t size_bytes, struct chance chance);
void log_rig_close(struct log_rig *rig);
/* Opens the log.  False: the process died over it (log_disk.kill_in), as after log_rig_kill. */
bool log_rig_start(struct log_rig *rig, uint32_t flags);
/* In order; nothing is out. */
void log_rig_stop(struct log_rig *rig);
void log_rig_stop_deaf(struct log_rig *rig); /* it does not hear the end of what is under way */
void log_rig_kill(struct log_rig *rig);
void log_rig_power_cut(struct log_rig *rig); /* after one of the two */
/* False: some page of it is busy, or no slot is free, or a sync is out. */
bool log_rig_submit(struct log_rig *rig, enum backup_kind kind, uint64_t first, uint64_t pages);
/* A request by chance; may submit none. */
void log_rig_ask(struct log_rig *rig, const struct log_rig_load *load);
/* One turn of the loop: what was handed in goes out, some of it is done, and that is looked at.  False: nothing could move. */
bool log_rig_round(struct log_rig *rig);
/* Turns until nothing is out. */
void log_rig_settle(struct log_rig *rig);
/* One request, and its error. */
int log_rig_do(struct log_rig *rig, enum backup_kind kind, uint64_t first, uint64_t pages);
/* So many requests by chance, kept going at the load's depth; ends early when the process dies. */
void log_rig_run(struct log_rig *rig, const struct log_rig_load *load, uint64_t requests);
/* Pages that are lent to the log (log_lender.c): at its start, and some of those that it waits for; false: it waits for none. */
void log_lender_start(struct log_rig *rig);
bool log_lender_answer(struct log_rig *rig);
/* Every page is written. */
void log_rig_fill(struct log_rig *rig);
/* Stops it in order, and starts it again. */
void log_rig_reopen(struct log_rig *rig, uint32_t flags);
struct isw_log_info log_rig_info(const struct log_rig *rig);
/* Block of the file where the page is. */
uint64_t log_rig_block_of(const struct log_rig *rig, uint64_t page);
/* Every page, alone where a longer read fails.  Nothing is out. */
void log_rig_read_all(struct log_rig *rig);
/* isw_log_info and isw_log_extent say what the pages say. */
void log_rig_check_extents(const struct log_rig *rig);

#endif
