/* The device's clients, as the rest of it sees them. */
#ifndef ISW_CLIENT_H
#define ISW_CLIENT_H

#include "flush.h"
#include "nbd_connection.h"
#include "op.h"

struct device;

enum { SOURCE_BIT_REMOTE = 1, SOURCE_BIT_PENDING = 2, SOURCE_BIT_BACKUP = 4 };

/* One NBD request of a client. */
struct request {
    struct client *client;
    uint64_t cookie, offset, started_ns;
    uint32_t length;
    uint32_t issued; /* bytes that have an operation */
    uint16_t command, flags;
    uint32_t ops;    /* operations not finished */
    uint32_t pieces; /* READ that is answered as a whole: its operations ... */
    struct op *piece; /* ... in order, linked by next_piece */
    int error;       /* the first one */
    uint32_t sources; /* SOURCE_BIT_* */
    uint32_t late_pages; /* pending buffers of those kept for writes that are answered late */
    bool all_issued, header_sent;
    uint8_t peer;        /* of the first transfer, plus one; 0: none, or the backup's */
    uint64_t locked_ns, begun_ns, answered_ns; /* see isw_trace */
    uint64_t epoch;
    uint64_t losses_told; /* FLUSH: of which others had been told when it came */
    struct request *next; /* free list, or flush queue */
};

struct client {
    struct nbd_connection connection; /* first: the handler casts */
    struct device *device;
    bool used, ready;
    bool starved;  /* something that it needs was not to be had ... */
    bool in_line;  /* ... and it stands in line */
    uint32_t ops, small_buffers, large_buffers, late_pages; /* that it holds */
    struct request *writing; /* whose payload is coming in */
    struct client *next_ready, *next_in_line;
};

/* Whose turn it is. */
struct client_turns {
    struct client *ready, **ready_end;
    struct client *line_first, **line_end; /* starved clients: who has waited longest, or got least, is first */
    bool starved;                          /* there may be some */
};

/* client.c */
extern const struct nbd_handler device_handler;
void request_count_pages(struct device *d, uint64_t offset, uint64_t bytes, bool out);
struct request *request_begin(struct client *client, const struct nbd_request *r);
void request_unbegin(struct device *d, struct request *request);
void request_maybe_finish(struct device *d, struct request *request);
void request_answer(struct device *d, struct request *request, int error);
void request_finish(struct device *d, struct request *request, int error); /* its last answer is queued */
void clients_serve(struct device *d);
void client_make_ready(struct device *d, struct client *client);
void clients_send(struct device *d);
void clients_check_time(struct device *d, bool anew);
void request_op_done(struct device *d, struct op *op);
void request_flushed(struct device *d, struct request *request, int error);

/* client_read.c */
enum nbd_verdict client_begin_read(struct client *client, const struct nbd_request *r);
void client_read_done(struct device *d, struct op *op);
void client_read_goes_on(struct op *from, struct op *to); /* as another operation, which has its request already */
void client_sent(void *device, struct nbd_connection *c, uint32_t tag);

/* client_write.c */
size_t client_payload(void *device, struct nbd_connection *c, const uint8_t *data, size_t bytes, bool *blocked);
enum nbd_verdict client_begin_write(struct client *client, const struct nbd_request *r);
enum nbd_verdict client_begin_zero(struct client *client, const struct nbd_request *r);
void client_drop_half_write(struct device *d, struct client *client);

/* client_share.c */
struct op *client_op_take(struct client *client, enum op_kind kind, uint64_t first, uint32_t pages);
bool client_may_request(const struct client *client);
bool small_buffer_allowed(const struct client *client, uint32_t left);
bool large_buffer_allowed(const struct client *client, uint32_t left);
void client_count_buffer(const struct op *op, int32_t by); /* its client holds that buffer, or no more */
void client_share_moves(struct op *from, struct op *to);
uint32_t client_buffers(const struct client *client); /* pending buffers that it may take now */
void request_took_buffers(struct device *d, struct request *request, uint32_t pages);
bool request_is_late(const struct device *d, const struct request *request);
void request_answer_late(struct device *d, struct request *request);
void late_requests_answer(struct device *d);
void late_requests_drop_dead(struct device *d);

#endif
