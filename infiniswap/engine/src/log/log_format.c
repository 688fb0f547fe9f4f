#include "log_format.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static const char SUPERBLOCK_MAGIC[8] = {'I', 'S', 'W', 'L', 'O', 'G', '0', '1'};
static const char HEADER_MAGIC[8] = {'I', 'S', 'W', 'C', 'H', 'U', 'N', 'K'};

int log_geometry(uint64_t size_bytes, struct log_geometry *geometry)
{
    if (!size_bytes || size_bytes % ISW_PAGE_BYTES || size_bytes > 1ull << 56)
        return -EINVAL;
    uint64_t pages = size_bytes / ISW_PAGE_BYTES;
    uint64_t payload = LOG_SEGMENT_BLOCKS - 2; /* a segment of full chunks has three headers, nearly */
    uint64_t segments = (pages + pages / 2 + payload - 1) / payload + LOG_SPARE_SEGMENTS;
    geometry->pages = pages;
    geometry->map_blocks = (uint32_t)((pages + LOG_MAP_ENTRIES - 1) / LOG_MAP_ENTRIES);
    geometry->segments = 0;
    uint64_t front = LOG_SUPERBLOCKS + 2ull * geometry->map_blocks;
    geometry->segments_at = (front + LOG_SEGMENT_BLOCKS - 1) / LOG_SEGMENT_BLOCKS * LOG_SEGMENT_BLOCKS;
    return log_geometry_widen(geometry, segments) ? 0 : -EFBIG;
}

bool log_geometry_widen(struct log_geometry *geometry, uint64_t segments)
{
    if (segments < geometry->segments || segments > LOG_SEGMENTS_MAX)
        return false;
    geometry->segments = (uint32_t)segments;
    geometry->file_bytes = (geometry->segments_at + segments * LOG_SEGMENT_BLOCKS) * LOG_BLOCK_BYTES;
    return true;
}

void log_geometry_fill(struct log_geometry *geometry, uint64_t file_bytes)
{
    uint64_t blocks = file_bytes / LOG_BLOCK_BYTES;
    uint64_t fit = blocks < geometry->segments_at ? 0 : (blocks - geometry->segments_at) / LOG_SEGMENT_BLOCKS;
    log_geometry_widen(geometry, fit < LOG_SEGMENTS_MAX ? fit : LOG_SEGMENTS_MAX);
}

/* Of a block as if the field at that offset were zero. */
static uint32_t crc_without(const union log_block *block, size_t offset)
{
    union log_block copy = *block;
    memset(copy.bytes + offset, 0, sizeof(uint32_t));
    return isw_crc32c(&copy, sizeof copy);
}

void log_superblock_seal(union log_block *block)
{
    memcpy(block->superblock.magic, SUPERBLOCK_MAGIC, sizeof SUPERBLOCK_MAGIC);
    block->superblock.version = LOG_VERSION;
    block->superblock.crc = crc_without(block, offsetof(struct log_superblock, crc));
}

bool log_superblock_valid(const union log_block *block)
{
    const struct log_superblock *s = &block->superblock;
    return memcmp(s->magic, SUPERBLOCK_MAGIC, sizeof SUPERBLOCK_MAGIC) == 0 && s->version == LOG_VERSION &&
           s->crc == crc_without(block, offsetof(struct log_superblock, crc));
}

void log_header_seal(union log_block *block)
{
    memcpy(block->header.magic, HEADER_MAGIC, sizeof HEADER_MAGIC);
    block->header.version = LOG_VERSION;
    block->header.crc = crc_without(block, offsetof(struct log_header, crc));
}

static bool entries_fit(const struct log_header *header, const struct log_geometry *geometry)
{
    uint32_t pages = 0;
    for (uint32_t i = 0; i < header->entries; i++) {
        const struct log_entry *entry = &header->entry[i];
        uint64_t page = log_entry_page(entry);
        uint32_t kind = log_entry_kind(entry), count = kind == LOG_TRIM ? entry->crc : 1;
        if (kind < LOG_PAGE || kind > LOG_TRIM || page >= geometry->pages || count > geometry->pages - page)
            return false;
        pages += kind != LOG_TRIM;
    }
    return pages == header->pages;
}

bool log_header_valid(const union log_block *block, const uint8_t *id, const struct log_geometry *geometry)
{
    const struct log_header *header = &block->header;
    return memcmp(header->magic, HEADER_MAGIC, sizeof HEADER_MAGIC) == 0 && header->version == LOG_VERSION &&
           memcmp(header->id, id, LOG_ID_BYTES) == 0 && header->crc == crc_without(block, offsetof(struct log_header, crc)) &&
           header->entries <= LOG_CHUNK_ENTRIES && header->next < geometry->segments && entries_fit(header, geometry);
}

void log_map_seal(union log_block *block)
{
    block->map.crc = crc_without(block, offsetof(struct log_map_block, crc));
}

bool log_map_valid(const union log_block *block, uint32_t number, uint64_t generation)
{
    return block->map.number == number && block->map.generation == generation &&
           block->map.crc == crc_without(block, offsetof(struct log_map_block, crc));
}
