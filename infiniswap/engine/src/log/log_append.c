/* Pages and trims on their way into the log: gathered into chunks, told done in the order of the chain. */
#include "log.h"

#include <assert.h>
#include <string.h>

enum { TAIL_BLOCKS = 12 }; /* of a segment, which stay empty: two full chunks leave ten, and a third one would cost the disk as much */

/* The next segment is opened, and another one becomes the next.  False: there is none. */
static bool begin_segment(isw_log *log)
{
    uint32_t after, left = log->open;
    if (!log_segment_take(log, &after))
        return false;
    log->open = log->next;
    log->segment[log->open].state = LOG_OPEN;
    log->block = 0;
    log->next = after;
    log->begun_since_sync++;
    log->begun_since_checkpoint++;
    if (left != log->open && log->segment[left].state == LOG_OPEN) {
        log->segment[left].state = LOG_CLOSED;
        log_segment_settle(log, left);
    }
    return true;
}

/* Where free segments are short, what the cleaner has begun is filled by it alone: else the few that are kept for it would go, and
 * nothing could free another one any more. */
static bool make_room(isw_log *log, bool cleaning)
{
    bool kept = !cleaning && log->free_segments <= LOG_KEPT_FOR_CLEANING;
    if (log->block + TAIL_BLOCKS <= LOG_SEGMENT_BLOCKS)
        return !kept || !log->open_is_kept;
    if (kept || !begin_segment(log))
        return false;
    log->open_is_kept = cleaning && log->free_segments < LOG_KEPT_FOR_CLEANING;
    return true;
}

/* An empty one; NULL: not now. */
static struct log_chunk *begin(isw_log *log, bool cleaning)
{
    struct log_chunk *chunk = log->free_chunks;
    if (!chunk || log->broken || !make_room(log, cleaning))
        return NULL;
    log->free_chunks = chunk->next;
    chunk->segment = log->open;
    chunk->block = log->block;
    chunk->ends = NULL;
    chunk->done = false;
    chunk->copies = 0;
    chunk->next = NULL;
    memset(chunk->header, 0, sizeof *chunk->header);
    chunk->iov[0] = (struct iovec){chunk->header, LOG_BLOCK_BYTES};
    chunk->inner = (struct backup_request){.kind = BACKUP_WRITE, .iov = chunk->iov, .vectors = 1, .owner = chunk};
    return chunk;
}

static uint32_t pages_left(const struct log_chunk *chunk)
{
    return LOG_SEGMENT_BLOCKS - chunk->block - 1 - chunk->header->header.pages;
}

/* Adds a page; its place. */
static uint32_t add_page(struct log_chunk *chunk, uint8_t *data, struct log_entry entry)
{
    struct log_header *header = &chunk->header->header;
    chunk->inner.vectors = vector_append(chunk->iov, chunk->inner.vectors, data);
    header->entry[header->entries++] = entry;
    return log_place(chunk->segment, chunk->block + ++header->pages);
}

static void submit(isw_log *log, struct log_chunk *chunk)
{
    struct log_header *header = &chunk->header->header;
    memcpy(header->id, log->id, LOG_ID_BYTES);
    header->sequence = ++log->sequence;
    header->previous = log->previous;
    header->completed = log->completed;
    header->durable = log->durable;
    header->next = log->next;
    log->previous = log->sequence;
    log_header_seal(chunk->header);
    chunk->inner.offset = log_segment_offset(log, chunk->segment, chunk->block);
    chunk->inner.bytes = (uint64_t)(1 + header->pages) * LOG_BLOCK_BYTES;
    log->block += 1 + header->pages;
    log->segment[chunk->segment].flying++;
    log->segment[chunk->segment].last = header->sequence;
    *log->flying_end = chunk;
    log->flying_end = &chunk->next;
    log->inner->methods->submit(log->inner, &chunk->inner);
}

static uint64_t entries_of(const struct backup_request *request) /* that are in no chunk yet */
{
    return request->kind == BACKUP_ZERO ? 1 : (request->bytes - request->moved) / ISW_PAGE_BYTES;
}

void log_add(isw_log *log, struct backup_request *request)
{
    log_list_add(&log->queue, request);
    log->queued += entries_of(request);
}

/* The first request; the next one is in no chunk yet. */
static struct backup_request *take_first(isw_log *log)
{
    log->queued -= entries_of(log->queue.first);
    log->head_vector = 0;
    log->head_skip = 0;
    return log_list_take(&log->queue);
}

/* The first request's last part is in the chunk. */
static void ends_here(isw_log *log, struct log_chunk *chunk)
{
    struct backup_request *request = take_first(log);
    request->next = chunk->ends;
    chunk->ends = request;
}

static void add_trim(isw_log *log, struct log_chunk *chunk)
{
    struct log_header *header = &chunk->header->header;
    const struct backup_request *request = log->queue.first;
    header->entry[header->entries++] = (struct log_entry){
        .page_kind = log_page_kind(request->offset / ISW_PAGE_BYTES, LOG_TRIM), .crc = (uint32_t)(request->bytes / ISW_PAGE_BYTES)};
    ends_here(log, chunk);
}

static uint32_t crc_of(const struct backup_request *request, const uint8_t *data)
{
    if (!request->crc)
        return isw_crc32c(data, ISW_PAGE_BYTES);
    uint32_t crc = request->crc[request->moved / ISW_PAGE_BYTES];
#ifdef ISW_CHECKED
    assert(crc == isw_crc32c(data, ISW_PAGE_BYTES));
#endif
    return crc;
}

static void add_next_page(isw_log *log, struct log_chunk *chunk)
{
    struct backup_request *request = log->queue.first;
    const struct iovec *vector = &request->iov[log->head_vector];
    uint8_t *data = (uint8_t *)vector->iov_base + log->head_skip;
    uint64_t page = (request->offset + request->moved) / ISW_PAGE_BYTES;
    add_page(chunk, data, (struct log_entry){.page_kind = log_page_kind(page, LOG_PAGE), .crc = crc_of(request, data)});
    request->moved += ISW_PAGE_BYTES;
    log->queued--;
    log->head_skip += ISW_PAGE_BYTES;
    if (log->head_skip == vector->iov_len) {
        log->head_vector++;
        log->head_skip = 0;
    }
    if (request->moved == request->bytes)
        ends_here(log, chunk);
}

static void add_copies(isw_log *log, struct log_batch *batch, struct log_chunk *chunk)
{
    while (chunk->copies < LOG_CHUNK_ENTRIES && pages_left(chunk) && log_clean_left(log)) {
        const struct log_live *live = &batch->live[batch->given];
        struct log_entry entry = {.page_kind = log_page_kind(live->page, LOG_COPY), .crc = live->crc, .from = live->place};
        batch->to[batch->given++] = add_page(chunk, live->data, entry);
        batch->copied++;
        chunk->copies++;
    }
}

static void add_requests(isw_log *log, struct log_chunk *chunk)
{
    while (log->queue.first && chunk->header->header.entries < LOG_CHUNK_ENTRIES) {
        if (log->queue.first->kind == BACKUP_ZERO)
            add_trim(log, chunk);
        else if (pages_left(chunk))
            add_next_page(log, chunk);
        else
            break;
    }
}

/* A chunk of copies takes requests along; but where segments are short, what the cleaner has begun is for it alone. */
static bool append(isw_log *log, bool cleaning)
{
    struct log_chunk *chunk = begin(log, cleaning);
    if (!chunk)
        return false;
    if (cleaning)
        add_copies(log, log->clean.out, chunk);
    if (!cleaning || log->free_segments > LOG_KEPT_FOR_CLEANING || !log->open_is_kept)
        add_requests(log, chunk);
    submit(log, chunk);
    return true;
}

/* Behind a break nothing may stand in the segment, and a request that is in chunks in part has failed. */
static void leave_broken(isw_log *log)
{
    if (log->queue.first && log->queue.first->moved)
        log_done(log, take_first(log), log->broken_by);
    if (log->segment[log->open].state == LOG_OPEN) {
        log->segment[log->open].state = LOG_CLOSED;
        log_segment_settle(log, log->open);
    }
    log->block = LOG_SEGMENT_BLOCKS;
    log->tail = (struct log_tail){log->next, 0, log->next};
    log->left = true;
}

/* A chunk is written when it is full.  What is less waits for company as long as something is being written: the slower the disk,
 * the more it gets. */
static bool is_enough(const isw_log *log, uint64_t pages)
{
    uint32_t left = LOG_SEGMENT_BLOCKS - log->block, room = left >= TAIL_BLOCKS ? left - 1 : LOG_CHUNK_ENTRIES;
    return !log->flying || pages >= (room < LOG_CHUNK_ENTRIES ? room : LOG_CHUNK_ENTRIES);
}

static bool is_placed(const isw_log *log, const struct backup_request *request)
{
    uint64_t page = request->offset / ISW_PAGE_BYTES, end = page + request->bytes / ISW_PAGE_BYTES;
    while (page < end && !log->place[page])
        page++;
    return page < end;
}

/* A trim of pages without a place is no change of the map, and no chain has anything else of them once neither superblock leads to
 * what failed.  So it takes no room, which a full disk does not have.  True: such a one waits for the checkpoint that is due. */
static bool pass_over_trims(isw_log *log)
{
    while (!log->broken && log->queue.first && log->queue.first->kind == BACKUP_ZERO && !is_placed(log, log->queue.first)) {
        if (log->half_mended)
            return !log->checkpoint.failures;
        log_done(log, take_first(log), 0);
    }
    return false;
}

/* One chunk.  What the cleaner moves begins with a segment, where it can: so pages that have lived long come together, and are not
 * moved again with those that die soon. */
static bool append_next(isw_log *log)
{
    bool waits = pass_over_trims(log);
    uint32_t copies = log_clean_left(log);
    bool enough = is_enough(log, copies + log->queued);
    bool begins = log->block + TAIL_BLOCKS > LOG_SEGMENT_BLOCKS || !log->queue.first;
    if (copies && enough && (begins || log->clean.out->given) && append(log, true))
        return true;
    if (!log->queue.first || !is_enough(log, log->queued))
        return false;
    return (!waits && append(log, false)) || (copies && enough && append(log, true)); /* requests have no room before something is cleaned */
}

void log_append(isw_log *log)
{
    if (log->broken && !log->left && !log->flying)
        leave_broken(log);
    while (append_next(log))
        ;
}

void log_break(isw_log *log, int error)
{
    if (log->broken)
        return;
    log->broken = true;
    log->broken_by = error;
    log->left = false;
    log->checkpoint_asked = true; /* who opens it before may find what failed */
    log_clean_abort(log);
}

/* The chain goes on from a number that no chunk has: where it begins a chunk that failed long ago may stand, and its predecessor may be
 * the last one that did not. */
void log_mend(isw_log *log, uint64_t sequence)
{
    log->broken = false;
    log->sequence = log->completed = log->previous = log->durable = sequence;
    log->half_mended = true;
    log->checkpoint_asked = true; /* the older superblock does not lead here */
}

/* Nothing but a checkpoint can free a segment for what waits. */
bool log_is_stuck(const isw_log *log)
{
    bool room = log->free_segments > LOG_KEPT_FOR_CLEANING || (log->block + TAIL_BLOCKS <= LOG_SEGMENT_BLOCKS && !log->open_is_kept);
    return !log->broken && log->queue.first && !room && !log->flying && !log->clean.out;
}

void log_fail_queue(isw_log *log, int error)
{
    while (log->queue.first)
        log_done(log, take_first(log), error);
}

static void apply(isw_log *log, const struct log_chunk *chunk)
{
    const struct log_header *header = &chunk->header->header;
    uint32_t place = log_place(chunk->segment, chunk->block + 1);
    for (uint32_t i = 0; i < header->entries; i++) {
        const struct log_entry *entry = &header->entry[i];
        uint64_t page = log_entry_page(entry);
        uint32_t kind = log_entry_kind(entry);
        if (kind == LOG_PAGE)
            log_map_set(log, page, place, log_check(entry->crc), header->sequence);
        for (uint64_t n = 0; kind == LOG_TRIM && n < entry->crc; n++)
            if (log->place[page + n])
                log_map_set(log, page + n, 0, 0, header->sequence);
        place += kind != LOG_TRIM;
    }
}

static void settle(isw_log *log, struct log_chunk *chunk)
{
    const struct log_header *header = &chunk->header->header;
    if (chunk->inner.error)
        log_break(log, chunk->inner.error);
    if (!log->broken) {
        apply(log, chunk);
        log->completed = header->sequence;
        log->tail = (struct log_tail){chunk->segment, chunk->block + 1 + header->pages, (uint32_t)header->next};
        if (chunk->copies)
            log_clean_copied(log, chunk);
    } else {
        log->segment[chunk->segment].last = log->completed; /* nobody will follow the chain to it */
    }
    int error = !log->broken ? 0 : chunk->inner.error ? chunk->inner.error : log->broken_by;
    while (chunk->ends) {
        struct backup_request *request = chunk->ends;
        chunk->ends = request->next;
        log_done(log, request, error);
    }
    log->segment[chunk->segment].flying--;
    log_segment_settle(log, chunk->segment);
    chunk->next = log->free_chunks;
    log->free_chunks = chunk;
}

void log_chunk_done(isw_log *log, struct log_chunk *chunk)
{
    chunk->done = true;
    while ((chunk = log->flying) && chunk->done) {
        if (!(log->flying = chunk->next))
            log->flying_end = &log->flying;
        settle(log, chunk);
    }
}
