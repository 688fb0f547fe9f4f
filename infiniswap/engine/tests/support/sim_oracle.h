/* What the simulated device may hold: every sector is a register, over all lives of device, peers and disk.
 *
 * Time is an order: a number that grows with each thing that happens.  A sector has candidates: values that were written
 * and are not provably history.  A candidate is *gone* once a write that was sent after its end has been acknowledged, or
 * once another value was read while no write was out; it may still be what the disk holds, until a FLUSH that was sent
 * later succeeds.  So:
 *   a read returns a candidate that was not gone when the read was sent;
 *   a killed process takes nothing back: what was out may have been done or not;
 *   after a power cut every candidate is possible again, and only these.
 * EIO is right only where it is said why (oracle_may_be_lost, and the disk's own faults). */
#ifndef SIM_ORACLE_H
#define SIM_ORACLE_H

#include "check.h"
#include "sim_peer.h"

enum { SIM_SECTOR = 512, SIM_CANDIDATES = 24, SIM_PAGE_SECTORS = ISW_PAGE_BYTES / SIM_SECTOR };
#define SIM_NEVER UINT64_MAX

struct sim_candidate {
    uint64_t value; /* 0: zeroes */
    uint64_t sent, done, gone;
    bool past; /* gone, and a FLUSH covers what came after: only a read that is still out may have seen it */
};

struct sim_sector {
    uint32_t count;
    bool more; /* there were more than fit */
    uint64_t more_gone; /* and the last of them was gone then */
    bool any;  /* and then a power cut: one of those may be back */
    struct sim_candidate candidate[SIM_CANDIDATES];
};

struct oracle_page {
    uint64_t unflushed; /* the earliest write that no FLUSH covers; 0: none */
    uint64_t written;   /* the latest end of a write */
    uint64_t mended;    /* when it last ceased to be lost, perhaps: a request sent earlier may have met it so */
    uint64_t torn;      /* when the disk last refused a write of it; a request sent earlier may have been past it */
    uint64_t doubted;   /* when */
    bool doubtful;      /* a sync of the only copy failed: it may be any version since the last that went well */
    bool fragile;       /* it was unflushed when a process was killed: perhaps no copy but a remote one is left */
    bool lost;          /* and that has come to harm: perhaps none is left, until the page is written */
    bool was_lost;      /* it was at the last FLUSH or since: after a power cut it may be so again or, written since, any older version */
};

struct oracle {
    uint64_t now, killed; /* orders */
    uint64_t oldest;      /* when the request was sent that has been out longest; kept by the clients */
    uint64_t sectors, pages, slab_pages;
    struct sim_sector *sector;
    struct oracle_page *page;
    uint64_t harmed[SIM_SLABS_MAX]; /* when the slab's remote copies last may have come to harm */
    void (*explain)(void *owner, uint64_t sector);
    void *owner;
};

struct oracle_write {
    uint64_t value, sent, first, sectors;
};

void oracle_open(struct oracle *o, uint64_t size_bytes, uint64_t slab_bytes);
void oracle_close(struct oracle *o);
uint64_t oracle_now(struct oracle *o);
struct oracle_write oracle_write_sent(struct oracle *o, uint64_t first, uint64_t sectors, bool zeroes);
/* ok: acknowledged; else it was done or not, or in part. durable: and flushed, as FUA does. */
void oracle_write_done(struct oracle *o, const struct oracle_write *write, bool ok, bool durable);
/* What a write of this value looks like. */
void oracle_fill(uint64_t value, uint64_t sectors, uint8_t *out);
void oracle_read(struct oracle *o, uint64_t sent, uint64_t first, uint64_t sectors, const uint8_t *data, const char *what);
/* BLOCK_STATUS said: zeroes. */
void oracle_read_hole(struct oracle *o, uint64_t sent, uint64_t first, uint64_t sectors);
/* A FLUSH sent then has succeeded. */
void oracle_flushed(struct oracle *o, uint64_t sent);
void oracle_process_killed(struct oracle *o);
void oracle_power_cut(struct oracle *o);
/* A write of these sectors that the disk refused: what it holds of the page may be torn, so the old version is a remote copy's
 * alone. since: harm that came later counts. */
void oracle_write_torn(struct oracle *o, uint64_t page, uint64_t since);
/* A sync of the page's only copy failed. */
void oracle_doubted(struct oracle *o, uint64_t page);
void oracle_harmed(struct oracle *o, uint32_t slab);
/* May a page have no copy left?  Only when a process was killed before the page was flushed, and the memory that held it came
 * to harm after it was written. */
bool oracle_may_be_lost(const struct oracle *o, uint64_t page);
/* Or may have been, when a request was sent then? */
bool oracle_was_lost(const struct oracle *o, uint64_t page, uint64_t sent);
bool oracle_any_was_lost(const struct oracle *o, uint64_t sent);

#endif
