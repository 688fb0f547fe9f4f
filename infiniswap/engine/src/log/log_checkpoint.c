/* Checkpoints: the map is written behind the requests, while it changes, and then a superblock that says so.  What changed
 * meanwhile is in the chain behind the place that the superblock names, and is read again by who follows it. */
#include "counters.h"
#include "log.h"
#include "loop.h"

#include <errno.h>
#include <string.h>

/* After one that failed.  Who has nothing to write before it does not wait for longer rests. */
static bool rested(const isw_log *log)
{
    const struct log_checkpoint *checkpoint = &log->checkpoint;
    bool awaited = ((log->broken || log->end_unsure) && (log->queue.first || log->sync.waiting.first)) || log_short(log);
    uint32_t doublings = checkpoint->failures < LOG_RETRY_DOUBLINGS ? checkpoint->failures : LOG_RETRY_DOUBLINGS;
    uint64_t rest_ns = LOG_RETRY_MS * 1000000ull << (awaited || !doublings ? 0 : doublings - 1);
    return !checkpoint->failures || clock_ns() - checkpoint->failed_ns >= rest_ns;
}

bool log_checkpoint_due(const isw_log *log)
{
    return log->checkpoint.stage == CHECKPOINT_NONE && rested(log) &&
           (log->checkpoint_asked || log->begun_since_checkpoint >= log_checkpoint_interval(&log->geometry) ||
            (log->dead_segments && log_short(log) && log->completed > log->checkpoint_sequence));
}

static bool wanted(const isw_log *log)
{
    if (log->broken)
        return log->left && rested(log) && (log->queue.first || log->checkpoint_asked);
    return !log->clean.out && log_checkpoint_due(log); /* its copies would be behind the chain's beginning, and not in the map yet */
}

static void begin(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    uint64_t generation = log->generation + 1;
    checkpoint->next = (struct log_superblock){.generation = generation,
                                               .size_bytes = log->geometry.pages * ISW_PAGE_BYTES,
                                               .segments = log->geometry.segments,
                                               .area = generation % 2,
                                               .sequence = log->broken ? log->sequence + LOG_SEQUENCE_LEAP : log->completed,
                                               .segment = log->tail.segment,
                                               .block = log->tail.block,
                                               .next = log->tail.next};
    memcpy(checkpoint->next.id, log->id, LOG_ID_BYTES);
    checkpoint->mends = log->broken;
    checkpoint->at = 0;
    log->begun_since_checkpoint = 0;
    log->checkpoint_asked = false;
    checkpoint->stage = checkpoint->wipe ? CHECKPOINT_WIPE : CHECKPOINT_MAP;
}

static void fill(const isw_log *log, union log_block *block, uint32_t number)
{
    uint64_t first = (uint64_t)number * LOG_MAP_ENTRIES, left = log->geometry.pages - first;
    uint32_t count = left < LOG_MAP_ENTRIES ? (uint32_t)left : LOG_MAP_ENTRIES;
    memset(block, 0, sizeof *block);
    block->map.number = number;
    block->map.generation = log->checkpoint.next.generation;
    memcpy(block->map.place, log->place + first, count * sizeof *log->place);
    memcpy(block->map.check, log->check + first, count * sizeof *log->check);
    log_map_seal(block);
}

static void write_blocks(isw_log *log, void *data, uint64_t block, uint32_t count)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    checkpoint->iov = (struct iovec){data, (size_t)count * LOG_BLOCK_BYTES};
    checkpoint->inner = (struct backup_request){.kind = BACKUP_WRITE,
                                                .iov = &checkpoint->iov,
                                                .vectors = 1,
                                                .offset = block * LOG_BLOCK_BYTES,
                                                .bytes = checkpoint->iov.iov_len,
                                                .owner = checkpoint};
    checkpoint->in_flight = true;
    log->inner->methods->submit(log->inner, &checkpoint->inner);
}

static void write_superblock(isw_log *log, bool wipe)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    memset(checkpoint->superblock, 0, sizeof *checkpoint->superblock);
    if (!wipe) {
        checkpoint->superblock->superblock = checkpoint->next;
        log_superblock_seal(checkpoint->superblock);
    }
    write_blocks(log, checkpoint->superblock, checkpoint->next.generation % LOG_SUPERBLOCKS, 1);
}

static void write_map(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    uint32_t left = log->geometry.map_blocks - checkpoint->at;
    uint32_t count = left < LOG_MAP_BLOCKS_AT_ONCE ? left : LOG_MAP_BLOCKS_AT_ONCE;
    for (uint32_t i = 0; i < count; i++)
        fill(log, &checkpoint->blocks[i], checkpoint->at + i);
    write_blocks(log, checkpoint->blocks, log_map_at(&log->geometry, checkpoint->next.area) + checkpoint->at, count);
    checkpoint->at += count;
}

static void sync(isw_log *log, enum log_checkpoint_stage stage)
{
    log->checkpoint.stage = stage;
    log->checkpoint.sync = log_sync_want(log);
}

static void fail(isw_log *log, int error)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    checkpoint->shaken = false;
    checkpoint->wipe = checkpoint->wipe || checkpoint->stage >= CHECKPOINT_SUPERBLOCK;
    checkpoint->stage = CHECKPOINT_NONE;
    checkpoint->failed_ns = clock_ns();
    checkpoint->failures++;
    log->checkpoint_asked = !log->opening; /* what it would have said is said before another interval is over */
    if ((log->broken && log->left) || (checkpoint->failures > 1 && log_is_stuck(log)))
        log_fail_queue(log, error);
}

static void finish(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    checkpoint->stage = CHECKPOINT_NONE;
    checkpoint->wipe = false;
    checkpoint->failures = 0;
    log->generation = checkpoint->next.generation;
    log->checkpoint_sequence = checkpoint->next.sequence;
    count64(&log->checkpoints, 1);
    log->half_mended = log->end_unsure = false;
    if (checkpoint->mends)
        log_mend(log, checkpoint->next.sequence);
    log_segments_settle(log);
}

/* A write of it is done. */
void log_checkpoint_moved(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    checkpoint->in_flight = false;
    if (checkpoint->inner.error || checkpoint->shaken)
        fail(log, checkpoint->inner.error ? checkpoint->inner.error : EIO);
    else if (checkpoint->stage == CHECKPOINT_WIPE)
        sync(log, CHECKPOINT_WIPE_SYNC);
    else if (checkpoint->stage == CHECKPOINT_SUPERBLOCK)
        sync(log, CHECKPOINT_LAST_SYNC);
    else if (checkpoint->at == log->geometry.map_blocks)
        sync(log, CHECKPOINT_MAP_SYNC);
}

static void synced(isw_log *log)
{
    if (log->checkpoint.stage == CHECKPOINT_LAST_SYNC)
        finish(log);
    else
        log->checkpoint.stage++; /* from a sync to what it was waited for */
}

/* An fdatasync has failed, whosever it was: perhaps over what has been written of it, and the next one would succeed over that. */
void log_checkpoint_shake(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    if (checkpoint->in_flight)
        checkpoint->shaken = true;
    else if (checkpoint->stage != CHECKPOINT_NONE)
        fail(log, EIO);
}

static bool syncing(enum log_checkpoint_stage stage)
{
    return stage == CHECKPOINT_WIPE_SYNC || stage == CHECKPOINT_MAP_SYNC || stage == CHECKPOINT_LAST_SYNC;
}

void log_checkpoint_run(isw_log *log)
{
    struct log_checkpoint *checkpoint = &log->checkpoint;
    if (checkpoint->in_flight)
        return;
    if (syncing(checkpoint->stage) && log_sync_over(log, checkpoint->sync))
        synced(log);
    if (checkpoint->stage == CHECKPOINT_NONE && wanted(log))
        begin(log);
    if (checkpoint->stage == CHECKPOINT_WIPE)
        write_superblock(log, true);
    else if (checkpoint->stage == CHECKPOINT_MAP)
        write_map(log);
    else if (checkpoint->stage == CHECKPOINT_SUPERBLOCK)
        write_superblock(log, false);
}
