/* A log in use.  One thread owns everything here, the device's loop or the tool that opened it; nothing is locked.
 *
 *   requests -> queue -> chunks -> the inner backup, which is what moves bytes: io_uring or threads on the same file
 *
 * What must hold (tests/test_log.c, test_log_model.c):
 *  1. Chunks are told done in the order of the chain: what is told done is found again by who follows the chain.
 *  2. A chunk that fails, or an fdatasync, breaks the chain: all behind it fail, and nothing is told done until a checkpoint
 *     has put the chain's beginning elsewhere.
 *  3. A segment is used anew when none of its pages is in the map, an fdatasync covers what took their place, no read of it
 *     is in flight, and the last checkpoint covers its last chunk: until then somebody may have to follow the chain through it.
 *  4. The cleaner's copies come into the map when an fdatasync covers them: until then the originals are the pages. */
#ifndef ISW_LOG_H
#define ISW_LOG_H

#include "backup.h"
#include "log_format.h"

enum {
    LOG_CHUNKS = 16,   /* in flight */
    LOG_PIECES = 256,  /* reads in flight, of neighbouring blocks */
    LOG_MAP_BLOCKS_AT_ONCE = 64, /* of a checkpoint, in one write */
    LOG_INNER_CAPACITY = LOG_CHUNKS + LOG_PIECES + 8,
    LOG_KEPT_FOR_CLEANING = 4, /* free segments that only the cleaner begins */
    LOG_SEGMENTS_UNSYNCED = 16, /* begun since the last fdatasync, at which the log syncs by itself: so much is looked at after a power cut */
    LOG_CHECKPOINT_SEGMENTS = 256, /* begun since the last checkpoint, and more where the map is large (log_checkpoint.c) */
    LOG_RETRY_MS = 200, /* after a checkpoint or a cleaning that failed */
};
#define LOG_SEQUENCE_LEAP (1ull << 20) /* at an opening and after a break: no chunk of before is taken for one of the chain */

enum log_segment_state { LOG_FREE, LOG_NEXT, LOG_OPEN, LOG_CLOSED };

struct log_segment {
    uint64_t last; /* sequence of its youngest chunk */
    uint64_t dead; /* of the one that took its last page's place */
    uint16_t live; /* pages that the map has in it */
    uint16_t reads; /* in flight */
    uint8_t flying; /* chunks */
    uint8_t state;
    bool counted; /* among the dead */
};

struct log_chunk {
    union log_block *header;
    struct backup_request inner;
    struct iovec iov[LOG_CHUNK_ENTRIES + 1];
    struct backup_request *ends; /* requests whose last part it is, latest first */
    uint32_t segment, block;
    uint32_t copies; /* pages of the cleaner's */
    bool done;
    struct log_chunk *next;
};

struct log_piece { /* of a read */
    struct backup_request inner;
    struct iovec iov[ISW_OP_PAGES_MAX];
    struct backup_request *whole;
    uint64_t at; /* first page in it ... */
    uint32_t pages; /* ... and how many */
    uint32_t segment;
    uint16_t check[ISW_OP_PAGES_MAX];
    struct log_piece *next;
};

struct log_list { /* of requests */
    struct backup_request *first, **end;
};

struct log_sync {
    struct backup_request inner;
    bool in_flight, wanted;
    uint64_t begun; /* counted */
    int untold; /* error of one that failed and that no user of the log has heard of */
    uint64_t covers; /* completed when it began */
    struct log_list waiting, riding; /* the user's */
};

enum log_checkpoint_stage {
    CHECKPOINT_NONE,
    CHECKPOINT_WIPE, CHECKPOINT_WIPE_SYNC, /* of the superblock that a failed one may have left: its map is about to be overwritten */
    CHECKPOINT_MAP, CHECKPOINT_MAP_SYNC,
    CHECKPOINT_SUPERBLOCK, CHECKPOINT_LAST_SYNC,
};

struct log_checkpoint {
    enum log_checkpoint_stage stage;
    bool in_flight, mends, wipe, shaken; /* shaken: an fdatasync failed while a write of it is in flight */
    uint32_t at; /* block of the map */
    uint64_t sync; /* which must be over */
    struct log_superblock next; /* what it will say */
    struct backup_request inner;
    struct iovec iov;
    union log_block *blocks, *superblock;
    uint64_t rest_ns;
};

enum log_clean_stage { CLEAN_NONE, CLEAN_READ, CLEAN_COPY, CLEAN_SYNC };

struct log_live { /* a page to be moved */
    uint64_t page;
    uint32_t place, crc;
};

struct log_clean {
    enum log_clean_stage stage;
    uint32_t victim;
    uint8_t *segment; /* its bytes */
    struct log_live live[LOG_SEGMENT_BLOCKS];
    uint32_t count, given, done;
    uint32_t to[LOG_SEGMENT_BLOCKS]; /* their new places */
    uint64_t last; /* sequence of the last copy's chunk */
    bool failed;
    struct backup_request inner;
    struct iovec iov;
    uint64_t rest_ns;
};

struct isw_log {
    struct backup base; /* what the device sees */
    struct backup *inner;
    int fd;
    bool read_only;
    bool opening; /* nothing is begun that would outlive the inner backup of the opening */
    struct log_geometry geometry;
    uint8_t id[LOG_ID_BYTES];

    uint32_t *place; /* the map */
    uint16_t *check;
    struct log_segment *segment;
    uint32_t free_segments, dead_segments; /* dead: closed, nothing live in them, and not free yet */
    uint32_t cursor; /* where a free one is looked for */
    uint64_t live_pages;

    /* Where the next chunk goes: in the open segment; the one after it is chosen already. */
    uint32_t open, block, next;
    bool open_is_kept; /* for the cleaner */
    uint64_t sequence, previous; /* last given; what the next chunk names as the one before it */
    uint64_t completed, durable;
    struct log_tail { /* where the chain goes on behind the last completed chunk */
        uint32_t segment, block, next;
    } tail;
    uint32_t begun_since_sync, begun_since_checkpoint;
    bool broken, left; /* left: and the segment in which it broke is closed */

    struct log_list queue; /* writes and trims that are in no chunk yet, or not wholly */
    uint32_t head_vector; /* of the first one: how far it is in chunks */
    size_t head_skip;
    struct log_chunk *chunks, *free_chunks, *flying, **flying_end;
    struct log_list reads; /* that wait for pieces */
    struct log_piece *pieces, *free_pieces;
    struct log_sync sync;
    uint64_t generation, checkpoint_sequence;
    bool checkpoint_asked;
    struct log_checkpoint checkpoint;
    struct log_clean clean;
    struct backup_request *done, **done_end;

    uint64_t replayed_chunks, refused_copies, torn_pages, bad_pages, cleaned_segments, checkpoints;
    void *arena;
    size_t arena_bytes;
};

static inline void log_list_init(struct log_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}
static inline void log_list_add(struct log_list *list, struct backup_request *request)
{
    request->next = NULL;
    *list->end = request;
    list->end = &request->next;
}
static inline struct backup_request *log_list_take(struct log_list *list)
{
    struct backup_request *request = list->first;
    if (request && !(list->first = request->next))
        list->end = &list->first;
    return request;
}
static inline uint32_t log_place(uint32_t segment, uint32_t block)
{
    return segment * LOG_SEGMENT_BLOCKS + block + 1;
}
static inline uint32_t log_place_segment(uint32_t place)
{
    return (place - 1) / LOG_SEGMENT_BLOCKS;
}
static inline uint32_t log_place_block(uint32_t place) /* in its segment */
{
    return (place - 1) % LOG_SEGMENT_BLOCKS;
}
static inline uint64_t log_place_offset(const isw_log *log, uint32_t place)
{
    return (log->geometry.segments_at + place - 1) * LOG_BLOCK_BYTES;
}
static inline uint64_t log_segment_offset(const isw_log *log, uint32_t segment, uint32_t block)
{
    return log_place_offset(log, log_place(segment, block));
}

/* The log as a device's backup; owns inner, which is of the log's file and of LOG_INNER_CAPACITY, and gives the requests' memory
 * back by destroy. */
struct backup *log_backup_create(isw_log *log, struct backup *inner);
void log_done(isw_log *log, struct backup_request *request, int error); /* a request of the user's */

/* log_cut.c */
uint64_t log_cut_at(const isw_log *log); /* where somebody has cut the file off; 0: it is whole */
bool log_is_beyond(const isw_log *log, uint64_t page, uint64_t size_bytes);
void log_cut(isw_log *log, uint64_t size_bytes); /* what was there is gone, and the file has its length again */

/* log_map.c */
void log_map_set(isw_log *log, uint64_t page, uint32_t place, uint16_t check, uint64_t sequence);
void log_map_count(isw_log *log); /* anew, after an opening */
bool log_segment_take(isw_log *log, uint32_t *segment); /* a free one */
void log_segment_settle(isw_log *log, uint32_t segment); /* it may have become free */
void log_segments_settle(isw_log *log);
bool log_wants_cleaning(const isw_log *log);
static inline bool log_short(const isw_log *log) /* of free segments: what is dead has to become free now */
{
    return log->free_segments < 2 * LOG_KEPT_FOR_CLEANING;
}

/* log_append.c */
void log_append(isw_log *log);
void log_chunk_done(isw_log *log, struct log_chunk *chunk);
void log_break(isw_log *log);
void log_mend(isw_log *log); /* a checkpoint has put the chain's beginning elsewhere */
void log_fail_queue(isw_log *log, int error);

/* log_read.c */
void log_read_more(isw_log *log);
void log_piece_done(isw_log *log, struct log_piece *piece);

/* log_sync.c */
void log_sync_run(isw_log *log);
void log_sync_done(isw_log *log);
uint64_t log_sync_want(isw_log *log); /* the number of one that covers all up to now */
static inline bool log_sync_over(const isw_log *log, uint64_t number)
{
    return log->sync.begun >= number + log->sync.in_flight;
}

/* log_checkpoint.c */
void log_checkpoint_run(isw_log *log);
void log_checkpoint_moved(isw_log *log); /* its write is done */
void log_checkpoint_shake(isw_log *log); /* an fdatasync has failed */

/* log_clean.c */
void log_clean_run(isw_log *log);
void log_clean_read(isw_log *log);
void log_clean_copied(isw_log *log, struct log_chunk *chunk);
void log_clean_abort(isw_log *log);

#endif
