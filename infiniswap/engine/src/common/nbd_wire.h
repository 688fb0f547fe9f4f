/* NBD transmission phase on the wire (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). */
#ifndef ISW_NBD_WIRE_H
#define ISW_NBD_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

enum {
    NBD_REQUEST_MAGIC = 0x25609513,
    NBD_SIMPLE_REPLY_MAGIC = 0x67446698,
    NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef,
    NBD_REQUEST_BYTES = 28,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_CHUNK_BYTES = 20,
};

enum nbd_command {
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_CMD_DISC,
    NBD_CMD_FLUSH,
    NBD_CMD_TRIM,
    NBD_CMD_CACHE,
    NBD_CMD_WRITE_ZEROES,
    NBD_CMD_BLOCK_STATUS,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum {
    NBD_REPLY_FLAG_DONE = 1,
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_ERROR = (1 << 15) + 1,
};

enum { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 };

/* Errors that may travel; everything else is sent as EIO. */
enum {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct nbd_request {
    uint64_t cookie; /* as it came: never interpreted */
    uint64_t offset;
    uint32_t length;
    uint16_t flags;
    uint16_t command;
};

static inline void nbd_put16(uint8_t *at, uint16_t value)
{
    value = htobe16(value);
    memcpy(at, &value, sizeof value);
}

static inline void nbd_put32(uint8_t *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static inline void nbd_put64(uint8_t *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

static inline uint16_t nbd_get16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return be16toh(value);
}

static inline uint32_t nbd_get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static inline uint64_t nbd_get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static inline void nbd_put_request(uint8_t *at, uint16_t command, uint16_t flags, uint64_t cookie, uint64_t offset,
                                   uint32_t length)
{
    nbd_put32(at, NBD_REQUEST_MAGIC);
    nbd_put16(at + 4, flags);
    nbd_put16(at + 6, command);
    memcpy(at + 8, &cookie, sizeof cookie);
    nbd_put64(at + 16, offset);
    nbd_put32(at + 24, length);
}

#endif
