/* Proves that what goes to a peer stands in line as it should: what somebody waits for before what was only guessed. */
#include "check.h"

#include "device.h"
#include "peer.h"

enum { IN_LINE = 4 };

static void stands(const struct peer_link *link, const struct transfer *const order[], uint32_t count)
{
    const struct transfer *t = link->unsent.first;
    for (uint32_t i = 0; i < count; i++, t = t->next)
        CHECK(t == order[i]);
    CHECK(!t);
}

/* Else page-ins without end would keep it, and who waits for it, where it is. */
TEST(a_guess_that_is_waited_for_keeps_its_place)
{
    static struct device d;
    static struct peer peer;
    static struct isw_peer_view view;
    static struct op guess = {.kind = OP_PREFETCH}, other = {.kind = OP_PREFETCH}, read = {.kind = OP_READ}, waiter = {.kind = OP_READ};
    struct transfer t[IN_LINE] = {{.op = &guess}, {.op = &other}, {.op = &read}, {.op = &read}};
    peer.device = &d;
    d.peers = &peer;
    d.peer_views = &view;
    peer.read.pace.hedge_ns = NEVER;
    guess.waiters_end = &guess.waiters;
    for (uint32_t i = 0; i < 3; i++) {
        t[i].kind = TRANSFER_PEER_READ;
        peer_submit(&d, 0, &t[i]);
    }
    stands(&peer.read, (const struct transfer *[]){&t[2], &t[0], &t[1]}, 3); /* nobody waits for either */
    op_wait_for(&waiter, &guess);
    t[3].kind = TRANSFER_PEER_READ;
    peer_submit(&d, 0, &t[3]);
    stands(&peer.read, (const struct transfer *[]){&t[2], &t[0], &t[3], &t[1]}, IN_LINE);
}
