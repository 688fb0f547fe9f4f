/* A log's beginning and end, and what is asked of it as a whole. */
#include "counters.h"
#include "cutter.h"
#include "log.h"
#include "log_replay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

int isw_log_file_bytes(uint64_t size_bytes, uint64_t *file_bytes)
{
    struct log_geometry geometry;
    int result = log_geometry(size_bytes, &geometry);
    if (!result)
        *file_bytes = geometry.file_bytes;
    return result;
}

static int write_block(int fd, const union log_block *block, uint64_t number)
{
    ssize_t done = pwrite(fd, block, sizeof *block, (off_t)(number * LOG_BLOCK_BYTES));
    return done == sizeof *block ? 0 : done < 0 ? -errno : -ENOSPC;
}

int isw_log_format(int fd, uint64_t size_bytes)
{
    struct log_geometry geometry;
    int result = log_geometry(size_bytes, &geometry);
    if (result)
        return result;
    static const union log_block none;
    union log_block block = {.superblock = {.generation = 1,
                                            .size_bytes = size_bytes,
                                            .segments = geometry.segments,
                                            .area = LOG_AREA_NONE,
                                            .next = 1}};
    if (getrandom(block.superblock.id, LOG_ID_BYTES, 0) != LOG_ID_BYTES)
        return -EIO;
    log_superblock_seal(&block);
    result = write_block(fd, &none, 0); /* what counts is the other one */
    result = result ? result : write_block(fd, &block, 1);
    return result ? result : fsync(fd) < 0 ? -errno : 0;
}

/* ---- memory: one mapping, cut up once ---- */

static void cut_arena(isw_log *log, struct cutter *c)
{
    union log_block *headers = cut(c, LOG_CHUNKS * sizeof *headers);
    log->checkpoint.blocks = cut(c, LOG_MAP_BLOCKS_AT_ONCE * sizeof *log->checkpoint.blocks);
    log->checkpoint.superblock = cut(c, sizeof *log->checkpoint.superblock);
    log->clean.segment = cut(c, (size_t)LOG_SEGMENT_BLOCKS * LOG_BLOCK_BYTES);
    log->place = cut(c, log->geometry.pages * sizeof *log->place);
    log->check = cut(c, log->geometry.pages * sizeof *log->check);
    log->segment = cut(c, log->geometry.segments * sizeof *log->segment);
    log->chunks = cut(c, LOG_CHUNKS * sizeof *log->chunks);
    log->pieces = cut(c, LOG_PIECES * sizeof *log->pieces);
    for (uint32_t i = 0; c->base && i < LOG_CHUNKS; i++) {
        log->chunks[i].header = &headers[i];
        log->chunks[i].next = log->free_chunks;
        log->free_chunks = &log->chunks[i];
    }
    for (uint32_t i = 0; c->base && i < LOG_PIECES; i++) {
        log->pieces[i].next = log->free_pieces;
        log->free_pieces = &log->pieces[i];
    }
}

static int take_memory(isw_log *log)
{
    struct cutter cutter = {0};
    cut_arena(log, &cutter);
    log->arena_bytes = cutter.used;
    log->arena = mmap(NULL, log->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (log->arena == MAP_FAILED) {
        log->arena = NULL;
        return -ENOMEM;
    }
    cutter = (struct cutter){.base = log->arena};
    cut_arena(log, &cutter);
    return 0;
}

static void begin_empty(isw_log *log)
{
    log_list_init(&log->queue);
    log_list_init(&log->reads);
    log_list_init(&log->sync.waiting);
    log_list_init(&log->sync.riding);
    log->flying_end = &log->flying;
    log->done_end = &log->done;
}

/* ---- open ---- */

/* The superblock that counts.  -EMEDIUMTYPE: there is none. */
static int read_superblock(int fd, struct log_superblock *superblock)
{
    union log_block block;
    superblock->generation = 0;
    for (uint64_t i = 0; i < LOG_SUPERBLOCKS; i++) {
        ssize_t got = pread(fd, &block, sizeof block, (off_t)(i * LOG_BLOCK_BYTES));
        if (got < 0 && errno != EIO)
            return -errno;
        if (got == sizeof block && log_superblock_valid(&block) && block.superblock.generation > superblock->generation)
            *superblock = block.superblock;
    }
    return superblock->generation ? 0 : -EMEDIUMTYPE;
}

static int check_file(const isw_log *log, const struct log_superblock *superblock)
{
    off_t end = lseek(log->fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    bool fits = (uint64_t)end >= log->geometry.file_bytes && superblock->segments == log->geometry.segments &&
                superblock->segment < log->geometry.segments && superblock->next < log->geometry.segments &&
                superblock->block <= LOG_SEGMENT_BLOCKS && superblock->area <= LOG_AREA_NONE;
    return fits ? 0 : -EBADMSG;
}

static int load_map(isw_log *log, const struct log_superblock *superblock)
{
    const struct log_geometry *geometry = &log->geometry;
    for (uint32_t at = 0; superblock->area != LOG_AREA_NONE && at < geometry->map_blocks;) {
        uint32_t left = geometry->map_blocks - at, count = left < LOG_MAP_BLOCKS_AT_ONCE ? left : LOG_MAP_BLOCKS_AT_ONCE;
        size_t bytes = (size_t)count * LOG_BLOCK_BYTES;
        off_t offset = (off_t)((log_map_at(geometry, superblock->area) + at) * LOG_BLOCK_BYTES);
        ssize_t got = pread(log->fd, log->checkpoint.blocks, bytes, offset);
        if (got != (ssize_t)bytes)
            return got < 0 ? -errno : -EBADMSG;
        for (uint32_t i = 0; i < count; i++, at++) {
            const union log_block *block = &log->checkpoint.blocks[i];
            if (!log_map_valid(block, at, superblock->generation))
                return -EBADMSG;
            uint64_t first = (uint64_t)at * LOG_MAP_ENTRIES, pages = geometry->pages - first;
            pages = pages < LOG_MAP_ENTRIES ? pages : LOG_MAP_ENTRIES;
            memcpy(log->place + first, block->map.place, pages * sizeof *log->place);
            memcpy(log->check + first, block->map.check, pages * sizeof *log->check);
        }
    }
    uint64_t places = (uint64_t)geometry->segments * LOG_SEGMENT_BLOCKS;
    for (uint64_t page = 0; page < geometry->pages; page++)
        if (log->place[page] > places && log->place[page] != LOG_PLACE_BAD)
            return -EBADMSG;
    return 0;
}

/* Who goes on writing begins in the segment that the chain calls the next. */
static int begin_life(isw_log *log)
{
    log->next = log->tail.next;
    log->open = log->tail.segment;
    log->block = LOG_SEGMENT_BLOCKS;
    if (log->segment[log->next].live)
        return -EBADMSG;
    log->previous = log->completed;
    log->sequence = log->completed + LOG_SEQUENCE_LEAP;
    log->durable = log->completed;
    for (uint32_t i = 0; i < log->geometry.segments; i++) {
        struct log_segment *s = &log->segment[i];
        bool in_chain = s->last > log->checkpoint_sequence;
        log->begun_since_checkpoint += in_chain;
        s->state = i == log->next ? LOG_NEXT : s->live || in_chain ? LOG_CLOSED : LOG_FREE;
        log->free_segments += s->state == LOG_FREE;
        if (s->state == LOG_CLOSED)
            log_segment_settle(log, i);
    }
    log->cursor = log->next + 1;
    return 0;
}

static int open_log(isw_log *log, uint32_t flags)
{
    struct log_superblock superblock;
    int result = read_superblock(log->fd, &superblock);
    result = result ? result : log_geometry(superblock.size_bytes, &log->geometry);
    result = result ? result : check_file(log, &superblock);
    result = result ? result : take_memory(log);
    result = result ? result : load_map(log, &superblock);
    if (result)
        return result;
    memcpy(log->id, superblock.id, LOG_ID_BYTES);
    log->generation = superblock.generation;
    log->checkpoint_sequence = log->completed = superblock.sequence;
    log->tail = (struct log_tail){superblock.segment, superblock.block, (uint32_t)superblock.next};
    result = log_replay(log, flags & ISW_LOG_SAME_BOOT);
    if (result)
        return result;
    log_map_count(log);
    if (log->read_only)
        return 0;
    if (fdatasync(log->fd) < 0)
        return -errno;
    return begin_life(log);
}

static const char *said(int error)
{
    return error == EMEDIUMTYPE ? "it holds no log" : error == EBADMSG ? "the log in it is damaged" : strerror(error);
}

isw_log *isw_log_open(int fd, uint32_t flags, char *error, size_t error_bytes)
{
    isw_log *log = calloc(1, sizeof *log);
    int result = log ? 0 : -ENOMEM;
    if (log) {
        begin_empty(log);
        log->read_only = flags & ISW_LOG_READ_ONLY;
        log->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        result = log->fd < 0 ? -errno : open_log(log, flags);
    }
    if (!result && !log->read_only && (log->torn_pages || log->refused_copies))
        result = log_checkpoint_now(log); /* what was torn must not look like rot to the next opening, nor a copy like the page */
    if (!result)
        return log;
    snprintf(error, error_bytes, "%s", said(-result));
    if (log)
        isw_log_close(log);
    errno = -result;
    return NULL;
}

void isw_log_close(isw_log *log)
{
    int error = errno;
    log_tool_end(log);
    if (log->arena)
        munmap(log->arena, log->arena_bytes);
    if (log->fd >= 0)
        close(log->fd);
    free(log);
    errno = error;
}

/* ---- asked by any thread ---- */

void isw_log_info(const isw_log *log, struct isw_log_info *info)
{
    *info = (struct isw_log_info){.size_bytes = log->geometry.pages * ISW_PAGE_BYTES,
                                  .file_bytes = log->geometry.file_bytes,
                                  .live_pages = __atomic_load_n(&log->live_pages, __ATOMIC_RELAXED),
                                  .segments = log->geometry.segments,
                                  .free_segments = __atomic_load_n(&log->free_segments, __ATOMIC_RELAXED),
                                  .cleaned_segments = __atomic_load_n(&log->cleaned_segments, __ATOMIC_RELAXED),
                                  .checkpoints = __atomic_load_n(&log->checkpoints, __ATOMIC_RELAXED),
                                  .replayed_chunks = log->replayed_chunks,
                                  .torn_pages = log->torn_pages,
                                  .bad_pages = __atomic_load_n(&log->bad_pages, __ATOMIC_RELAXED)};
    memcpy(info->id, log->id, sizeof info->id);
}

int isw_log_extent(const isw_log *log, uint64_t from, uint64_t *first, uint64_t *end)
{
    while (from < log->geometry.pages && !log->place[from])
        from++;
    *first = from;
    while (from < log->geometry.pages && log->place[from])
        from++;
    *end = from;
    return *first < *end;
}
