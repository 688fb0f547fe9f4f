/* The pools of fixed size. */
#ifndef ISW_POOL_H
#define ISW_POOL_H

#include "bitmap.h"
#include "op.h"

struct pools {
    struct request *free_requests;
    uint32_t requests_free;
    struct op *free_ops;
    uint32_t ops_free;
    struct transfer *free_transfers;
    uint8_t *free_small, *free_large; /* read buffers, linked through their first bytes */
    uint32_t small_free, large_free;
    uint32_t buffers_free; /* pending buffers ... */
    struct bitmap buffers_left; /* ... and which they are */
};

void pools_fill(struct device *d); /* once */
struct op *op_take(struct device *d, enum op_kind kind, uint64_t first, uint32_t pages);
void op_give(struct device *d, struct op *op);
void op_untake(struct device *d, struct op *op);
struct request *request_take(struct device *d);
void request_give(struct device *d, struct request *request);
struct transfer *transfer_take(struct device *d, struct op *op, enum transfer_kind kind, uint32_t at, uint32_t pages);
void transfer_give(struct device *d, struct transfer *transfer);
bool read_buffer_take(struct device *d, struct op *op);
void read_buffer_give(struct device *d, struct op *op);
bool read_buffer_is_large(const struct device *d, const uint8_t *data);
uint32_t buffer_take(struct device *d, uint64_t page); /* index + 1, or 0 */
void buffer_give(struct device *d, uint32_t buffer);
uint32_t buffers_for_resync(const struct device *d);

#endif
