#include "log_oracle.h"

#include "infiniswap_engine.h"

enum { WORDS = ISW_PAGE_BYTES / 8 };

void log_oracle_open(struct log_oracle *o, uint64_t pages)
{
    *o = (struct log_oracle){.pages = pages, .page = calloc(pages, sizeof *o->page)};
    CHECK(o->page);
    for (uint64_t i = 0; i < pages; i++) {
        struct log_page *p = &o->page[i];
        *p = (struct log_page){.version = malloc(4 * sizeof *p->version), .count = 1, .room = 4, .next = 1};
        CHECK(p->version);
        p->version[0] = (struct log_version){0, LOG_VERSION_DONE, true};
    }
}

void log_oracle_close(struct log_oracle *o)
{
    for (uint64_t i = 0; i < o->pages; i++)
        free(o->page[i].version);
    free(o->page);
}

/* ---- contents: each says whose it is ---- */

void log_oracle_fill(uint64_t page, uint32_t version, uint8_t *out)
{
    struct chance c = {page << 32 | version};
    uint64_t step = chance_next(&c) | 1, word = page << 32 | version;
    for (uint32_t i = 0; i < WORDS; i++, word += step)
        memcpy(out + i * 8, &word, 8);
}

enum look { LOOK_ZEROES, LOOK_VERSION, LOOK_STRANGE };

static enum look look_at(const uint8_t *data, uint64_t *page, uint32_t *version)
{
    static const uint8_t zeroes[ISW_PAGE_BYTES];
    uint8_t whole[ISW_PAGE_BYTES];
    uint64_t word;
    memcpy(&word, data, 8);
    *page = word >> 32;
    *version = (uint32_t)word;
    if (!word && !memcmp(data, zeroes, sizeof zeroes))
        return LOOK_ZEROES;
    log_oracle_fill(*page, *version, whole);
    return memcmp(data, whole, sizeof whole) ? LOOK_STRANGE : LOOK_VERSION;
}

/* ---- versions ---- */

static struct log_version *last(struct log_page *p)
{
    return &p->version[p->count - 1];
}

/* The one that a read returns, when all goes well; 0, the oldest, when none of those kept was told done. */
static uint32_t present(const struct log_page *p)
{
    uint32_t i = p->count - 1;
    while (i && p->version[i].state != LOG_VERSION_DONE)
        i--;
    return i;
}

static void drop_before(struct log_page *p, uint32_t index)
{
    memmove(p->version, p->version + index, (p->count - index) * sizeof *p->version);
    p->count -= index;
}

uint32_t log_oracle_sent(struct log_oracle *o, uint64_t page, bool zero)
{
    struct log_page *p = &o->page[page];
    CHECK(!p->out && p->mood == LOG_PAGE_SURE);
    if (p->count == p->room) {
        p->room *= 2;
        p->version = realloc(p->version, p->room * sizeof *p->version);
        CHECK(p->version);
    }
    p->version[p->count++] = (struct log_version){p->next++, LOG_VERSION_OUT, zero};
    p->out = true;
    return last(p)->number;
}

void log_oracle_done(struct log_oracle *o, uint64_t page, bool ok)
{
    struct log_page *p = &o->page[page];
    CHECK(p->out);
    p->out = false;
    last(p)->state = ok ? LOG_VERSION_DONE : LOG_VERSION_FAILED;
    if (ok)
        p->rotten = false;
    if (ok && !p->shaky)
        p->doubt = p->told = false;
    p->shaky = false;
}

void log_oracle_sync_sent(struct log_oracle *o)
{
    for (uint64_t i = 0; i < o->pages; i++) {
        struct log_page *p = &o->page[i];
        p->mark_sure = !(p->doubt && p->told);
        p->mark = p->version[p->mark_sure ? present(p) : 0].number;
    }
}

void log_oracle_doubt(struct log_oracle *o)
{
    for (uint64_t i = 0; i < o->pages; i++) {
        struct log_page *p = &o->page[i];
        if (p->count > 1)
            p->doubt = p->fragile = true;
        p->shaky = p->out;
    }
}

void log_oracle_synced(struct log_oracle *o, bool ok)
{
    if (!ok)
        log_oracle_doubt(o); /* whoever hears of it takes all that is not covered for doubtful */
    for (uint64_t i = 0; i < o->pages; i++) {
        struct log_page *p = &o->page[i];
        uint32_t index = 0;
        if (!ok) {
            p->told = p->doubt;
            continue;
        }
        while (p->version[index].number != p->mark)
            index++;
        drop_before(p, index);
        if (!p->mark_sure || (p->doubt && p->told))
            continue;
        p->doubt = p->fragile = false; /* if it failed over the log's own, and nobody was told, the log has made good for it */
    }
}

void log_oracle_killed(struct log_oracle *o)
{
    for (uint64_t i = 0; i < o->pages; i++) {
        o->page[i].out = o->page[i].shaky = false;
        o->page[i].told = o->page[i].doubt; /* it took the news with it, and no program can mend that */
        if (o->page[i].mood != LOG_PAGE_CUT)
            o->page[i].mood = LOG_PAGE_KILLED;
    }
}

void log_oracle_power_cut(struct log_oracle *o)
{
    log_oracle_killed(o);
    for (uint64_t i = 0; i < o->pages; i++)
        o->page[i].mood = LOG_PAGE_CUT;
}

/* ---- what is read ---- */

static _Noreturn void wrong(const struct log_oracle *o, uint64_t page, const uint8_t *data, const char *what)
{
    static const char *const states[] = {"out", "done", "failed"}, *const moods[] = {"", ", killed since", ", power cut since"};
    const struct log_page *p = &o->page[page];
    uint64_t other = 0;
    uint32_t version = 0;
    fprintf(stderr, "page %llu%s%s%s%s:", (unsigned long long)page, moods[p->mood], p->doubt ? ", doubtful" : "",
            p->told ? " and told" : p->fragile ? ", fragile" : "", p->rotten ? ", rotten" : "");
    for (uint32_t i = p->count > 20 ? p->count - 20 : 0; i < p->count; i++)
        fprintf(stderr, " %u%s %s", p->version[i].number, p->version[i].zero ? " (zeroes)" : "", states[p->version[i].state]);
    fputc('\n', stderr);
    if (!data)
        FAIL("%s: page %llu cannot be read", what, (unsigned long long)page);
    enum look look = look_at(data, &other, &version);
    if (look == LOOK_ZEROES)
        FAIL("%s: page %llu is zero", what, (unsigned long long)page);
    if (look == LOOK_VERSION)
        FAIL("%s: page %llu is version %u of page %llu", what, (unsigned long long)page, version, (unsigned long long)other);
    FAIL("%s: page %llu is nothing that was ever written: %llx", what, (unsigned long long)page, (unsigned long long)other);
}

static uint16_t fold(const uint8_t *data)
{
    uint32_t crc = isw_crc32c(data, ISW_PAGE_BYTES);
    return (uint16_t)(crc ^ crc >> 16);
}

/* A log keeps 16 bits of a page's CRC to compare: where a failed sync has put something else in its place on the disk, one time in
 * 65536 it does not see that. */
static bool happens_to_match(const struct log_page *p, uint64_t page, const uint8_t *data)
{
    uint8_t whole[ISW_PAGE_BYTES];
    for (uint32_t i = 0; i < p->count; i++) {
        log_oracle_fill(page, p->version[i].number, whole);
        if (!p->version[i].zero && fold(whole) == fold(data))
            return true;
    }
    return false;
}

/* After a death: what it is now it stays; after a power cut that is durable, too. */
static void settle(struct log_page *p, uint32_t index)
{
    if (!p->doubt || p->mood == LOG_PAGE_CUT) {
        p->version[index].state = LOG_VERSION_DONE;
        p->count = index + 1;
    }
    if (p->mood == LOG_PAGE_CUT) {
        drop_before(p, index);
        p->doubt = p->told = p->fragile = false;
    }
    for (uint32_t i = 0; i < p->count; i++) /* nothing is out any more */
        if (p->version[i].state == LOG_VERSION_OUT)
            p->version[i].state = LOG_VERSION_FAILED;
    p->mood = LOG_PAGE_SURE;
}

void log_oracle_read(struct log_oracle *o, uint64_t page, const uint8_t *data, bool may_fail, const char *what)
{
    struct log_page *p = &o->page[page];
    bool any = p->doubt || p->mood == LOG_PAGE_CUT, doubt = p->doubt || (p->fragile && p->mood == LOG_PAGE_CUT);
    uint64_t of = 0;
    uint32_t version = 0;
    CHECK(!p->out);
    o->reads++;
    if (!data) {
        o->errors++;
        if (!doubt && !may_fail && !p->rotten)
            wrong(o, page, data, what);
        if (doubt) { /* any version of before, or none, until it is written */
            p->doubt = p->told = true;
            p->mark_sure = false;
            p->mood = LOG_PAGE_SURE;
        }
        return;
    }
    enum look look = look_at(data, &of, &version);
    for (uint32_t i = p->count; i-- > (any ? 0 : present(p));) {
        const struct log_version *v = &p->version[i];
        if (look == LOOK_ZEROES ? !v->zero : look != LOOK_VERSION || of != page || v->zero || v->number != version)
            continue;
        if (p->mood != LOG_PAGE_SURE)
            settle(p, i);
        return;
    }
    if (!doubt || !happens_to_match(p, page, data))
        wrong(o, page, data, what);
}

int log_oracle_placed(const struct log_oracle *o, uint64_t page)
{
    const struct log_page *p = &o->page[page];
    if (p->out || p->doubt || p->mood != LOG_PAGE_SURE || last(&o->page[page])->state != LOG_VERSION_DONE)
        return -1;
    return !last(&o->page[page])->zero;
}
