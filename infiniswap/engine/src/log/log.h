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
    LOG_SINKS = 4,     /* of these, at most that read over some */
    LOG_MAP_BLOCKS_AT_ONCE = 64, /* of a checkpoint, in one write */
    LOG_INNER_CAPACITY = LOG_CHUNKS + LOG_PIECES + 8,
    LOG_KEPT_FOR_CLEANING = 4, /* free segments that only the cleaner begins */
    LOG_SEGMENTS_UNSYNCED = 16, /* begun since the last fdatasync, at which the log syncs by itself: so much is looked at after a power cut */
    LOG_CHECKPOINT_SEGMENTS = 256, /* begun since the last checkpoint, and more where the map is large (log_checkpoint.c) */
    LOG_RETRY_MS = 200, /* after a checkpoint or a cleaning that failed; ... */
    LOG_RETRY_DOUBLINGS = 5, /* ... after a checkpoint that nobody waits for twice as long each time, up to 3.2 s */
};
#define LOG_SEQUENCE_LEAP (1ull << 20) /* at least, at an opening and after a break: no chunk of before is taken for one of the chain */

enum log_segment_state { LOG_FREE, LOG_NEXT, LOG_OPEN, LOG_CLOSED };

struct log_segment {
    uint64_t last; /* sequence of its youngest chunk */
    uint64_t dead; /* of the one that took its last page's place */
    uint64_t spared_ns; /* until then it is not cleaned: of some that lives in it no more than that is known; 0: nothing is wrong */
    uint16_t live; /* pages that the map has in it */
    uint16_t reads; /* in flight */
    uint8_t flying; /* chunks */
    uint8_t state;
    bool counted; /* among the dead */
    bool taken; /* pages of it are being moved */
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

union log_sink { /* what nobody wants is read into it */
    uint8_t bytes[BACKUP_GAP_PAGES * LOG_BLOCK_BYTES];
    union log_sink *next; /* free */
};

struct log_piece { /* of a read, or of some that share it */
    struct backup_request inner;
    struct iovec iov[ISW_OP_PAGES_MAX];
    struct backup_request *whole, *last; /* whose it is; those that share it follow each other */
    uint32_t requests;
    uint64_t at;     /* first page of it in whole, if that has more */
    uint32_t pages;  /* that are wanted */
    uint32_t place, behind; /* first block, and the one behind its last */
    union log_sink *sink;   /* NULL: all of it is wanted */
    uint16_t check[ISW_OP_PAGES_MAX];
    struct log_piece *next;
};

struct log_list { /* of requests */
    struct backup_request *first, **end;
};

struct log_sync {
    struct backup_request inner;
    bool in_flight, wanted;
    bool held;        /* who waits in a broken log waits for one attempt to mend it ... */
    uint32_t held_at; /* ... beyond so many that have failed */
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
    uint32_t failures; /* in a row ... */
    uint64_t failed_ns; /* ... and when the last one did */
};

enum {
    LOG_SEGMENT_PAGES = 2 * LOG_CHUNK_ENTRIES, /* that a segment of full chunks has */
    LOG_BATCH_PAGES = 2 * LOG_SEGMENT_PAGES,   /* moved at a time, behind one fdatasync */
    LOG_VICTIMS = 32,                          /* that they come from */
    LOG_CHOICES = 128,                         /* found in one look at all segments */
    LOG_SOFT_LIVE_MAX = LOG_SEGMENT_BLOCKS * 3 / 4, /* more is copied only when free segments are short */
    LOG_VICTIM_RUNS = 64, /* in which a victim is read that cannot be read at once: a bit each */
    LOG_RUN_BLOCKS = LOG_SEGMENT_BLOCKS / LOG_VICTIM_RUNS,
    LOG_SPARED_MS = 60000, /* what could not be read may be by then, or have died */
};

struct log_live { /* a page to be moved */
    uint64_t page;
    uint32_t place, crc;
    uint8_t *data;
};

enum log_batch_stage { BATCH_FILLS, BATCH_FULL, BATCH_COPIES, BATCH_SYNCS };

struct log_batch { /* of pages that are moved together */
    enum log_batch_stage stage;
    uint8_t *data;
    struct log_live live[LOG_BATCH_PAGES];
    uint32_t to[LOG_BATCH_PAGES];        /* their new places; 0: it died before it was copied */
    uint32_t count, given, copied, done; /* given: looked at; copied: in chunks, and done with those */
    uint32_t victim[LOG_VICTIMS], victims;
    uint64_t last; /* sequence of the last copy's chunk */
    bool failed;
};

/* Which pages live in what was chosen: the map looked through, a slice at a time (log_listing.c). */
struct log_listing {
    uint8_t *choice; /* [segments]; 0: it was not chosen, else its place in clean.chosen + 1 */
    uint32_t (*page)[LOG_SOFT_LIVE_MAX]; /* [LOG_CHOICES], by their numbers */
    uint16_t count[LOG_CHOICES];
    uint64_t at; /* page to go on with */
    bool runs, is_there;
};

/* A victim's pages that are asked of the backup's user (log_borrow.c). */
struct log_borrow {
    struct backup_lender lender; /* lend: NULL: there is none */
    bool asked, reads;     /* reads: the disk for those that were not to be had */
    uint32_t first, count; /* of the batch that fills */
    uint32_t out;          /* not answered yet */
    uint64_t begun_ns, read_ns, page_ns; /* means: of reading a whole victim, of borrowing a page; 0: not known */
    uint32_t turn;
    struct backup_loan *loan; /* [LOG_SOFT_LIVE_MAX] */
};

struct log_clean {
    struct log_batch batch[2], *fills, *out; /* one is read while the other is written; NULL: none is */
    uint32_t room;                           /* pages that the one that fills may have */
    uint32_t chosen[LOG_CHOICES], choices, choice;
    uint64_t chosen_at; /* sequence */
    bool again;         /* what is chosen from was there before this batch */
    uint32_t coming;  /* segments that are free once what is under way has come to its end */
    uint8_t *segment; /* a victim's bytes */
    bool reading, in_runs;
    uint32_t run;    /* that is read */
    uint64_t unread; /* those that cannot be */
    struct backup_request inner;
    struct iovec iov;
    uint64_t rest_ns;
    struct log_listing listing;
    struct log_borrow borrow;
};

struct isw_log {
    struct backup base; /* what the device sees */
    struct backup *inner;
    bool tools; /* inner is made here, for who uses the log without a device */
    int fd;
    bool read_only;
    bool alive;   /* its chain goes on: it was opened to be written */
    bool ends_early; /* and is used all the same */
    bool end_unsure; /* an fdatasync over what its opening found last may have failed, and who comes after it does not hear of that */
    uint32_t owed; /* checkpoints, by its opening */
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
    uint64_t begun_at; /* completed, when it was opened */
    struct log_tail { /* where the chain goes on behind the last completed chunk */
        uint32_t segment, block, next;
    } tail;
    uint32_t begun_since_sync, begun_since_checkpoint;
    bool broken, left; /* left: and the segment in which it broke is closed */
    int broken_by; /* the error that all hear who fail with it */
    bool half_mended; /* the older superblock leads to what failed still */

    struct log_list queue; /* writes and trims that are in no chunk yet, or not wholly */
    uint64_t queued; /* entries that they will be */
    uint32_t head_vector; /* of the first one: how far it is in chunks */
    size_t head_skip;
    struct log_chunk *chunks, *free_chunks, *flying, **flying_end;
    struct log_list reads; /* that wait for pieces */
    struct log_piece *pieces, *free_pieces;
    union log_sink *sinks, *free_sinks;
    struct log_sync sync;
    uint64_t generation, checkpoint_sequence;
    bool checkpoint_asked;
    struct log_checkpoint checkpoint;
    struct log_clean clean;
    struct backup_request *done, **done_end;

    uint64_t replayed_chunks, refused_copies, torn_pages, bad_pages, cleaned_segments, borrowed_pages, checkpoints;
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
static inline bool log_lives(const isw_log *log, const struct log_live *live) /* where it was found */
{
    return log->place[live->page] == live->place;
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
int64_t log_spare(const isw_log *log); /* below 0: it wants cleaning */
static inline bool log_short(const isw_log *log) /* of free segments: what is dead has to become free now */
{
    return log->free_segments < 2 * LOG_KEPT_FOR_CLEANING;
}

/* log_append.c */
void log_add(isw_log *log, struct backup_request *request);
void log_append(isw_log *log);
void log_chunk_done(isw_log *log, struct log_chunk *chunk);
void log_break(isw_log *log, int error);
void log_mend(isw_log *log, uint64_t sequence); /* a checkpoint has put the chain's beginning elsewhere */
bool log_is_stuck(const isw_log *log); /* a checkpoint that fails again keeps what is asked from being done */
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
/* Segments that are begun before the next checkpoint at the latest.  An eighth of what is written since the last one may be maps;
 * but the chain never takes more than a sixteenth of the segments, which cannot become free before. */
static inline uint32_t log_checkpoint_interval(const struct log_geometry *geometry)
{
    uint32_t share = geometry->segments / 16;
    uint32_t least = share < LOG_CHECKPOINT_SEGMENTS ? share : LOG_CHECKPOINT_SEGMENTS;
    uint32_t by_map = geometry->map_blocks / (LOG_SEGMENT_BLOCKS / 8);
    return by_map > least ? by_map : least;
}
void log_checkpoint_run(isw_log *log);
bool log_checkpoint_due(const isw_log *log); /* the cleaner has to let it begin */
void log_checkpoint_moved(isw_log *log); /* its write is done */
void log_checkpoint_shake(isw_log *log); /* an fdatasync has failed */

/* log_clean.c */
void log_clean_run(isw_log *log);
uint32_t log_clean_left(isw_log *log); /* pages that are to be copied now */
void log_clean_copied(isw_log *log, struct log_chunk *chunk);
void log_clean_abort(isw_log *log);
void log_clean_filled(isw_log *log); /* a victim's pages are all there, or will never be */

/* log_victim.c */
void log_clean_submit(isw_log *log, uint32_t victim, uint32_t block, uint32_t blocks); /* reads these */
void log_clean_read(isw_log *log); /* they are */
void log_clean_lost(isw_log *log, uint64_t page);

/* log_listing.c */
void log_listing_begin(isw_log *log);
void log_listing_end(isw_log *log);
void log_listing_run(isw_log *log); /* a slice */

/* log_borrow.c */
bool log_borrow_pays(const isw_log *log); /* on this disk, by what both ways have taken */
bool log_borrow_begin(isw_log *log, uint32_t choice); /* false: the victim has to be read */
void log_borrow_lent(isw_log *log, struct backup_loan *loan);
void log_borrow_end(isw_log *log); /* all is answered */
void log_borrow_read(isw_log *log); /* what was not to be had is read */
void log_borrow_whole_read(isw_log *log); /* nothing was borrowed: how long it took */

#endif
