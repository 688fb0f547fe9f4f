/* A log's beginning and end, and what is asked of it as a whole. */
#include "counters.h"
#include "cutter.h"
#include "log.h"
#include "log_doubt.h"
#include "log_end.h"
#include "log_replay.h"
#include "loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LIFE_LEAPS = 4 }; /* how far apart lives that begin at one place are at most */

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

/* Superblocks and maps have their room on the disk from the beginning, also in a sparse file: what mends a log on a disk that is full
 * is a checkpoint.  -ENOSPC; where nothing can be reserved, as of a block device, there is nothing to do. */
static int reserve_front(int fd, const struct log_geometry *geometry)
{
    off_t bytes = (off_t)((log_map_at(geometry, 1) + geometry->map_blocks) * LOG_BLOCK_BYTES);
    return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, bytes) < 0 && errno == ENOSPC ? -ENOSPC : 0;
}

int isw_log_format(int fd, uint64_t size_bytes)
{
    struct log_geometry geometry;
    int result = log_geometry(size_bytes, &geometry);
    if (result)
        return result;
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    log_geometry_fill(&geometry, (uint64_t)end);
    static const union log_block none;
    union log_block block = {.superblock = {.generation = 1,
                                            .size_bytes = size_bytes,
                                            .segments = geometry.segments,
                                            .area = LOG_AREA_NONE,
                                            .next = 1}};
    if (getrandom(block.superblock.id, LOG_ID_BYTES, 0) != LOG_ID_BYTES)
        return -EIO;
    log_superblock_seal(&block);
    result = reserve_front(fd, &geometry);
    result = result ? result : write_block(fd, &none, 0); /* what counts is the other one */
    result = result ? result : write_block(fd, &block, 1);
    return result ? result : fsync(fd) < 0 ? -errno : 0;
}

/* ---- memory: one mapping, cut up once ---- */

static void cut_arena(isw_log *log, struct cutter *c)
{
    log->clean.segment = cut(c, (size_t)LOG_SEGMENT_BLOCKS * LOG_BLOCK_BYTES); /* first: where a huge page may begin */
    for (uint32_t i = 0; i < 2; i++)
        log->clean.batch[i].data = cut(c, (size_t)LOG_BATCH_PAGES * LOG_BLOCK_BYTES);
    union log_block *headers = cut(c, LOG_CHUNKS * sizeof *headers);
    log->checkpoint.blocks = cut(c, LOG_MAP_BLOCKS_AT_ONCE * sizeof *log->checkpoint.blocks);
    log->checkpoint.superblock = cut(c, sizeof *log->checkpoint.superblock);
    log->place = cut(c, log->geometry.pages * sizeof *log->place);
    log->check = cut(c, log->geometry.pages * sizeof *log->check);
    log->segment = cut(c, log->geometry.segments * sizeof *log->segment);
    log->clean.listing.choice = cut(c, log->geometry.segments);
    log->clean.listing.page = cut(c, LOG_CHOICES * sizeof *log->clean.listing.page);
    log->clean.borrow.loan = cut(c, LOG_SOFT_LIVE_MAX * sizeof *log->clean.borrow.loan);
    log->chunks = cut(c, LOG_CHUNKS * sizeof *log->chunks);
    log->pieces = cut(c, LOG_PIECES * sizeof *log->pieces);
    log->sinks = cut(c, LOG_SINKS * sizeof *log->sinks);
    for (uint32_t i = 0; c->base && i < LOG_CHUNKS; i++) {
        log->chunks[i].header = &headers[i];
        log->chunks[i].next = log->free_chunks;
        log->free_chunks = &log->chunks[i];
    }
    for (uint32_t i = 0; c->base && i < LOG_SINKS; i++) {
        log->sinks[i].next = log->free_sinks;
        log->free_sinks = &log->sinks[i];
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
    /* For a victim that is read the kernel then looks one page up and not 512; where that is not to be had, it is slower. */
    madvise(log->arena, ((size_t)LOG_SEGMENT_BLOCKS + 2 * LOG_BATCH_PAGES) * LOG_BLOCK_BYTES, MADV_HUGEPAGE);
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

static bool is_zero(const union log_block *block)
{
    static const union log_block none;
    return memcmp(block, &none, sizeof none) == 0;
}

struct superblocks {
    struct log_superblock newest, older; /* generation 0: none */
    bool doubtful;                       /* what is none may have been the younger one */
};

/* newest: the one that counts.  -EMEDIUMTYPE: there is none. */
static int read_superblocks(int fd, struct superblocks *found)
{
    union log_block block;
    *found = (struct superblocks){.doubtful = false};
    for (uint64_t i = 0; i < LOG_SUPERBLOCKS; i++) {
        ssize_t got = pread(fd, &block, sizeof block, (off_t)(i * LOG_BLOCK_BYTES));
        if (got < 0 && errno != EIO)
            return -errno;
        if (got != sizeof block || !log_superblock_valid(&block))
            found->doubtful = found->doubtful || got != sizeof block || !is_zero(&block);
        else if (block.superblock.generation > found->newest.generation) {
            found->older = found->newest;
            found->newest = block.superblock;
        } else {
            found->older = block.superblock;
        }
    }
    return found->newest.generation ? 0 : -EMEDIUMTYPE;
}

static int told_geometry(const struct log_superblock *superblock, struct log_geometry *geometry)
{
    int result = log_geometry(superblock->size_bytes, geometry);
    return result || log_geometry_widen(geometry, superblock->segments) ? result : -EBADMSG;
}

int isw_log_told_bytes(int fd, uint64_t *file_bytes)
{
    struct superblocks found;
    struct log_geometry geometry;
    int result = read_superblocks(fd, &found);
    result = result ? result : told_geometry(&found.newest, &geometry);
    if (!result)
        *file_bytes = geometry.file_bytes;
    return result;
}

static int check_file(const isw_log *log, const struct log_superblock *superblock)
{
    off_t end = lseek(log->fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    bool fits = (uint64_t)end >= log->geometry.file_bytes && superblock->segment < log->geometry.segments && superblock->next < log->geometry.segments &&
                superblock->block <= LOG_SEGMENT_BLOCKS && superblock->area <= LOG_AREA_NONE;
    return fits ? 0 : -EBADMSG;
}

/* block: NULL, or as it stands there; damaged: one that is none costs its pages, and no more. */
static int load_map_block(isw_log *log, const union log_block *block, uint32_t at, uint64_t generation, bool damaged)
{
    uint64_t first = (uint64_t)at * LOG_MAP_ENTRIES, pages = log->geometry.pages - first;
    pages = pages < LOG_MAP_ENTRIES ? pages : LOG_MAP_ENTRIES;
    if (block && log_map_valid(block, at, generation)) {
        memcpy(log->place + first, block->map.place, pages * sizeof *log->place);
        memcpy(log->check + first, block->map.check, pages * sizeof *log->check);
        return 0;
    }
    for (uint64_t i = 0; damaged && i < pages; i++)
        log->place[first + i] = LOG_PLACE_BAD;
    return damaged ? 0 : -EBADMSG;
}

static int load_map(isw_log *log, const struct log_superblock *superblock, bool damaged)
{
    const struct log_geometry *geometry = &log->geometry;
    for (uint32_t at = 0; superblock->area != LOG_AREA_NONE && at < geometry->map_blocks;) {
        uint32_t left = geometry->map_blocks - at, count = left < LOG_MAP_BLOCKS_AT_ONCE ? left : LOG_MAP_BLOCKS_AT_ONCE;
        off_t offset = (off_t)((log_map_at(geometry, superblock->area) + at) * LOG_BLOCK_BYTES);
        ssize_t got = pread(log->fd, log->checkpoint.blocks, (size_t)count * LOG_BLOCK_BYTES, offset);
        if (got < LOG_BLOCK_BYTES) /* a bad block behind it must not hide this one */
            got = pread(log->fd, log->checkpoint.blocks, LOG_BLOCK_BYTES, offset);
        if (got < 0 && !damaged)
            return -errno;
        uint32_t whole = got < 0 ? 0 : (uint32_t)got / LOG_BLOCK_BYTES;
        for (uint32_t i = 0; i == 0 || i < whole; i++, at++) {
            int result = load_map_block(log, whole ? &log->checkpoint.blocks[i] : NULL, at, superblock->generation, damaged);
            if (result)
                return result;
        }
    }
    uint64_t places = (uint64_t)geometry->segments * LOG_SEGMENT_BLOCKS;
    for (uint64_t page = 0; page < geometry->pages; page++)
        if (log->place[page] > places && log->place[page] != LOG_PLACE_BAD)
            return -EBADMSG;
    return 0;
}

/* Sequence numbers of its own: what a power cut left of lives that it undid must not look like this one's, and all begin at one place. */
static uint64_t leap(void)
{
    return LOG_SEQUENCE_LEAP + (clock_ns() / 1024) % (LIFE_LEAPS * LOG_SEQUENCE_LEAP);
}

/* Who goes on writing begins in the segment that the chain calls the next. */
static int begin_life(isw_log *log)
{
    log->next = log->tail.next;
    log->open = log->tail.segment;
    log->block = LOG_SEGMENT_BLOCKS;
    if (log->segment[log->next].live)
        return -EBADMSG;
    log->previous = log->begun_at = log->completed;
    log->sequence = log->completed + leap();
    log->durable = log->completed;
    log->checkpoint_asked = log->end_unsure; /* what is written from here on must not hang on that */
    log->alive = true;
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

/* A chain that broke begins anew, and never where a chunk ends. */
static bool begins_anew(const struct log_superblock *s)
{
    return !s->block && s->segment == s->next;
}

static bool same_place(const struct log_superblock *a, const struct log_superblock *b)
{
    return a->sequence == b->sequence && a->segment == b->segment && a->block == b->block && a->next == b->next;
}

/* What was torn must not look like rot to the next opening, nor a copy like the page: also where the newest superblock rots by then.
 * So both have to say what there is; or the second one of an opening that died after the first, or of a process that died when it had
 * mended its chain, and the older one leads to what failed. */
static uint32_t owed(const isw_log *log, const struct superblocks *found)
{
    if (log->torn_pages || log->refused_copies || log->ends_early)
        return LOG_SUPERBLOCKS;
    bool first = !log->replayed_chunks || begins_anew(&found->newest);
    return first && found->older.generation && !same_place(&found->older, &found->newest);
}

static int open_log(isw_log *log, uint32_t flags)
{
    struct superblocks found;
    const struct log_superblock *superblock = &found.newest;
    bool damaged = flags & ISW_LOG_DAMAGED;
    int result = read_superblocks(log->fd, &found);
    result = result ? result : told_geometry(superblock, &log->geometry);
    result = result ? result : check_file(log, superblock);
    result = result ? result : take_memory(log);
    result = result ? result : load_map(log, superblock, damaged);
    if (result)
        return result;
    memcpy(log->id, superblock->id, LOG_ID_BYTES);
    log->generation = superblock->generation;
    log->checkpoint_sequence = log->completed = superblock->sequence;
    log->tail = (struct log_tail){superblock->segment, superblock->block, (uint32_t)superblock->next};
    struct log_doubt *doubt = NULL;
    result = found.doubtful ? log_doubt_open(log, &doubt) : 0;
    result = result ? result : log_replay(log, flags & ISW_LOG_SAME_BOOT, doubt);
    log->ends_early = !result && log_ends_early(log, doubt);
    log_doubt_close(doubt);
    if (result)
        return result;
    log->owed = owed(log, &found);
    if (log->ends_early && !damaged)
        return -EUCLEAN;
    log_map_count(log);
    if (log->read_only)
        return 0;
    if (log->ends_early && !log_end_here(log))
        return -EBADMSG;
    (void)reserve_front(log->fd, &log->geometry); /* an older one may lack it; if it still does, it is no worse than it was */
    if (fdatasync(log->fd) < 0)
        return -errno;
    return begin_life(log);
}

static const char *said(int error)
{
    return error == EMEDIUMTYPE ? "it holds no log"
           : error == EBADMSG   ? "blocks that tell where its pages are have rotted"
           : error == EUCLEAN   ? "a block has rotted, and what was written after that cannot be found"
                                : strerror(error);
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
    for (; !result && !log->read_only && log->owed; log->owed--)
        result = log_checkpoint_now(log);
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
    log_sign(log);
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
                                  .borrowed_pages = __atomic_load_n(&log->borrowed_pages, __ATOMIC_RELAXED),
                                  .checkpoints = __atomic_load_n(&log->checkpoints, __ATOMIC_RELAXED),
                                  .replayed_chunks = log->replayed_chunks,
                                  .torn_pages = log->torn_pages,
                                  .ends_early = log->ends_early,
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
