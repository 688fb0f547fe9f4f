/* Reads: each becomes pieces of neighbouring blocks; what has no place is zero.  Those that say so, and lie near each other, share a
 * piece, which reads over what lies between them; one that fails is asked for by each alone. */
#include "counters.h"
#include "log.h"

#include <errno.h>
#include <string.h>

/* Where the data of a request's page go. */
static uint8_t *target(const struct backup_request *request, uint64_t at)
{
    uint64_t skip = at * ISW_PAGE_BYTES;
    const struct iovec *vector = request->iov;
    for (; skip >= vector->iov_len; vector++)
        skip -= vector->iov_len;
    return (uint8_t *)vector->iov_base + skip;
}

/* A read's own fields: moved, bytes that were given to pieces; zero_way, pieces in flight. */
static void finish(isw_log *log, struct backup_request *request)
{
    if (request->moved == request->bytes && !request->zero_way)
        log_done(log, request, request->error);
}

static uint64_t first_page(const struct backup_request *request)
{
    return (request->offset + request->moved) / ISW_PAGE_BYTES;
}

static uint64_t pages_left(const struct backup_request *request)
{
    return (request->bytes - request->moved) / ISW_PAGE_BYTES;
}

static uint32_t neighbours(const isw_log *log, uint64_t page, uint64_t most)
{
    uint32_t place = log->place[page], count = 1;
    while (count < most && count < ISW_OP_PAGES_MAX && log->place[page + count] == place + count &&
           log_place_segment(place + count) == log_place_segment(place))
        count++;
    return count;
}

/* ---- pieces ---- */

static struct log_piece *begin(isw_log *log, struct backup_request *request, uint32_t place)
{
    struct log_piece *piece = log->free_pieces;
    log->free_pieces = piece->next;
    piece->whole = piece->last = request;
    piece->requests = 1;
    piece->at = request->moved / ISW_PAGE_BYTES;
    piece->pages = 0;
    piece->place = piece->behind = place;
    piece->sink = NULL;
    piece->inner = (struct backup_request){.kind = BACKUP_READ, .iov = piece->iov, .offset = log_place_offset(log, place), .owner = piece};
    return piece;
}

/* Its next pages come with the piece. */
static void add(isw_log *log, struct log_piece *piece, struct backup_request *request, uint32_t pages)
{
    uint64_t page = first_page(request), at = request->moved / ISW_PAGE_BYTES;
    for (uint32_t i = 0; i < pages; i++) {
        piece->inner.vectors = vector_append(piece->iov, piece->inner.vectors, target(request, at + i));
        piece->check[piece->pages++] = log->check[page + i];
    }
    piece->behind += pages;
    request->moved += (uint64_t)pages * ISW_PAGE_BYTES;
    request->zero_way++;
}

static void hand_in(isw_log *log, struct log_piece *piece)
{
    piece->inner.bytes = (uint64_t)(piece->behind - piece->place) * LOG_BLOCK_BYTES;
    log->segment[log_place_segment(piece->place)].reads++;
    log->inner->methods->submit(log->inner, &piece->inner);
}

/* ---- those that share one ---- */

/* All of it lies together, and none of it is being read yet: who shares a piece is done, or asked for anew, as a whole. */
static bool shares(const isw_log *log, const struct backup_request *request)
{
    uint64_t page = first_page(request), left = pages_left(request);
    uint32_t place = log->place[page];
    return request->together && !request->moved && place && place != LOG_PLACE_BAD && neighbours(log, page, left) == left;
}

/* Blocks between the piece and the request, if that may come with it; else -1. */
static int32_t gap_to(const isw_log *log, const struct log_piece *piece, const struct backup_request *request)
{
    uint32_t place = log->place[first_page(request)], gap = place - piece->behind;
    uint64_t vectors = piece->inner.vectors + pages_left(request) + (gap > 0);
    bool fits = vectors <= ISW_OP_PAGES_MAX && piece->pages + pages_left(request) <= ISW_OP_PAGES_MAX;
    bool sink = !gap || piece->sink || log->free_sinks;
    return shares(log, request) && fits && sink && place >= piece->behind && gap <= BACKUP_GAP_PAGES &&
                   log_place_segment(place) == log_place_segment(piece->place)
               ? (int32_t)gap
               : -1;
}

static void pass_over(isw_log *log, struct log_piece *piece, uint32_t blocks)
{
    if (!piece->sink) {
        piece->sink = log->free_sinks;
        log->free_sinks = piece->sink->next;
    }
    piece->iov[piece->inner.vectors++] = (struct iovec){piece->sink->bytes, (size_t)blocks * LOG_BLOCK_BYTES};
    piece->behind += blocks;
}

static void read_together(isw_log *log)
{
    struct backup_request *request = log_list_take(&log->reads);
    struct log_piece *piece = begin(log, request, log->place[first_page(request)]);
    add(log, piece, request, (uint32_t)pages_left(request));
    int32_t gap;
    while ((request = log->reads.first) && (gap = gap_to(log, piece, request)) >= 0) {
        log_list_take(&log->reads);
        if (gap)
            pass_over(log, piece, (uint32_t)gap);
        add(log, piece, request, (uint32_t)pages_left(request));
        piece->last->next = request;
        piece->last = request;
        piece->requests++;
    }
    hand_in(log, piece);
}

/* ---- requests ---- */

/* False: it has to wait for a piece. */
static bool go_on(isw_log *log, struct backup_request *request)
{
    while (request->moved < request->bytes) {
        uint64_t page = first_page(request);
        uint32_t place = log->place[page];
        if (place && place != LOG_PLACE_BAD) {
            if (!log->free_pieces)
                return false;
            struct log_piece *piece = begin(log, request, place);
            add(log, piece, request, neighbours(log, page, pages_left(request)));
            hand_in(log, piece);
            continue;
        }
        if (place == LOG_PLACE_BAD)
            request->error = EIO;
        else
            memset(target(request, request->moved / ISW_PAGE_BYTES), 0, ISW_PAGE_BYTES);
        request->moved += ISW_PAGE_BYTES;
    }
    return true;
}

void log_read_more(isw_log *log)
{
    while (log->reads.first) {
        if (log->free_pieces && shares(log, log->reads.first))
            read_together(log);
        else if (go_on(log, log->reads.first))
            finish(log, log_list_take(&log->reads));
        else
            return;
    }
}

static bool is_good(isw_log *log, const struct log_piece *piece, const struct backup_request *request, uint32_t at, uint32_t pages)
{
    uint64_t first = request == piece->whole ? piece->at : 0;
    for (uint32_t i = 0; i < pages; i++) {
        if (log_check(isw_crc32c(target(request, first + i), ISW_PAGE_BYTES)) == piece->check[at + i])
            continue;
        count64(&log->bad_pages, 1);
        return false;
    }
    return true;
}

static void read_alone(isw_log *log, struct backup_request *request)
{
    request->moved = request->zero_way = 0;
    request->together = false;
    log_list_add(&log->reads, request);
}

void log_piece_done(isw_log *log, struct log_piece *piece)
{
    bool shared = piece->requests > 1;
    struct backup_request *request = piece->whole, *next;
    for (uint32_t i = 0, at = 0, pages; i < piece->requests; i++, request = next, at += pages) {
        next = request->next;
        pages = shared ? (uint32_t)(request->bytes / ISW_PAGE_BYTES) : piece->pages;
        if (shared && piece->inner.error) {
            read_alone(log, request);
            continue;
        }
        request->zero_way--;
        if (piece->inner.error || !is_good(log, piece, request, at, pages))
            request->error = piece->inner.error ? piece->inner.error : EIO;
        finish(log, request);
    }
    uint32_t segment = log_place_segment(piece->place);
    log->segment[segment].reads--;
    log_segment_settle(log, segment);
    if (piece->sink) {
        piece->sink->next = log->free_sinks;
        log->free_sinks = piece->sink;
    }
    piece->next = log->free_pieces;
    log->free_pieces = piece;
}
