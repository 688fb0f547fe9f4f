/* What pages at peers are sealed with. */
#ifndef ISW_SEALS_H
#define ISW_SEALS_H

#include "infiniswap_engine.h"

#include <stdbool.h>

struct device;
struct op;

struct seals {
    isw_sealer *sealer; /* NULL: pages travel as they are */
    struct isw_seals_header *header;
    struct isw_seal (*intent)[ISW_OP_PAGES_MAX]; /* of each operation: what it is sending */
    struct isw_seal *page;                       /* of the remote copy; meaningful while ISW_PAGE_REMOTE or ISW_PAGE_WRITING */
    uint8_t *data;    /* a sealed page beside each pending buffer: free, held and an orphan's as that one is */
    uint8_t *scratch; /* one page */
};

static inline uint64_t seal_serial(const struct isw_seal *seal)
{
    return (uint64_t)seal->serial[1] << 32 | seal->serial[0];
}

/* NULL, or what is wrong. */
const char *seals_open(struct device *d);
void seals_close(struct device *d);

/* Of page at of the operation: seals it from one place to another (or in place), and notes with what in its intent. */
void seal_page(struct device *d, struct op *op, uint32_t at, const uint8_t *plain, uint8_t *sealed);
/* The operation sends nothing that is sealed: a restarted device shall not try with what an earlier one did. */
void seals_forget_intent(struct device *d, struct op *op);
/* The remote copy is the one that the operation has sent.  Before ISW_PAGE_REMOTE or the checksum say so. */
void seal_commit(struct device *d, struct op *op, uint32_t at);

/* Remembers the seal that the page has now; has it that one still? */
void seal_note(struct device *d, struct op *op, uint32_t at);
bool seal_same(const struct device *d, const struct op *op, uint32_t at);

/* Is a remote copy that has come from a peer the one that counts?  A seal that opens says so by itself; data is opened in place. */
bool remote_is_good(struct device *d, uint64_t page, uint8_t *data);
/* The checksum of a remote copy that has come from a peer, opened in place where pages are sealed.  What nobody sealed so has
 * none: the answer is one that the page's is not, and false. */
bool remote_checksum(struct device *d, uint64_t page, uint8_t *data, uint32_t *sum);
/* The same, and data stays sealed: it goes on to another peer as it is. */
bool remote_checksum_as_is(struct device *d, uint64_t page, const uint8_t *data, uint32_t *sum);

#endif
