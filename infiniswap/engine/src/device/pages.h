/* The page table. */
#ifndef ISW_PAGES_H
#define ISW_PAGES_H

#include "op.h"

struct op *page_owner(const struct device *d, uint64_t page); /* NULL: nobody */
uint32_t page_pending(const struct device *d, uint64_t page);
void page_set_pending(struct device *d, uint64_t page, uint32_t buffer);
void page_set_flags(struct device *d, uint64_t page, uint32_t set, uint32_t clear);
/* It reads as zero, and is to be zeroed on the backup; who waits for that epoch waits for it. */
void page_set_punch(struct device *d, uint64_t page, uint64_t epoch, uint32_t set, uint32_t clear);
uint64_t page_punch_epoch(const struct device *d, uint64_t page);
void page_set_remote(struct device *d, uint64_t page, uint32_t sum, uint32_t clear);
bool pages_lock(struct device *d, struct op *op); /* false: parked at the owner of one of them */
void pages_unlock(struct device *d, struct op *op);
uint64_t pages_sequence(const struct device *d, uint64_t first, uint32_t pages);
void pages_touch_sequence(struct device *d, uint64_t first, uint64_t pages);
void pages_recount(struct device *d);
bool page_only_remote(const struct device *d, uint64_t page);
void page_forget_remote(struct device *d, uint64_t page);
void pages_lost(struct device *d, uint64_t pages); /* the last copy of so many */

#endif
