#include "load.h"

#include <errno.h>

struct errand { /* a request that is out */
    struct load *load;
    struct change *change;
    struct look *look;
    uint8_t *data;
    uint64_t sent_ns;
};

enum { PAGE = ISW_PAGE_BYTES, WINDOW_AT = (1 << 20) - 12 * PAGE /* it spans two slabs */ };

void load_open(struct load *load, struct rig *rig, struct fake_disk *disk, uint64_t chance_number)
{
    memset(load, 0, sizeof *load);
    load->rig = rig;
    load->disk = disk;
    load->chance = chance_start(chance_number);
    load->clients = LOAD_CLIENTS;
    load->out_max = 48;
    load->read_percent = 45;
    load->along = rig->config.prefetch_floor_us;
    load->scratch = malloc(rig->config.size_bytes);
    model_open(&load->model, rig->config.size_bytes);
    for (uint32_t i = 0; i < load->clients; i++)
        load->client[i].fd = -1;
}

static void end_errand(struct errand *e)
{
    e->load->out--;
    free(e->data);
    free(e);
}

/* A page that is LOST was told of by a FLUSH before, once, and cannot be read: any value may be on the disk. */
static void forget_lost(const struct load *load, struct look *look)
{
    for (uint64_t page = look->offset / PAGE; page * PAGE < look->offset + look->length; page++) {
        if (!(__atomic_load_n(&load->rig->page[page].meta, __ATOMIC_RELAXED) & ISW_PAGE_LOST))
            continue;
        uint64_t from = page * PAGE < look->offset ? look->offset : page * PAGE, end = look->offset + look->length;
        for (uint64_t at = from; at < end && at < (page + 1) * PAGE; at++)
            look->seen[at - look->offset].count = VALUES_MAX + 1;
    }
}

/* What FLUSH or FUA promise: the disk could lose its power now. */
static void check_durable(struct load *load, struct look *look, const char *what)
{
    fake_disk_durable(load->disk, load->scratch);
    if (load->errors)
        forget_lost(load, look);
    look->settles = false; /* of two overlapping writes the last may be on its way to the disk still */
    model_look_ends(&load->model, look, load->scratch + look->offset, what);
}

static void answered(void *owner, struct client *client, struct call *call)
{
    struct errand *e = owner;
    struct load *load = e->load;
    (void)client;
    if (call->error) {
        load->errors++;
        if (!load->errors_allowed)
            FAIL("command %u at %llu, %u bytes: error %u", call->command, (unsigned long long)call->offset, call->length,
                 call->error);
    }
    if (e->change) {
        uint64_t offset = e->change->offset, length = e->change->length;
        model_write_done(&load->model, e->change, call->error != 0);
        if (load->disk && (call->flags & NBD_CMD_FLAG_FUA) && !call->error)
            check_durable(load, model_look_begins(&load->model, offset, length), "durable after FUA");
    }
    if (e->look && call->command == NBD_CMD_READ)
        model_look_ends(&load->model, e->look, call->error ? NULL : e->data, "read");
    else if (e->look && call->error)
        model_look_ends(&load->model, e->look, NULL, "");
    else if (e->look)
        check_durable(load, e->look, "durable after FLUSH");
    end_errand(e);
}

/* From before the window to behind it, or from anywhere. */
static void go_along(struct load *load, struct load_stream *s, uint64_t *offset, uint32_t *length)
{
    static const uint64_t steps[] = {1, 1, 1, 2};
    struct chance *c = &load->chance;
    uint64_t pages = load->model.size_bytes / PAGE;
    if (!s->left || s->page >= pages) {
        s->page = chance_in(c, 3) ? chance_below(c, pages) : WINDOW_AT / PAGE - 16;
        s->step = steps[chance_below(c, 4)];
        s->left = 24 + chance_below(c, 40);
    }
    *offset = s->page * PAGE;
    *length = PAGE;
    s->page += s->step;
    s->left--;
}

/* Mostly a page or a few, at times large, at times not aligned; half of it close together, so that requests meet. */
static void choose_range(struct load *load, uint64_t *offset, uint32_t *length)
{
    struct chance *c = &load->chance;
    uint64_t size = load->model.size_bytes, window = chance_in(c, 2) ? 24 * PAGE : size;
    uint32_t shape = (uint32_t)chance_below(c, 100);
    uint64_t bytes = shape < 55   ? PAGE
                     : shape < 75 ? PAGE * (1 + chance_below(c, 24))
                     : shape < 90 ? 1 + chance_below(c, PAGE)
                     : shape < 98 ? 1 + chance_below(c, 12 * PAGE)
                                  : 1 + chance_below(c, 160 * PAGE);
    uint64_t at = chance_below(c, window) + (window < size ? WINDOW_AT : 0);
    if (shape < 75)
        at -= at % PAGE;
    if (chance_in(c, 50))
        at = size - (bytes < size ? bytes : size); /* the very end */
    *length = (uint32_t)(bytes < size - at ? bytes : size - at);
    *offset = at;
}

/* TRIM leaves what is not a whole page. */
static void shrink_to_pages(uint64_t *offset, uint32_t *length)
{
    uint64_t first = (*offset + PAGE - 1) / PAGE * PAGE, end = (*offset + *length) / PAGE * PAGE;
    *offset = first;
    *length = end > first ? (uint32_t)(end - first) : 0;
}

static void send_one(struct load *load, struct client *client)
{
    struct chance *c = &load->chance;
    struct errand *e = calloc(1, sizeof *e);
    uint64_t offset, changed_at;
    uint32_t length, changed, kind = (uint32_t)chance_below(c, 100);
    uint16_t command = NBD_CMD_READ, flags = 0;
    bool along = load->along && kind < load->read_percent && !chance_in(c, 4);
    if (along)
        go_along(load, &load->stream[client - load->client], &offset, &length);
    else
        choose_range(load, &offset, &length);
    CHECK(e);
    e->load = load;
    e->data = malloc(length + 4096);
    if (kind < load->read_percent) {
        e->look = model_look_begins(&load->model, offset, length);
        load->reads++;
    } else if (kind < 97) {
        command = kind < 86 ? NBD_CMD_WRITE : kind < 92 ? NBD_CMD_TRIM : NBD_CMD_WRITE_ZEROES;
        flags = chance_in(c, 40) ? NBD_CMD_FLAG_FUA : 0;
        changed_at = offset;
        changed = length;
        if (command == NBD_CMD_TRIM)
            shrink_to_pages(&changed_at, &changed);
        if (command == NBD_CMD_WRITE)
            model_fill(c, e->data, length);
        e->change = model_write_sent(&load->model, changed ? changed_at : 0, changed,
                                     command == NBD_CMD_WRITE ? e->data : NULL);
        load->writes++;
    } else if (kind < 98) {
        command = NBD_CMD_FLUSH;
        offset = length = 0;
        if (load->disk)
            e->look = model_look_begins(&load->model, 0, load->model.size_bytes);
        load->flushes++;
    } else {
        command = client->structured && kind < 99 ? NBD_CMD_BLOCK_STATUS : NBD_CMD_CACHE;
    }
    e->sent_ns = now_ns();
    struct call *call = client_send(client, command, flags, offset, length, e->data, e->data);
    CHECK(call);
    call->owner = e;
    call->done = answered;
    load->out++;
}

/* Nobody answers what was out; the device may have done it or not. */
static void forget(struct load *load, struct client *client)
{
    for (uint32_t k = 0; k < CLIENT_CALLS; k++) {
        struct call *call = &client->calls[k];
        if (!call->used)
            continue;
        struct errand *e = call->owner;
        if (e->change)
            model_write_done(&load->model, e->change, true);
        if (e->look)
            model_look_ends(&load->model, e->look, NULL, "");
        end_errand(e);
        call->used = false;
    }
    client->calls_out = 0;
}

static void check_waiting(struct load *load)
{
    uint64_t now = now_ns();
    for (uint32_t i = 0; i < load->clients; i++) {
        struct client *client = &load->client[i];
        if (client->ended && !load->ends_allowed)
            FAIL("connection %u ended", i);
        if (client->ended) { /* the device closes a connection only when nothing of it is in flight any more */
            load->ends++;
            forget(load, client);
            client_close(client);
        }
        for (uint32_t k = 0, left = client->calls_out; left && k < CLIENT_CALLS; k++) {
            const struct call *call = &client->calls[k];
            const struct errand *e = call->owner;
            left -= call->used;
            if (call->used && now - e->sent_ns > WAIT_S_MAX * 1000000000ull)
                FAIL("command %u at %llu, %u bytes is unanswered (%u requests are out)", call->command,
                     (unsigned long long)call->offset, call->length, load->out);
        }
    }
}

static void connect_missing(struct load *load)
{
    for (uint32_t i = 0; i < load->clients; i++)
        if (load->client[i].fd < 0)
            rig_connect(load->rig, &load->client[i], i % 2 == 0);
}

static void pump(struct load *load)
{
    clients_pump(load->client, load->clients, 1);
    check_waiting(load);
}

void load_step(struct load *load)
{
    connect_missing(load);
    uint64_t batch = 1 + chance_below(&load->chance, 12);
    for (uint64_t i = 0; i < batch && load->out < load->out_max; i++) {
        struct client *client = &load->client[chance_below(&load->chance, load->clients)];
        if (client->fd >= 0)
            send_one(load, client);
    }
    pump(load);
}

void load_settle(struct load *load)
{
    while (load->out)
        pump(load);
}

/* A disk that fails and a peer that dies before its pages went to the disk again are one loss too many: such pages are said to
 * be lost, and nothing else is unreadable.  What the buffer holds in their places is no reading of them. */
static void read_by_page(struct load *load)
{
    uint64_t pages = load->model.size_bytes / PAGE, lost = 0;
    bool *unread = calloc(pages, sizeof *unread);
    CHECK(unread);
    for (uint64_t page = 0; page < pages; page++) {
        uint32_t error = client_call(&load->client[0], NBD_CMD_READ, 0, page * PAGE, PAGE, NULL, load->scratch + page * PAGE);
        if (!error)
            continue;
        CHECK_EQUAL(error, EIO);
        CHECK(load->rig->page[page].meta & ISW_PAGE_LOST);
        model_forget(&load->model, page * PAGE, PAGE);
        unread[page] = true;
        lost++;
    }
    model_check(&load->model, load->scratch, "reading everything");
    for (uint64_t page = 0; page < pages; page++)
        if (unread[page])
            model_forget(&load->model, page * PAGE, PAGE);
    load->lost_pages += lost;
    free(unread);
}

void load_read_all(struct load *load)
{
    connect_missing(load);
    uint32_t size = (uint32_t)load->model.size_bytes;
    CHECK(!load->out);
    uint32_t error = client_call(&load->client[0], NBD_CMD_READ, 0, 0, size, NULL, load->scratch);
    if (error && load->errors_allowed) {
        connect_missing(load); /* a long simple reply ends with the connection */
        read_by_page(load);
    } else {
        CHECK_EQUAL(error, 0);
        model_check(&load->model, load->scratch, "reading everything");
    }
}

void load_forget(struct load *load)
{
    for (uint32_t i = 0; i < load->clients; i++)
        forget(load, &load->client[i]);
    CHECK(!load->out);
}

void load_disconnect(struct load *load)
{
    for (uint32_t i = 0; i < load->clients; i++)
        client_close(&load->client[i]);
}

void load_close(struct load *load)
{
    load_disconnect(load);
    model_close(&load->model);
    free(load->scratch);
}
