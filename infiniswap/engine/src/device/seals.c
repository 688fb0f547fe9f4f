/* Sealing: what goes to a peer is sealed on the way, what comes from one is opened where its checksum is looked at.
 *
 * A serial is taken, and stored in the mapping that outlives this process, before anything is sealed with it: whatever
 * kills the process at whatever moment, no serial is used twice for one salt, and so no nonce for one key.
 *
 * A page's seal is 20 bytes and not stored in one step.  It is changed only while the page is WRITING (or not REMOTE), and the
 * intent has the same seal until after that, so a process killed half-way leaves at least the one of the two that is whole.
 *
 * The sealed copy of a pending buffer lies in a page of its own, for the backup is given the plain one.  Promotion seals where
 * it has read, and a copy to another peer travels as it came: a seal does not say who holds the page. */
#include "seals.h"

#include "device.h"
#include "moving.h"
#include "op.h"

#include <errno.h>

int isw_seals_layout(uint64_t size_bytes, uint64_t *intents_offset, uint64_t *pages_offset, uint64_t *total_bytes)
{
    if (!size_bytes || size_bytes % ISW_PAGE_BYTES || size_bytes > 1ull << 56)
        return -EINVAL;
    uint64_t mask = ISW_PAGE_BYTES - 1;
    *intents_offset = ISW_PAGE_BYTES;
    *pages_offset = (*intents_offset + ISW_OPS * ISW_OP_PAGES_MAX * sizeof(struct isw_seal) + mask) & ~mask;
    *total_bytes = (*pages_offset + size_bytes / ISW_PAGE_BYTES * sizeof(struct isw_seal) + mask) & ~mask;
    return 0;
}
_Static_assert(sizeof(struct isw_seal) == 20, "20 bytes a page");

const char *seals_open(struct device *d)
{
    const struct isw_device_config *c = &d->config;
    uint64_t intents_offset, pages_offset, total;
    uint8_t check[ISW_SEAL_CHECK_BYTES];
    if (!c->seals)
        return NULL;
    if (isw_seals_layout(c->size_bytes, &intents_offset, &pages_offset, &total) || c->seals_bytes < total || !c->seal_key)
        return "the file of seals is too small, or there is no key";
    d->seals.header = c->seals;
    d->seals.intent = (void *)((uint8_t *)c->seals + intents_offset);
    d->seals.page = (void *)((uint8_t *)c->seals + pages_offset);
    d->seals.sealer = isw_sealer_new(c->seal_key, d->seals.header->salt, check);
    d->config.seal_key = NULL;
    if (!d->seals.sealer)
        return "libcrypto has no AES-256-GCM";
    return memcmp(check, d->seals.header->check, sizeof check) ? "the pages were sealed with another key" : NULL;
}

void seals_close(struct device *d)
{
    isw_sealer_free(d->seals.sealer);
    d->seals.sealer = NULL;
}

static uint64_t take_serial(struct seals *s)
{
    uint64_t serial = s->header->serial + 1;
    __atomic_store_n(&s->header->serial, serial, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* stored before it is used: only a kill can come between, in this thread's order */
    return serial;
}

void seal_page(struct device *d, struct op *op, uint32_t at, const uint8_t *plain, uint8_t *sealed)
{
    struct isw_seal *seal = &d->seals.intent[op->tag][at];
    uint64_t serial = take_serial(&d->seals);
    isw_sealer_seal(d->seals.sealer, op->first + at, serial, plain, sealed, seal->tag);
    seal->serial[0] = (uint32_t)serial;
    seal->serial[1] = (uint32_t)(serial >> 32);
    tally(d, ISW_DEVICE_sealed_pages, 1);
}

void seals_forget_intent(struct device *d, struct op *op)
{
    for (uint32_t i = 0; i < op->pages; i++)
        d->seals.intent[op->tag][i] = (struct isw_seal){0};
}

void seal_commit(struct device *d, struct op *op, uint32_t at)
{
    uint64_t page = op->first + at;
    if (!d->seals.sealer)
        return;
    if (d->moves.first) /* what was copied of it was sealed with another serial, though its checksum may be the same */
        moving_page_changes(d, page, 0, 0);
    d->seals.page[page] = d->seals.intent[op->tag][at];
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

void seal_note(struct device *d, struct op *op, uint32_t at)
{
    if (d->seals.sealer)
        d->seals.intent[op->tag][at] = d->seals.page[op->first + at];
}

bool seal_same(const struct device *d, const struct op *op, uint32_t at)
{
    return !d->seals.sealer || !memcmp(&d->seals.intent[op->tag][at], &d->seals.page[op->first + at], sizeof(struct isw_seal));
}

static bool opens(struct device *d, uint64_t page, const uint8_t *data, uint8_t *into)
{
    const struct isw_seal *seal = &d->seals.page[page];
    if (isw_sealer_open(d->seals.sealer, page, seal_serial(seal), seal->tag, data, into))
        return false;
    tally(d, ISW_DEVICE_opened_pages, 1);
    return true;
}

bool remote_is_good(struct device *d, uint64_t page, uint8_t *data)
{
    return d->seals.sealer ? opens(d, page, data, data) : page_checksum(d, data) == d->page[page].checksum;
}

static bool checksum(struct device *d, uint64_t page, const uint8_t *data, uint8_t *into, uint32_t *sum)
{
    if (d->seals.sealer && !opens(d, page, data, into)) {
        *sum = ~d->page[page].checksum;
        return false;
    }
    *sum = page_checksum(d, d->seals.sealer ? into : data);
    return true;
}

bool remote_checksum(struct device *d, uint64_t page, uint8_t *data, uint32_t *sum)
{
    return checksum(d, page, data, data, sum);
}

bool remote_checksum_as_is(struct device *d, uint64_t page, const uint8_t *data, uint32_t *sum)
{
    return checksum(d, page, data, d->seals.scratch, sum);
}
