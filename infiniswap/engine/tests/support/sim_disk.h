/* The simulation's disk, a backup of the engine (backup.h): it takes its time, fails in every way that disks do, and
 * knows what would survive a power cut.  Checks what every backup may rely on, as fake_backup.c does. */
#ifndef SIM_DISK_H
#define SIM_DISK_H

#include "backup.h"
#include "infiniswap_engine.h"
#include "sim_system.h"

enum { SIM_DISK_QUEUE = 512 };

struct sim_disk_manners { /* one_in: 0 is never */
    uint32_t request_ns_max, sync_ns_max;
    uint32_t stall_one_in, stall_ns; /* now and then one takes so much longer */
    uint32_t read_error_one_in, write_error_one_in, sync_error_one_in, sync_drop_one_in;
    int error;              /* of writes: EIO, ENOSPC */
    uint32_t bad_one_in;    /* a written page's sector turns bad */
    uint64_t fail_nth;      /* this one, counted from 1, of all requests */
};

/* What became of the last sync: a process that dies before it has made something of an error takes the news with it. */
enum sim_state_sync { SIM_STATE_BEGUN, SIM_STATE_SYNCED, SIM_STATE_FAILED };
enum sim_sync { SIM_SYNC_HEARD, SIM_SYNC_FAILED, SIM_SYNC_BEING_HEARD };
enum { SIM_PAGE_DIRTY = 1, SIM_PAGE_SYNCING = 2, SIM_PAGE_IN_FLIGHT = 4, SIM_PAGE_BAD = 8, SIM_PAGE_ALLOCATED = 16,
       SIM_PAGE_FORGOTTEN = 32, /* a sync of it failed: what it reads as is not what is durable */
       SIM_PAGE_SUSPECT = 64, /* a sync has failed while a write of it was under way ... */
       SIM_PAGE_DOOMED = 128 /* ... and that told of this write */ };

struct sim_disk {
    struct backup base; /* first: the engine's pointer */
    struct sim_system *system;
    struct chance chance;
    struct sim_disk_manners manners;
    uint64_t size_bytes, pages;
    uint8_t *image, *durable, *flags; /* flags: SIM_PAGE_* of each page */
    struct backup_request *waiting[SIM_DISK_QUEUE]; /* NULL: free */
    uint32_t count, capacity, life; /* life: requests of an earlier process' disk queue end with it */
    struct backup_request *done, **done_end;
    bool silent; /* nobody waits: nobody is told of what is done */
    bool sync_waits; /* one of either kind */
    enum sim_sync last_sync;
    uint64_t requests, faults, syncs; /* syncs: of this process */
    uint64_t *fault_order; /* of each page: when (oracle's order) a request to it failed last */
    uint64_t change_fault_order, sync_fault_order;
    uint64_t (*order)(void *owner); /* what time it is for the oracle */
    void *order_owner;
    void (*told)(void *owner, const char *what, uint64_t first, uint64_t pages, int error);
    void (*doubted)(void *owner, uint64_t page, bool still); /* a sync of it failed; or, after that, went well */
    void (*suspected)(void *owner, uint64_t page); /* a sync failed while it was written, perhaps over that */
    void (*unheard)(void *owner, uint64_t page); /* a sync of it failed, and who had asked for it was killed just then */
    void (*state)(void *owner, enum sim_state_sync step); /* the state file lies here, too */
    void *owner;
};

void sim_disk_open(struct sim_disk *disk, struct sim_system *system, uint64_t size_bytes, struct chance chance);
void sim_disk_close(struct sim_disk *disk);
/* The next device to start gets it (fake_backup.c). */
void sim_disk_install(struct sim_disk *disk);
/* The device's process has died: what was on its way may be done, not done, or done in part. */
void sim_disk_killed(struct sim_disk *disk);
/* Of what was not synced, each sector may be there or not. */
void sim_disk_power_cut(struct sim_disk *disk);

#endif
