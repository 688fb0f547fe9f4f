/* Proves that states of pages and buffers which must not be are told from those that may (test_device_loop.c: and end a device). */
#include "check.h"

#include "device.h"
#include "invariants.h"

enum { FLAGS = 256 };

/* A device of one page and one buffer, of which nothing runs. */
struct still {
    struct device device;
    struct isw_page page;
    struct isw_slab_view view;
    struct slab slab;
    struct op op;
    struct page_buffer buffer;
};

static struct still *still(void)
{
    struct still *s = calloc(1, sizeof *s);
    CHECK(s);
    s->device.pages = s->device.slabs = s->device.buffers = 1;
    s->device.page = &s->page;
    s->device.slab_views = &s->view;
    s->device.slab = &s->slab;
    s->device.ops = &s->op;
    s->device.buffer = &s->buffer;
    s->view.state = ISW_SLAB_MAPPED;
    s->slab.punch.listed = s->slab.resync.listed = s->device.resync.held = true;
    s->slab.only_remote = 1;
    s->op = (struct op){.kind = OP_WRITE, .stage = STAGE_REMOTE, .pages = 1, .locked = true};
    s->buffer.state = BUFFER_BLOCKED;
    return s;
}

static bool is_legal(struct still *s, uint32_t flags, bool pending)
{
    bool owned = flags & ISW_PAGE_BUSY;
    s->op.pending[0] = pending;
    s->page.meta = flags | (pending && !owned ? 1u << ISW_PAGE_INDEX_SHIFT : 0);
    return !page_wrong(&s->device, 0);
}

/* Nine states of a page at rest are legal, and a write adds no state of copies but a DOUBTFUL beside them. */
TEST(few_states_of_a_page_are_legal)
{
    struct still *s = still();
    uint32_t legal = 0;
    for (uint32_t flags = 0; flags < FLAGS; flags++)
        for (int pending = 0; pending < 2; pending++) {
            bool ok = is_legal(s, flags, pending);
            if (!(flags & (ISW_PAGE_BUSY | ISW_PAGE_DISK_BUSY | ISW_PAGE_WRITING)))
                legal += ok;
            if (!ok)
                continue;
            CHECK(!(flags & ISW_PAGE_WRITING) || (flags & ISW_PAGE_BUSY));
            CHECK(!(flags & ISW_PAGE_LOST) || !(flags & (ISW_PAGE_REMOTE | ISW_PAGE_DISK | ISW_PAGE_PUNCH)));
            CHECK(!(flags & ISW_PAGE_PUNCH) || !(flags & (ISW_PAGE_REMOTE | ISW_PAGE_DISK) || pending));
            CHECK(!(flags & ISW_PAGE_DISK) || !pending);
            CHECK(is_legal(s, flags | ISW_PAGE_BUSY | ISW_PAGE_WRITING, pending));
        }
    CHECK_EQUAL(legal, 9);
    free(s);
}

/* A page whose only copy is remote waits for resync, zeroes that are owed for their slab's turn. */
TEST(what_a_page_waits_for_is_under_way)
{
    struct still *s = still();
    CHECK(is_legal(s, ISW_PAGE_REMOTE, false) && is_legal(s, ISW_PAGE_PUNCH, false));
    s->slab.resync.listed = s->slab.punch.listed = false;
    CHECK(!is_legal(s, ISW_PAGE_REMOTE, false) && !is_legal(s, ISW_PAGE_PUNCH, false));
    CHECK(is_legal(s, ISW_PAGE_REMOTE, true));
    s->op.kind = OP_PROMOTE;
    CHECK(!is_legal(s, ISW_PAGE_DISK | ISW_PAGE_BUSY | ISW_PAGE_WRITING, false));
    free(s);
}

/* A pending buffer and its page know of each other, and of what is in flight. */
TEST(buffers_and_pages_agree)
{
    struct still *s = still();
    const uint32_t flags[] = {[BUFFER_QUEUED] = 0, [BUFFER_BLOCKED] = 0, [BUFFER_RESTING] = 0, [BUFFER_IN_FLIGHT] = ISW_PAGE_DISK_BUSY};
    for (uint32_t state = BUFFER_QUEUED; state <= BUFFER_IN_FLIGHT; state++) {
        s->buffer.state = state;
        CHECK(is_legal(s, ISW_PAGE_REMOTE | flags[state], true) && !buffer_wrong(&s->device, 1));
        is_legal(s, ISW_PAGE_REMOTE, false);
        CHECK(buffer_wrong(&s->device, 1));
    }
    s->buffer.state = BUFFER_QUEUED;
    is_legal(s, ISW_PAGE_REMOTE | ISW_PAGE_DISK_BUSY, true);
    CHECK(buffer_wrong(&s->device, 1));
    s->buffer.state = BUFFER_FREE;
    CHECK(!is_legal(s, ISW_PAGE_REMOTE, true));
    free(s);
}
