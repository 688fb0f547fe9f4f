#include "model.h"

uint64_t model_wrong_at;

void model_open(struct model *m, uint64_t size_bytes)
{
    m->size_bytes = size_bytes;
    m->byte = calloc(size_bytes, sizeof *m->byte);
    m->looks = NULL;
    CHECK(m->byte);
    for (uint64_t i = 0; i < size_bytes; i++)
        m->byte[i].base.count = 1; /* zero */
}

void model_close(struct model *m)
{
    CHECK(!m->looks);
    free(m->byte);
}

static bool holds(const struct values *v, uint8_t value)
{
    if (v->count > VALUES_MAX)
        return true;
    for (uint8_t i = 0; i < v->count; i++)
        if (v->value[i] == value)
            return true;
    return false;
}

static void add(struct values *v, uint8_t value)
{
    if (holds(v, value))
        return;
    if (v->count < VALUES_MAX)
        v->value[v->count] = value;
    v->count++;
}

static void join(struct values *v, const struct values *other)
{
    if (other->count > VALUES_MAX)
        v->count = VALUES_MAX + 1;
    for (uint8_t i = 0; i < other->count && v->count <= VALUES_MAX; i++)
        add(v, other->value[i]);
}

static struct values possible(const struct model_byte *b)
{
    struct values v = b->group;
    if (!b->acknowledged)
        join(&v, &b->base);
    return v;
}

void model_forget(struct model *m, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset; i < offset + length; i++)
        m->byte[i] = (struct model_byte){.base = {.count = VALUES_MAX + 1}};
}

struct change *model_write_sent(struct model *m, uint64_t offset, uint32_t length, const uint8_t *data)
{
    struct change *c = malloc(sizeof *c);
    CHECK(c && offset + length <= m->size_bytes);
    *c = (struct change){offset, length, data ? malloc(length + 1) : NULL};
    if (data)
        memcpy(c->data, data, length);
    for (uint32_t i = 0; i < length; i++) {
        struct model_byte *b = &m->byte[offset + i];
        b->writing++;
        add(&b->group, data ? data[i] : 0);
    }
    for (struct look *look = m->looks; look; look = look->next) {
        uint64_t from = offset > look->offset ? offset : look->offset;
        uint64_t to = offset + length < look->offset + look->length ? offset + length : look->offset + look->length;
        for (uint64_t at = from; at < to; at++) {
            add(&look->seen[at - look->offset], data ? data[at - offset] : 0);
            look->disturbed[at - look->offset] = true;
        }
    }
    return c;
}

void model_write_done(struct model *m, struct change *c, bool failed)
{
    for (uint32_t i = 0; i < c->length; i++) {
        struct model_byte *b = &m->byte[c->offset + i];
        if (!failed)
            b->acknowledged = 1;
        if (--b->writing)
            continue;
        b->base = possible(b);
        b->group.count = 0;
        b->acknowledged = 0;
    }
    free(c->data);
    free(c);
}

struct look *model_look_begins(struct model *m, uint64_t offset, uint64_t length)
{
    struct look *look = malloc(sizeof *look);
    CHECK(look && offset + length <= m->size_bytes);
    *look = (struct look){offset, length, malloc(length * sizeof *look->seen), malloc(length * sizeof *look->disturbed),
                          true, m->looks};
    CHECK(look->seen && look->disturbed);
    for (uint64_t i = 0; i < length; i++) {
        look->seen[i] = possible(&m->byte[offset + i]);
        look->disturbed[i] = m->byte[offset + i].writing > 0;
    }
    m->looks = look;
    return look;
}

static _Noreturn void wrong(const struct model *m, const struct values *v, uint64_t at, const uint8_t *data, uint64_t begin,
                            uint64_t length, const char *what)
{
    char allowed[64] = "";
    model_wrong_at = at;
    for (uint8_t i = 0; i < v->count; i++)
        snprintf(allowed + strlen(allowed), sizeof allowed - strlen(allowed), " %02x", v->value[i]);
    uint64_t zeroes = 0;
    for (uint64_t i = 0; i < length; i++)
        zeroes += data[i] == 0;
    FAIL("%s: byte %llu (page %llu + %llu) is %02x, allowed:%s; it lies in %llu bytes from %llu, %llu of them zero; "
         "writing %u, acknowledged %u",
         what, (unsigned long long)at, (unsigned long long)(at / 4096), (unsigned long long)(at % 4096), data[at - begin],
         allowed, (unsigned long long)length, (unsigned long long)begin, (unsigned long long)zeroes, m->byte[at].writing,
         m->byte[at].acknowledged);
}

static void check(struct model *m, const struct values *seen, uint64_t at, const uint8_t *data, uint64_t begin,
                  uint64_t length, bool settles, const char *what)
{
    uint8_t value = data[at - begin];
    if (!holds(seen, value))
        wrong(m, seen, at, data, begin, length, what);
    struct model_byte *b = &m->byte[at];
    if (settles && b->base.count > 1 && !b->writing) {
        b->base.count = 1;
        b->base.value[0] = value;
    }
}

void model_look_ends(struct model *m, struct look *look, const uint8_t *data, const char *what)
{
    struct look **from = &m->looks;
    while (*from != look)
        from = &(*from)->next;
    *from = look->next;
    for (uint64_t i = 0; data && i < look->length; i++)
        check(m, &look->seen[i], look->offset + i, data, look->offset, look->length, look->settles && !look->disturbed[i], what);
    free(look->seen);
    free(look->disturbed);
    free(look);
}

void model_check(struct model *m, const uint8_t *data, const char *what)
{
    CHECK(!m->looks);
    for (uint64_t at = 0; at < m->size_bytes; at++) {
        CHECK(!m->byte[at].writing);
        check(m, &m->byte[at].base, at, data, 0, m->size_bytes, true, what);
    }
}

void model_fill(struct chance *chance, uint8_t *data, uint32_t length)
{
    for (uint32_t i = 0; i < length; i += 8) {
        uint64_t word = chance_next(chance);
        memcpy(data + i, &word, length - i < 8 ? length - i : 8);
    }
}
