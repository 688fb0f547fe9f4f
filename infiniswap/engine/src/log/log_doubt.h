/* A superblock that is neither whole nor empty: was it the one that counted? */
#ifndef ISW_LOG_DOUBT_H
#define ISW_LOG_DOUBT_H

#include "log.h"

struct log_doubt {
    uint64_t *moved, *gone; /* pages that its map has elsewhere, or nowhere; until the chain names them */
    uint16_t *young;        /* of each segment: how many of its blocks such pages have come to */
};

/* Reads the map that it told of, and compares it with the one that was loaded.  *doubt: NULL where that map was never whole, so that no
 * superblock ever told of it.  -ENOMEM. */
int log_doubt_open(const isw_log *log, struct log_doubt **doubt);
void log_doubt_close(struct log_doubt *doubt);
/* The chain has an entry of so many pages. */
void log_doubt_met(struct log_doubt *doubt, uint64_t page, uint64_t pages, enum log_entry_kind kind);
/* After the replay: it had to go on. */
bool log_doubt_stays(const isw_log *log, const struct log_doubt *doubt);

#endif
