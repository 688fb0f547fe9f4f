#include "sim_oracle.h"

void oracle_open(struct oracle *o, uint64_t size_bytes, uint64_t slab_bytes)
{
    *o = (struct oracle){.now = 1, .sectors = size_bytes / SIM_SECTOR, .pages = size_bytes / ISW_PAGE_BYTES,
                         .slab_pages = slab_bytes / ISW_PAGE_BYTES};
    o->sector = malloc(o->sectors * sizeof *o->sector);
    o->page = calloc(o->pages, sizeof *o->page);
    CHECK(o->sector && o->page);
    for (uint64_t i = 0; i < o->sectors; i++) {
        o->sector[i].count = 1;
        o->sector[i].more_gone = 0;
        o->sector[i].more = o->sector[i].any = false;
        o->sector[i].candidate[0] = (struct sim_candidate){0, 0, 0, SIM_NEVER, false};
    }
}

void oracle_close(struct oracle *o)
{
    free(o->sector);
    free(o->page);
}

uint64_t oracle_now(struct oracle *o)
{
    return ++o->now;
}

static void drop(struct sim_sector *s, uint32_t i)
{
    s->candidate[i] = s->candidate[--s->count];
}

/* The disk cannot hold it any more. */
static void pass(const struct oracle *o, struct sim_sector *s, uint32_t *i)
{
    struct sim_candidate *c = &s->candidate[*i];
    if (o->page[(uint64_t)(s - o->sector) / SIM_PAGE_SECTORS].doubtful) {
        ++*i;
        return;
    }
    c->past = true;
    if (c->gone < o->oldest && !o->page[(uint64_t)(s - o->sector) / SIM_PAGE_SECTORS].was_lost)
        drop(s, *i);
    else
        ++*i;
}

static void add(struct sim_sector *s, struct sim_candidate candidate)
{
    if (s->count == SIM_CANDIDATES) {
        uint32_t oldest = 0;
        for (uint32_t i = 1; i < s->count; i++)
            if (s->candidate[i].gone < s->candidate[oldest].gone ||
                (s->candidate[i].gone == s->candidate[oldest].gone && s->candidate[i].done < s->candidate[oldest].done))
                oldest = i; /* what is out still is the last to go */
        s->any = s->any || s->candidate[oldest].gone == SIM_NEVER; /* so many deaths left so many unanswered writes */
        s->more_gone = s->candidate[oldest].gone == SIM_NEVER ? s->more_gone : s->candidate[oldest].gone;
        s->more = true;
        drop(s, oldest);
    }
    s->candidate[s->count++] = candidate;
}

struct oracle_write oracle_write_sent(struct oracle *o, uint64_t first, uint64_t sectors, bool zeroes)
{
    struct oracle_write write = {.sent = oracle_now(o), .first = first, .sectors = sectors};
    write.value = zeroes ? 0 : write.sent << 8;
    CHECK(first + sectors <= o->sectors);
    for (uint64_t i = first; i < first + sectors; i++) {
        struct oracle_page *page = &o->page[i / SIM_PAGE_SECTORS];
        add(&o->sector[i], (struct sim_candidate){write.value, write.sent, SIM_NEVER, SIM_NEVER, false});
        if (!page->unflushed)
            page->unflushed = write.sent;
    }
    return write;
}

/* The earliest write of the page that is still out; sent, when there is none. */
static uint64_t earliest(const struct oracle *o, uint64_t first, uint64_t sent)
{
    for (uint64_t i = first; i < first + SIM_PAGE_SECTORS; i++)
        for (uint32_t k = 0; k < o->sector[i].count; k++)
            if (o->sector[i].candidate[k].done == SIM_NEVER && o->sector[i].candidate[k].sent < sent)
                sent = o->sector[i].candidate[k].sent;
    return sent;
}

/* It was written as a whole. */
static void mend(struct oracle *o, uint64_t number, uint64_t unflushed)
{
    struct oracle_page *page = &o->page[number];
    if (page->lost)
        page->mended = o->now;
    page->fragile = page->lost = page->doubtful = false;
    page->unflushed = unflushed;
}

void oracle_write_done(struct oracle *o, const struct oracle_write *write, bool ok, bool durable)
{
    uint64_t now = oracle_now(o);
    for (uint64_t i = write->first; i < write->first + write->sectors; i++) {
        struct sim_sector *s = &o->sector[i];
        struct oracle_page *page = &o->page[i / SIM_PAGE_SECTORS];
        page->written = now;
        /* A whole page is in a buffer or on the disk now, whatever became of what it was. */
        uint64_t begin = i / SIM_PAGE_SECTORS * SIM_PAGE_SECTORS;
        if (ok && write->sent > o->killed && write->sent > page->torn && write->first <= begin &&
            write->first + write->sectors >= begin + SIM_PAGE_SECTORS)
            mend(o, begin / SIM_PAGE_SECTORS, earliest(o, begin, write->sent));
        if (ok)
            s->any = false;
        for (uint32_t k = 0; k < s->count; k++) {
            struct sim_candidate *c = &s->candidate[k];
            if (c->sent == write->sent)
                c->done = now;
            else if (ok && write->sent > page->doubted && c->done < write->sent && c->gone > now)
                c->gone = now;
        }
        for (uint32_t k = 0; ok && durable && k < s->count;)
            if (s->candidate[k].done < write->sent)
                pass(o, s, &k);
            else
                k++;
    }
}

void oracle_fill(uint64_t value, uint64_t sectors, uint8_t *out)
{
    for (uint64_t i = 0; i < sectors * SIM_SECTOR; i += 8) {
        uint64_t word = value ? value + i / 8 % 64 : 0;
        memcpy(out + i, &word, 8);
    }
}

/* False: no write ever looked like this. */
static bool value_of(const uint8_t *sector, uint64_t *value)
{
    uint8_t whole[SIM_SECTOR];
    memcpy(value, sector, 8);
    oracle_fill(*value, 1, whole);
    return memcmp(whole, sector, SIM_SECTOR) == 0;
}

static _Noreturn void wrong(struct oracle *o, uint64_t sent, uint64_t number, const uint8_t *data, const char *what)
{
    const struct sim_sector *s = &o->sector[number];
    uint64_t words[2];
    memcpy(words, data, sizeof words);
    fprintf(stderr, "sector %llu may be:", (unsigned long long)number);
    for (uint32_t i = 0; i < s->count; i++)
        fprintf(stderr, " %llu (sent %lld, done %lld, gone %lld)", (unsigned long long)(s->candidate[i].value >> 8),
                (long long)s->candidate[i].sent, (long long)s->candidate[i].done, (long long)s->candidate[i].gone);
    fprintf(stderr, "%s\n", s->any ? " or older" : "");
    if (o->explain)
        o->explain(o->owner, number);
    FAIL("%s, asked at %llu: sector %llu (page %llu + %llu) is of write %llu (%llx %llx)", what, (unsigned long long)sent,
         (unsigned long long)number, (unsigned long long)(number / SIM_PAGE_SECTORS),
         (unsigned long long)(number % SIM_PAGE_SECTORS), (unsigned long long)(words[0] >> 8), (unsigned long long)words[0],
         (unsigned long long)words[1]);
}

/* It was read, and no write came near: so it is the one; unless it has been history since the read was sent. */
static void settle(struct oracle *o, struct sim_sector *s, uint64_t sent, uint64_t value)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (s->candidate[i].done >= sent || (s->candidate[i].value == value && s->candidate[i].gone != SIM_NEVER))
            return;
    for (uint32_t i = 0; i < s->count; i++)
        if (s->candidate[i].value != value && s->candidate[i].gone == SIM_NEVER)
            s->candidate[i].gone = o->now;
}

static void check(struct oracle *o, uint64_t sent, uint64_t number, const uint8_t *data, const char *what)
{
    struct sim_sector *s = &o->sector[number];
    uint64_t value;
    bool found = false;
    if (!value_of(data, &value))
        wrong(o, sent, number, data, what);
    for (uint32_t i = 0; i < s->count && !found; i++)
        found = s->candidate[i].value == value && s->candidate[i].gone > sent;
    if (!found && s->more_gone > sent)
        return;
    if (!found && s->any)
        add(s, (struct sim_candidate){value, 0, o->killed, SIM_NEVER, false});
    else if (!found)
        wrong(o, sent, number, data, what);
    if (sent < o->page[number / SIM_PAGE_SECTORS].doubted)
        return; /* seen, perhaps, before the disk went back to what it is now */
    s->any = false;
    settle(o, s, sent, value);
}

void oracle_read(struct oracle *o, uint64_t sent, uint64_t first, uint64_t sectors, const uint8_t *data, const char *what)
{
    oracle_now(o);
    for (uint64_t i = 0; i < sectors; i++)
        check(o, sent, first + i, data + i * SIM_SECTOR, what);
}

void oracle_read_hole(struct oracle *o, uint64_t sent, uint64_t first, uint64_t sectors)
{
    static const uint8_t zeroes[SIM_SECTOR];
    oracle_now(o);
    for (uint64_t i = 0; i < sectors; i++)
        check(o, sent, first + i, zeroes, "BLOCK_STATUS");
}

void oracle_flushed(struct oracle *o, uint64_t sent)
{
    for (uint64_t i = 0; i < o->sectors; i++) {
        struct sim_sector *s = &o->sector[i];
        for (uint32_t k = 0; s->count > 1 && k < s->count;)
            if (s->candidate[k].gone < sent)
                pass(o, s, &k);
            else
                k++;
        if (s->count == 1)
            s->more = false;
    }
    for (uint64_t i = 0; i < o->pages; i++) {
        struct oracle_page *page = &o->page[i];
        if (page->written < sent) {
            bool out = false;
            for (uint64_t k = i * SIM_PAGE_SECTORS; k < (i + 1) * SIM_PAGE_SECTORS; k++)
                for (uint32_t c = 0; c < o->sector[k].count; c++)
                    out = out || o->sector[k].candidate[c].done == SIM_NEVER;
            page->unflushed = out ? page->unflushed : 0;
            page->was_lost = page->lost || (page->was_lost && page->unflushed);
        }
        if (sent > o->killed)
            page->fragile = false;
    }
}

static void end_all(struct oracle *o)
{
    uint64_t now = oracle_now(o);
    for (uint64_t i = 0; i < o->sectors; i++)
        for (uint32_t k = 0; k < o->sector[i].count; k++)
            if (o->sector[i].candidate[k].done == SIM_NEVER) {
                o->sector[i].candidate[k].done = now;
                o->page[i / SIM_PAGE_SECTORS].written = now;
            }
    o->killed = now;
}

static void note_lost(struct oracle *o, uint64_t number)
{
    struct oracle_page *page = &o->page[number];
    if (page->fragile && o->harmed[number / o->slab_pages] > page->unflushed)
        page->lost = page->was_lost = true;
}

void oracle_process_killed(struct oracle *o)
{
    end_all(o);
    for (uint64_t i = 0; i < o->pages; i++) {
        o->page[i].fragile = o->page[i].fragile || o->page[i].unflushed;
        note_lost(o, i);
    }
}

void oracle_power_cut(struct oracle *o)
{
    end_all(o);
    for (uint64_t i = 0; i < o->sectors; i++) {
        o->sector[i].any = o->sector[i].any || o->sector[i].more;
        for (uint32_t k = 0; k < o->sector[i].count;) {
            struct sim_candidate *c = &o->sector[i].candidate[k];
            const struct oracle_page *page = &o->page[i / SIM_PAGE_SECTORS];
            if (c->past && !(page->was_lost && page->unflushed)) {
                drop(&o->sector[i], k);
                continue;
            }
            c->past = false;
            c->gone = SIM_NEVER;
            c->done = o->killed;
            k++;
        }
    }
    for (uint64_t i = 0; i < o->pages; i++) {
        o->page[i].fragile = o->page[i].doubtful = false;
        o->page[i].lost = o->page[i].was_lost;
    }
}

void oracle_write_torn(struct oracle *o, uint64_t page, uint64_t since)
{
    o->page[page].fragile = true;
    o->page[page].torn = oracle_now(o);
    if (!o->page[page].unflushed || since < o->page[page].unflushed) /* an earlier write that no FLUSH covers is still not covered */
        o->page[page].unflushed = since;
    note_lost(o, page);
}

void oracle_doubted(struct oracle *o, uint64_t page)
{
    o->page[page].doubtful = true;
    o->page[page].doubted = o->page[page].torn = oracle_now(o);
    for (uint64_t i = page * SIM_PAGE_SECTORS; i < (page + 1) * SIM_PAGE_SECTORS; i++) {
        struct sim_sector *s = &o->sector[i];
        s->any = s->any || s->more;
        for (uint32_t k = 0; k < s->count; k++)
            if (!s->candidate[k].past)
                s->candidate[k].gone = SIM_NEVER;
    }
}

void oracle_harmed(struct oracle *o, uint32_t slab)
{
    o->harmed[slab] = oracle_now(o);
    for (uint64_t i = slab * o->slab_pages; i < (slab + 1) * o->slab_pages && i < o->pages; i++)
        note_lost(o, i);
}

bool oracle_may_be_lost(const struct oracle *o, uint64_t page)
{
    return o->page[page].lost;
}

bool oracle_was_lost(const struct oracle *o, uint64_t page, uint64_t sent)
{
    return oracle_may_be_lost(o, page) || o->page[page].mended > sent;
}

bool oracle_any_was_lost(const struct oracle *o, uint64_t sent)
{
    for (uint64_t page = 0; page < o->pages; page++)
        if (oracle_was_lost(o, page, sent) || o->page[page].doubtful)
            return true;
    return false;
}
