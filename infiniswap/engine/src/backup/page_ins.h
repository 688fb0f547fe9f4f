/* Page-ins from the backup come first: how many writes may be in flight beside them. */
#ifndef ISW_PAGE_INS_H
#define ISW_PAGE_INS_H

#include <stdbool.h>
#include <stdint.h>

struct device;
struct op;

struct page_ins {
    uint32_t in_flight;
    uint64_t last_ns;  /* when one last came */
    uint64_t best_ns;  /* what one takes with nothing in its way */
    uint64_t raised_ns, cut_ns;
    uint32_t limit;    /* writes in flight while there are page-ins */
};

void page_in_begins(struct device *d);
void page_in_ends(struct device *d, uint64_t begun_ns);
bool page_ins_about(const struct device *d); /* there are some, or were just now */
uint32_t page_ins_leave(const struct device *d); /* so many writes may be in flight */
bool op_is_page_in(const struct op *op);
uint32_t page_ins_slots(bool page_in); /* of what operations read and write at the backup, it may begin below so many in flight */

#endif
