/* Reads: each becomes pieces of neighbouring blocks; what has no place is zero. */
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

static uint32_t neighbours(const isw_log *log, uint64_t page, uint64_t most)
{
    uint32_t place = log->place[page], count = 1;
    while (count < most && count < ISW_OP_PAGES_MAX && log->place[page + count] == place + count &&
           log_place_segment(place + count) == log_place_segment(place))
        count++;
    return count;
}

static void submit(isw_log *log, struct backup_request *request, uint64_t page, uint32_t pages)
{
    struct log_piece *piece = log->free_pieces;
    log->free_pieces = piece->next;
    piece->whole = request;
    piece->at = request->moved / ISW_PAGE_BYTES;
    piece->pages = pages;
    piece->segment = log_place_segment(log->place[page]);
    piece->inner = (struct backup_request){.kind = BACKUP_READ,
                                           .iov = piece->iov,
                                           .offset = log_place_offset(log, log->place[page]),
                                           .bytes = (uint64_t)pages * ISW_PAGE_BYTES,
                                           .owner = piece};
    for (uint32_t i = 0; i < pages; i++) {
        piece->inner.vectors = vector_append(piece->iov, piece->inner.vectors, target(request, piece->at + i));
        piece->check[i] = log->check[page + i];
    }
    log->segment[piece->segment].reads++;
    request->zero_way++;
    log->inner->methods->submit(log->inner, &piece->inner);
}

/* False: it has to wait for a piece. */
static bool go_on(isw_log *log, struct backup_request *request)
{
    while (request->moved < request->bytes) {
        uint64_t page = (request->offset + request->moved) / ISW_PAGE_BYTES;
        uint32_t place = log->place[page], pages = 1;
        if (place == LOG_PLACE_BAD) {
            request->error = EIO;
        } else if (!place) {
            memset(target(request, request->moved / ISW_PAGE_BYTES), 0, ISW_PAGE_BYTES);
        } else {
            if (!log->free_pieces)
                return false;
            pages = neighbours(log, page, (request->bytes - request->moved) / ISW_PAGE_BYTES);
            submit(log, request, page, pages);
        }
        request->moved += (uint64_t)pages * ISW_PAGE_BYTES;
    }
    return true;
}

void log_read_more(isw_log *log)
{
    while (log->reads.first && go_on(log, log->reads.first))
        finish(log, log_list_take(&log->reads));
}

void log_piece_done(isw_log *log, struct log_piece *piece)
{
    struct backup_request *request = piece->whole;
    int error = piece->inner.error;
    for (uint32_t i = 0; !error && i < piece->pages; i++) {
        if (log_check(isw_crc32c(target(request, piece->at + i), ISW_PAGE_BYTES)) == piece->check[i])
            continue;
        count64(&log->bad_pages, 1);
        error = EIO;
    }
    log->segment[piece->segment].reads--;
    log_segment_settle(log, piece->segment);
    piece->next = log->free_pieces;
    log->free_pieces = piece;
    request->zero_way--;
    if (error)
        request->error = error;
    finish(log, request);
}
