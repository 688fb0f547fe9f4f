/* The log on the disk: a backup that is written in sequence.  Little-endian, in blocks of a page; ARCHITECTURE.md has the
 * whole of it.
 *
 *   superblock, superblock | map, map | segment, segment, ...
 *
 * Superblocks and maps are written in turn: one of each is always whole.  A segment holds chunks: a header and the pages that it
 * names, one after the other, written by one request.  Chunks are a chain: each names the one before it, and stands behind it or
 * at the beginning of the segment that its header calls the next. */
#ifndef ISW_LOG_FORMAT_H
#define ISW_LOG_FORMAT_H

#include "infiniswap_engine.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    LOG_BLOCK_BYTES = ISW_PAGE_BYTES,
    LOG_SEGMENT_BLOCKS = 512, /* 2 MiB: a disk's seek is a small part of writing it */
    LOG_SEGMENTS_MAX = (int)(UINT32_MAX / LOG_SEGMENT_BLOCKS) - 1, /* 16 TiB: a place has 32 bits */
    LOG_CHUNK_ENTRIES = 250,
    LOG_MAP_ENTRIES = 680, /* pages that a block of the map tells of */
    LOG_SUPERBLOCKS = 2,
    LOG_SPARE_SEGMENTS = 16, /* beyond one and a half times the device: so a small one has room to clean, too */
    LOG_VERSION = 1,
    LOG_ID_BYTES = 16,
    LOG_AREA_NONE = 2, /* no map counts: nothing was ever written */
};
#define LOG_PLACE_BAD UINT32_MAX /* of a page whose only copy did not meet its checksum */

struct log_superblock {
    char magic[8]; /* "ISWLOG01" */
    uint32_t version;
    uint32_t crc; /* CRC32C of the block with this zero */
    uint8_t id[LOG_ID_BYTES]; /* random: so no page of a client's can look like a header */
    uint64_t generation; /* the higher one counts */
    uint64_t size_bytes; /* of the device */
    uint32_t segments;
    uint32_t area; /* which map counts, or LOG_AREA_NONE */
    uint64_t sequence; /* of the last chunk that the map holds ... */
    uint32_t segment, block; /* ... and where the one behind it stands: there, ... */
    uint64_t next; /* ... or at the beginning of that segment */
};

enum log_entry_kind {
    LOG_PAGE = 1, /* page; its data are the next block of the chunk */
    LOG_COPY,     /* the same, moved by the cleaner: counts only while the page is still at from */
    LOG_TRIM,     /* page and those behind it, crc of them, have no place any more; no data */
};
struct log_entry {
    uint64_t page_kind; /* page, and its kind in the highest byte */
    uint32_t crc; /* CRC32C of the data; TRIM: number of pages */
    uint32_t from;
};
static inline uint64_t log_page_kind(uint64_t page, enum log_entry_kind kind)
{
    return page | (uint64_t)kind << 56;
}
static inline uint64_t log_entry_page(const struct log_entry *entry)
{
    return entry->page_kind & ((1ull << 56) - 1);
}
static inline uint32_t log_entry_kind(const struct log_entry *entry)
{
    return (uint32_t)(entry->page_kind >> 56);
}

struct log_header {
    char magic[8]; /* "ISWCHUNK" */
    uint32_t version;
    uint32_t crc; /* as above */
    uint8_t id[LOG_ID_BYTES];
    uint64_t sequence, previous; /* never twice; of the chunk before */
    uint64_t completed; /* all up to this one were on the disk when this was written ... */
    uint64_t durable;   /* ... and an fdatasync had covered those */
    uint64_t next; /* segment */
    uint32_t entries;
    uint32_t pages; /* of data behind this block */
    struct log_entry entry[LOG_CHUNK_ENTRIES];
};

struct log_map_block {
    uint32_t crc;
    uint32_t number; /* of the block */
    uint64_t generation;
    uint32_t place[LOG_MAP_ENTRIES]; /* block, counted from the first segment's, + 1; 0: none */
    uint16_t check[LOG_MAP_ENTRIES]; /* see log_check */
};

union log_block {
    _Alignas(LOG_BLOCK_BYTES) uint8_t bytes[LOG_BLOCK_BYTES];
    struct log_superblock superblock;
    struct log_header header;
    struct log_map_block map;
};
static_assert(sizeof(union log_block) == LOG_BLOCK_BYTES, "each is a block");

struct log_geometry {
    uint64_t pages; /* of the device */
    uint32_t map_blocks; /* of each of the two */
    uint32_t segments;
    uint64_t segments_at; /* block */
    uint64_t file_bytes;
};

/* The least that a device of that size needs.  -EINVAL, -EFBIG. */
int log_geometry(uint64_t size_bytes, struct log_geometry *geometry);
/* With so many segments instead.  False: they are too few, or too many. */
bool log_geometry_widen(struct log_geometry *geometry, uint64_t segments);
/* As many as fit into that many bytes. */
void log_geometry_fill(struct log_geometry *geometry, uint64_t file_bytes);
static inline uint64_t log_map_at(const struct log_geometry *geometry, uint32_t area)
{
    return LOG_SUPERBLOCKS + (uint64_t)area * geometry->map_blocks;
}
/* What is kept of a page's CRC in the map, and compared when it is read. */
static inline uint16_t log_check(uint32_t crc)
{
    return (uint16_t)(crc ^ crc >> 16);
}

void log_superblock_seal(union log_block *block);
bool log_superblock_valid(const union log_block *block);
void log_header_seal(union log_block *block);
/* Also that what it says fits into a segment and a device of that many pages. */
bool log_header_valid(const union log_block *block, const uint8_t *id, const struct log_geometry *geometry);
void log_map_seal(union log_block *block);
bool log_map_valid(const union log_block *block, uint32_t number, uint64_t generation);

#endif
