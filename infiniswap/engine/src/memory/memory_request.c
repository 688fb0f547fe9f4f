/* What the memory daemon does with a request: reads go out from where the slab lies, writes are copied in page by page. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>

enum {
    CLEAR_BYTES_AT_ONCE = 1 << 20, /* zeroed or freed before other connections have their turn */
    STATUS_SLABS_MAX = 1024,       /* that one BLOCK_STATUS looks at; it may answer for less than was asked */
};

static struct link *link_of(struct nbd_connection *c)
{
    return (struct link *)((char *)c - offsetof(struct link, connection));
}

/* Where offset lies now and how many of the bytes lie in the same slab; NULL: not mapped. */
static uint8_t *locate(struct export *e, uint64_t offset, uint64_t bytes, uint64_t *here, struct lent_slab **which)
{
    uint64_t index = offset / e->slab_bytes, inside = offset % e->slab_bytes;
    uint64_t left = e->slab_bytes - inside;
    *here = bytes < left ? bytes : left;
    *which = &e->slab[index];
    uint8_t *base = atomic_load_explicit(&(*which)->base, memory_order_acquire);
    return base ? base + inside : NULL;
}

static bool all_mapped(struct export *e, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        uint64_t here;
        struct lent_slab *slab;
        if (!locate(e, offset, bytes, &here, &slab))
            return false;
        offset += here;
        bytes -= here;
    }
    return true;
}

static void reply_read(struct link *l, const struct nbd_request *r)
{
    uint64_t offset = r->offset, left = r->length;
    if (!left) {
        nbd_reply(&l->connection, r->cookie, r->command, 0);
        return;
    }
    while (left) {
        uint64_t here;
        struct lent_slab *slab;
        uint8_t *at = locate(l->export, offset, left, &here, &slab);
        if (!at) { /* taken away between the check and now */
            nbd_connection_abort(&l->connection);
            return;
        }
        if (offset == r->offset)
            nbd_reply_data(&l->connection, r->cookie, offset, true, r->length, at, (uint32_t)here, NBD_NO_TAG);
        else
            nbd_reply_more(&l->connection, at, (uint32_t)here, NBD_NO_TAG);
        offset += here;
        left -= here;
    }
}

/* Free whole pages of the memfd where that is wanted and possible; zero the rest by hand. */
static int clear_range(struct link *l, const struct nbd_request *r, uint64_t offset, uint64_t left)
{
    bool punch = !(r->flags & NBD_CMD_FLAG_NO_HOLE);
    while (left) {
        uint64_t here;
        struct lent_slab *slab;
        uint8_t *at = locate(l->export, offset, left, &here, &slab);
        if (!at)
            return ESHUTDOWN;
        uint64_t inside = offset % l->export->slab_bytes;
        uint64_t first = (inside + ISW_PAGE_BYTES - 1) & ~(uint64_t)(ISW_PAGE_BYTES - 1);
        uint64_t last = (inside + here) & ~(uint64_t)(ISW_PAGE_BYTES - 1);
        if (punch && slab->fd >= 0 && last > first &&
            fallocate(slab->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(slab->fd_offset + first),
                      (off_t)(last - first)) == 0) {
            memset(at, 0, first - inside);
            memset(at + (last - inside), 0, inside + here - last);
        } else {
            memset(at, 0, here);
        }
        offset += here;
        left -= here;
    }
    return 0;
}

static void reply_status(struct link *l, const struct nbd_request *r)
{
    uint8_t extents[NBD_INLINE_EXTENTS * 8];
    uint32_t count = 0, flags[NBD_INLINE_EXTENTS] = {0};
    uint64_t length[NBD_INLINE_EXTENTS] = {0}, offset = r->offset, left = r->length;
    uint32_t most = r->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_INLINE_EXTENTS;
    for (uint32_t looked = 0; left && looked < STATUS_SLABS_MAX; looked++) {
        uint64_t here;
        struct lent_slab *slab;
        uint32_t now = locate(l->export, offset, left, &here, &slab) ? 0 : NBD_STATE_HOLE;
        if (count && flags[count - 1] == now) {
            length[count - 1] += here;
        } else if (count == most) {
            break;
        } else {
            flags[count] = now;
            length[count++] = here;
        }
        offset += here;
        left -= here;
    }
    for (uint32_t i = 0; i < count; i++) {
        nbd_put32(extents + 8 * i, (uint32_t)length[i]);
        nbd_put32(extents + 8 * i + 4, flags[i]);
    }
    nbd_reply_extents(&l->connection, r->cookie, ISW_CONTEXT_ALLOCATION, extents, count, NBD_NO_TAG);
}

/* The next piece.  Until the last one is done the request stays where it is, and so does what the client sent behind it: a later
 * WRITE must not be cleared away. */
static enum nbd_verdict clear_on(struct link *l, const struct nbd_request *r)
{
    uint64_t left = r->length - l->clear_done, now = left < CLEAR_BYTES_AT_ONCE ? left : CLEAR_BYTES_AT_ONCE;
    int error = clear_range(l, r, r->offset + l->clear_done, now);
    l->clearing = !error && now < left;
    l->clear_done = l->clearing ? l->clear_done + (uint32_t)now : 0;
    if (l->clearing)
        return NBD_BLOCKED;
    nbd_reply(&l->connection, r->cookie, r->command, error);
    return NBD_TAKEN;
}

static enum nbd_verdict on_request(void *owner, struct nbd_connection *c, const struct nbd_request *r)
{
    struct isw_memory *memory = owner;
    struct link *l = link_of(c);
    if (l->clearing)
        return clear_on(l, r);
    bool touches = r->command == NBD_CMD_READ || r->command == NBD_CMD_WRITE || r->command == NBD_CMD_TRIM ||
                   r->command == NBD_CMD_WRITE_ZEROES;
    if (touches && !all_mapped(l->export, r->offset, r->length)) {
        memory_tally(memory, ISW_MEMORY_refused_requests, 1);
        if (r->command != NBD_CMD_WRITE || !r->length) {
            nbd_reply(c, r->cookie, r->command, ESHUTDOWN);
            return NBD_TAKEN;
        }
        /* A WRITE is refused by on_payload, once all of it is here: the device takes an earlier answer for a wrong one. */
    } else if (r->length && (r->command == NBD_CMD_READ || r->command == NBD_CMD_WRITE)) {
        atomic_fetch_add_explicit(&l->export->requests, 1, memory_order_relaxed);
    }
    switch (r->command) {
    case NBD_CMD_READ:
        memory_tally(memory, ISW_MEMORY_read_requests, 1);
        memory_tally(memory, ISW_MEMORY_read_pages, (r->length + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES);
        reply_read(l, r);
        break;
    case NBD_CMD_WRITE:
        memory_tally(memory, ISW_MEMORY_write_requests, 1);
        memory_tally(memory, ISW_MEMORY_write_pages, (r->length + ISW_PAGE_BYTES - 1) / ISW_PAGE_BYTES);
        l->write_cookie = r->cookie;
        l->write_at = r->offset;
        l->write_left = r->length;
        l->write_error = 0;
        if (!r->length)
            nbd_reply(c, r->cookie, r->command, 0);
        break;
    case NBD_CMD_TRIM:
    case NBD_CMD_WRITE_ZEROES:
        memory_tally(memory, ISW_MEMORY_trim_requests, 1);
        return clear_on(l, r);
    case NBD_CMD_BLOCK_STATUS:
        memory_tally(memory, ISW_MEMORY_other_requests, 1);
        reply_status(l, r);
        break;
    default: /* FLUSH: memory is all there is; CACHE: it is here already */
        memory_tally(memory, ISW_MEMORY_other_requests, 1);
        nbd_reply(c, r->cookie, r->command, 0);
    }
    return NBD_TAKEN;
}

/* Copies whole pages only (or the last piece): a device that dies in the middle of a request leaves no torn page. */
static size_t on_payload(void *owner, struct nbd_connection *c, const uint8_t *data, size_t bytes, bool *blocked)
{
    struct link *l = link_of(c);
    size_t taken = 0;
    (void)owner;
    (void)blocked; /* never: it waits for whole pages at most */
    while (taken < bytes) {
        uint64_t here;
        struct lent_slab *slab;
        uint32_t to_page_end = ISW_PAGE_BYTES - (uint32_t)(l->write_at % ISW_PAGE_BYTES);
        uint32_t piece = l->write_left < to_page_end ? l->write_left : to_page_end;
        if (bytes - taken < piece)
            break;
        uint8_t *at = locate(l->export, l->write_at, piece, &here, &slab);
        if (at)
            memcpy(at, data + taken, piece);
        else
            l->write_error = ESHUTDOWN;
        taken += piece;
        l->write_at += piece;
        l->write_left -= piece;
    }
    if (!l->write_left)
        nbd_reply(c, l->write_cookie, NBD_CMD_WRITE, l->write_error);
    return taken;
}

static void on_sent(void *owner, struct nbd_connection *c, uint32_t tag)
{
    (void)owner;
    (void)c;
    (void)tag;
}

const struct nbd_handler memory_handler = {on_request, on_payload, on_sent};
