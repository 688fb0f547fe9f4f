/* The little of the NBD protocol that the floor programs speak, and its byte order.
 * Source: NetworkBlockDevice/nbd, doc/proto.md. */
#ifndef FLOOR_WIRE_H
#define FLOOR_WIRE_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_REPLY_MAGIC UINT32_C(0x67446698)

enum { NBD_GREETING_BYTES = 18, NBD_OPTION_BYTES = 16, NBD_REPLY_BYTES = 16, NBD_REQUEST_BYTES = 28 };
enum { NBD_FIXED_NEWSTYLE = 1, NBD_NO_ZEROES = 2 };
enum { NBD_OPT_EXPORT_NAME = 1, NBD_OPT_ABORT = 2, NBD_OPT_INFO = 6, NBD_OPT_GO = 7 };
#define NBD_REP_ACK UINT32_C(1)
#define NBD_REP_INFO UINT32_C(3)
#define NBD_REP_ERR_UNSUP UINT32_C(0x80000001)
enum { NBD_INFO_EXPORT = 0, NBD_INFO_BLOCK_SIZE = 3 };
enum { NBD_FLAG_HAS_FLAGS = 1, NBD_FLAG_SEND_FLUSH = 4, NBD_FLAG_CAN_MULTI_CONN = 256 };
enum { NBD_CMD_READ = 0, NBD_CMD_WRITE = 1, NBD_CMD_DISC = 2, NBD_CMD_FLUSH = 3 };
enum { NBD_EINVAL = 22 };

struct nbd_request {
    uint32_t magic;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
};

static inline uint32_t get_u32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return be32toh(value);
}

static inline uint64_t get_u64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return be64toh(value);
}

static inline void put_u16(uint8_t *to, uint16_t value)
{
    value = htobe16(value);
    memcpy(to, &value, sizeof value);
}

static inline void put_u32(uint8_t *to, uint32_t value)
{
    value = htobe32(value);
    memcpy(to, &value, sizeof value);
}

static inline void put_u64(uint8_t *to, uint64_t value)
{
    value = htobe64(value);
    memcpy(to, &value, sizeof value);
}

static inline struct nbd_request get_request(const uint8_t *head)
{
    struct nbd_request request = {
        .magic = get_u32(head),
        .type = (uint16_t)(head[6] << 8 | head[7]),
        .cookie = get_u64(head + 8),
        .offset = get_u64(head + 16),
        .length = get_u32(head + 24),
    };
    return request;
}

static inline void put_reply(uint8_t *head, uint32_t error, uint64_t cookie)
{
    put_u32(head, NBD_REPLY_MAGIC);
    put_u32(head + 4, error);
    put_u64(head + 8, cookie);
}

#endif
