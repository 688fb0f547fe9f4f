/* A log puts pages where its end is, so in the order of their numbers they lie far apart, and each is a read of its own; in the
 * order of their places those that were written together are read together, and what is left of the way goes in one direction.
 *
 * What is moved is looked at once more when its turn comes: here it is only what was so a while ago. */
#include "cutter.h"
#include "device.h"
#include "move_order.h"

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS, PLACE_SHIFT = 32 };

void move_order_cut(struct device *d, struct cutter *c)
{
    d->movers.order.key = cut(c, MOVE_ORDER_PAGES * sizeof *d->movers.order.key);
    if (d->config.backup_log)
        d->movers.order.twin = cut(c, MOVE_ORDER_PAGES * sizeof *d->movers.order.twin);
}

static uint32_t place_of(const struct device *d, uint64_t page)
{
    return d->backup->methods->place(d->backup, page);
}

void move_order_add(struct device *d, uint64_t page)
{
    struct move_order *order = &d->movers.order;
    bool placed = d->backup->methods->place;
    order->key[order->count++] = placed ? (uint64_t)place_of(d, page) << PLACE_SHIFT | page : page;
}

uint64_t move_order_page(const struct device *d, uint32_t at)
{
    uint64_t key = d->movers.order.key[at];
    return d->backup->methods->place ? (uint32_t)key : key;
}

uint64_t move_order_place(const struct device *d, uint32_t at)
{
    uint64_t key = d->movers.order.key[at];
    return d->backup->methods->place ? key >> PLACE_SHIFT : key;
}

bool move_order_holds(const struct device *d, uint32_t at)
{
    return !d->backup->methods->place || place_of(d, move_order_page(d, at)) == move_order_place(d, at);
}

/* By the next digit of the place: what was in order by those before stays so. */
static void sort_by(struct move_order *order, uint32_t shift)
{
    uint32_t next[DIGITS] = {0}, sum = 0;
    for (uint32_t i = 0; i < order->count; i++)
        next[order->key[i] >> shift & (DIGITS - 1)]++;
    for (uint32_t digit = 0; digit < DIGITS; digit++) {
        uint32_t count = next[digit];
        next[digit] = sum;
        sum += count;
    }
    for (uint32_t i = 0; i < order->count; i++)
        order->twin[next[order->key[i] >> shift & (DIGITS - 1)]++] = order->key[i];
    uint64_t *sorted = order->twin;
    order->twin = order->key;
    order->key = sorted;
}

/* At most some 100 us. */
void move_order_sort(struct device *d)
{
    struct move_order *order = &d->movers.order;
    for (uint32_t shift = PLACE_SHIFT; d->backup->methods->place && order->count > 1 && shift < 64; shift += DIGIT_BITS)
        sort_by(order, shift);
    order->at = 0;
    order->ready = true;
}

void move_order_clear(struct move_order *order)
{
    order->count = order->at = 0;
    order->ready = false;
}
