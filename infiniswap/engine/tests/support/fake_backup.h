/* A disk in memory, put in place of the engine's backends (the linker wraps their constructors): it delays, reorders and
 * fails requests, and knows what would survive a power cut.  It checks what every backup may rely on: requests within
 * the capacity, page-aligned, one sync at a time, and never two writes of one block in flight. */
#ifndef FAKE_BACKUP_H
#define FAKE_BACKUP_H

#include "rig.h"

#include <stdatomic.h>

/* Not 0: fallocate does nothing and fails with it, as where the file system does not know how. */
extern int fake_fallocate_error;

struct fake_disk;

struct fake_manners {
    atomic_bool stall; /* whoever submits waits, and the engine's loop with it */
    atomic_uint delay_us_max; /* each request takes between nothing and this; longer ones are overtaken */
    atomic_uint write_error_one_in, read_error_one_in, sync_error_one_in; /* 0: never */
    atomic_bool hold_writes, hold_syncs, hold_reads; /* nothing of the kind is done until it is false again ... */
    atomic_int let_writes; /* ... but so many writes, the oldest first */
    atomic_int fail_syncs;   /* so many fail: the next ones, and none that a log makes because of that */
    atomic_int bad_block;  /* block + 1 whose writes fail; 0: none.  Of an image it is the page */
    atomic_int bad_read;   /* the same of reads */
    atomic_uint state_error_one_in; /* a sync of the state file fails */
    atomic_bool quiet;       /* as io_uring: tells of what is done only who asks to be told; before the device starts */
    atomic_bool sync_loses; /* what a sync fails over is gone: it reads as it was after the last good one */
};

/* Under the rig's backup, be it an image or a log; after rig_prepare. */
struct fake_disk *fake_disk_open(const struct rig *rig, uint64_t chance_number);
/* The next device to start gets this disk; closed by fake_disk_close after the device is freed. */
void fake_disk_install(struct fake_disk *disk);
/* The next device to start gets a backup of the caller's own instead: what create makes of it. */
struct backup;
struct fake_backup {
    struct backup *(*create)(struct backup *backup, uint32_t capacity);
    struct backup *backup;
};
void fake_backup_install(struct fake_backup backup);
void fake_disk_close(struct fake_disk *disk);
struct fake_manners *fake_disk_manners(struct fake_disk *disk);
/* What a read would return; what a power cut would leave.  Size of the device. */
void fake_disk_image(struct fake_disk *disk, uint8_t *out);
void fake_disk_durable(struct fake_disk *disk, uint8_t *out);
/* The engine's loop waits in submit. */
bool fake_disk_stalled(struct fake_disk *disk);
/* A quiet one: somebody asked to be told. */
bool fake_disk_told(struct fake_disk *disk);
/* Requests that were submitted and are not done; and the first page of the oldest write among them. */
uint32_t fake_disk_waiting(struct fake_disk *disk);
uint32_t fake_disk_waiting_writes(struct fake_disk *disk);
uint64_t fake_disk_oldest_write(struct fake_disk *disk);
uint64_t fake_disk_syncs(struct fake_disk *disk);
/* The state file lies on it, too: what of this a power cut would leave (page table entry of a page). */
void fake_disk_state(struct fake_disk *disk, const struct isw_page *table, uint64_t pages);
struct isw_page fake_disk_durable_entry(struct fake_disk *disk, uint64_t page);
uint64_t fake_disk_state_syncs(struct fake_disk *disk);

#endif
