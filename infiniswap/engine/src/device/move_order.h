/* In which order pages go from the backup to peers: that of their places there, some thousands of pages at a time. */
#ifndef ISW_MOVE_ORDER_H
#define ISW_MOVE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

struct cutter;
struct device;

enum { MOVE_ORDER_PAGES = 16384 /* 64 MiB: a slab as it is by default */ };

struct move_order {
    /* With a log: place << 32 | page, neither of which has more than 32 bits there.  Else: page, which is its place. */
    uint64_t *key, *twin;
    uint32_t count, at; /* at: the next one */
    bool ready;         /* all are here that come into it, in order */
};

static inline bool move_order_ended(const struct move_order *order)
{
    return order->at == order->count;
}
void move_order_cut(struct device *d, struct cutter *c);
void move_order_add(struct device *d, uint64_t page);
/* Begins with the first one. */
void move_order_sort(struct device *d);
void move_order_clear(struct move_order *order);
uint64_t move_order_page(const struct device *d, uint32_t at);
uint64_t move_order_place(const struct device *d, uint32_t at);
/* It still lies there. */
bool move_order_holds(const struct device *d, uint32_t at);

#endif
