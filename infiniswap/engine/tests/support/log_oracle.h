/* What the pages of a log may be, over all lives of its process and its disk.
 *
 * Each write or trim of a page is a version of it.  A page keeps those that are not provably history: the last one that a good
 * SYNC covers, and all since.  So:
 *   a read returns the last version that was told done, or one that was told failed since;
 *   after a death in the same boot the same, or one that was out;
 *   after a power cut any that is kept; and what is read then, that is durable;
 *   EIO and older ones only where a sync of the disk's failed over the page, and it has not been written since. */
#ifndef LOG_ORACLE_H
#define LOG_ORACLE_H

#include "check.h"

enum log_version_state { LOG_VERSION_OUT, LOG_VERSION_DONE, LOG_VERSION_FAILED };

struct log_version {
    uint32_t number; /* of the page, from 1; 0: never written */
    uint8_t state;
    bool zero;
};

enum log_page_mood { LOG_PAGE_SURE, LOG_PAGE_KILLED, LOG_PAGE_CUT }; /* nobody has looked at it since */

struct log_page {
    struct log_version *version; /* oldest first */
    uint32_t count, room, next;
    uint32_t mark; /* the version that the SYNC under way covers */
    uint8_t mood;
    bool mark_sure; /* else it covers nothing new: it was doubtful then */
    bool out;      /* a write or trim is */
    bool doubt;    /* a sync of the disk's failed over it, and it has not been written since ... */
    bool told;     /* ... and whoever asked for a sync knows */
    bool shaky;    /* one fails while a version is out */
    bool fragile;  /* one failed over it, and no good one covers what was written since: after a power cut, EIO perhaps */
    bool rotten;   /* the test has spoiled its place on the disk: EIO, until it is written */
};

struct log_oracle {
    uint64_t pages;
    struct log_page *page;
    uint64_t reads, errors; /* looked at; and of those, EIO */
};

void log_oracle_open(struct log_oracle *o, uint64_t pages);
void log_oracle_close(struct log_oracle *o);
/* A version goes out; its content: log_oracle_fill. */
uint32_t log_oracle_sent(struct log_oracle *o, uint64_t page, bool zero);
void log_oracle_done(struct log_oracle *o, uint64_t page, bool ok);
void log_oracle_fill(uint64_t page, uint32_t version, uint8_t *out);
/* data: NULL for an error.  may_fail: the disk refused a read meanwhile. */
void log_oracle_read(struct log_oracle *o, uint64_t page, const uint8_t *data, bool may_fail, const char *what);
void log_oracle_sync_sent(struct log_oracle *o);
void log_oracle_synced(struct log_oracle *o, bool ok);
/* A sync of the disk's has failed, the log's own or not. */
void log_oracle_doubt(struct log_oracle *o);
void log_oracle_killed(struct log_oracle *o);
void log_oracle_power_cut(struct log_oracle *o);
/* Does the page have a place in the log?  1, 0, or -1: nobody can say. */
int log_oracle_placed(const struct log_oracle *o, uint64_t page);

#endif
