/* Clients of the simulated device: they draw requests, send them in pieces, and hold each answer against the oracle. */
#include "sim.h"

#include "nbd_wire.h"

#include <errno.h>

enum { OUT_MOST = 160 << 10, SYNC_RETRY_ORDERS = 4000 };

static void look(void *owner, uint64_t generation);

/* ---- sending ---- */

static void moved(void *owner, uint64_t generation)
{
    struct sim_client *c = owner;
    if (c->fd < 0 || c->generation != generation || c->looking)
        return;
    c->looking = true;
    c->answered = oracle_now(&c->sim->oracle);
    sim_at(&c->sim->system, c->sim->system.now_ns + 1000 + chance_below(&c->chance, 20000), look, c, generation);
}

static void give(void *owner, uint64_t generation)
{
    struct sim_client *c = owner;
    struct sim_system *system = &c->sim->system;
    if (c->fd < 0 || c->generation != generation)
        return;
    size_t left = c->outgoing.end - c->outgoing.start;
    size_t now = sim_has(c->sim, SIM_PIECES) && chance_in(&c->chance, 2) ? 1 + chance_below(&c->chance, left) : left;
    if (!c->gone)
        sim_deliver(system, c->fd, c->outgoing.data + c->outgoing.start, now);
    c->outgoing.start += now;
    c->giving = now < left;
    if (c->giving)
        sim_at(system, system->now_ns + 1 + chance_below(&c->chance, 60000), give, c, generation);
}

static void send_bytes(struct sim_client *c, const void *data, size_t bytes)
{
    sim_bytes_add(&c->outgoing, data, bytes);
    if (c->giving)
        return;
    c->giving = true;
    sim_at(&c->sim->system, c->sim->system.now_ns + 500, give, c, c->generation);
}

void sim_client_ask(struct sim_client *c, uint16_t command, uint16_t flags, uint64_t first, uint64_t sectors)
{
    static uint8_t payload[SIM_WRITE_SECTORS_MAX * SIM_SECTOR];
    uint8_t head[NBD_REQUEST_BYTES];
    struct oracle *o = &c->sim->oracle;
    uint32_t slot = 0;
    while (c->request[slot].used)
        slot++;
    CHECK(slot < SIM_REQUESTS && (command != NBD_CMD_WRITE || sectors <= SIM_WRITE_SECTORS_MAX));
    struct sim_request *r = &c->request[slot];
    *r = (struct sim_request){.used = true, .command = command, .flags = flags, .first = first, .sectors = sectors,
                              .sent = oracle_now(o), .sent_ns = c->sim->system.now_ns, .told = c->sim->flush_told};
    c->out++;
    c->sim->operations++;
    if (command == NBD_CMD_WRITE || command == NBD_CMD_WRITE_ZEROES) {
        r->write = oracle_write_sent(o, first, sectors, command == NBD_CMD_WRITE_ZEROES);
    } else if (command == NBD_CMD_TRIM) { /* what is not a whole page is left */
        uint64_t begin = (first + SIM_PAGE_SECTORS - 1) / SIM_PAGE_SECTORS, end = (first + sectors) / SIM_PAGE_SECTORS;
        r->write = oracle_write_sent(o, begin * SIM_PAGE_SECTORS, end > begin ? (end - begin) * SIM_PAGE_SECTORS : 0, true);
    } else if (command == NBD_CMD_READ) {
        r->got = malloc(sectors * SIM_SECTOR);
        CHECK(r->got);
    }
    sim_trace(c->sim, "client %u asks %u: command %u%s, sectors %llu + %llu (page %llu), write %llu", c->number, slot, command,
              flags & NBD_CMD_FLAG_FUA ? " FUA" : "", (unsigned long long)first, (unsigned long long)sectors,
              (unsigned long long)(first / SIM_PAGE_SECTORS), (unsigned long long)r->write.sent);
    nbd_put_request(head, command, flags, slot | (uint64_t)c->generation << 32, first * SIM_SECTOR,
                    (uint32_t)(sectors * SIM_SECTOR));
    send_bytes(c, head, sizeof head);
    if (command == NBD_CMD_WRITE) {
        oracle_fill(r->write.value, sectors, payload);
        send_bytes(c, payload, sectors * SIM_SECTOR);
    }
}

/* ---- answers ---- */

static bool disk_failed(const struct sim *sim, const struct sim_request *r)
{
    for (uint64_t page = r->first / SIM_PAGE_SECTORS; page < (r->first + r->sectors + SIM_PAGE_SECTORS - 1) / SIM_PAGE_SECTORS;
         page++)
        if (sim->disk.fault_order[page] >= r->sent)
            return true;
    return false;
}

static bool page_lost(const struct sim *sim, const struct sim_request *r)
{
    for (uint64_t page = r->first / SIM_PAGE_SECTORS; page < (r->first + r->sectors + SIM_PAGE_SECTORS - 1) / SIM_PAGE_SECTORS;
         page++)
        if (oracle_was_lost(&sim->oracle, page, r->sent))
            return true;
    return false;
}

/* A FLUSH fails over what the disk refuses now or has refused a moment ago, over what is lost, and over a failed sync of which
 * no other has told. */
static bool flush_may_fail(const struct sim *sim, const struct sim_request *r)
{
    uint64_t since = r->sent > SYNC_RETRY_ORDERS ? r->sent - SYNC_RETRY_ORDERS : 1;
    if (since > r->told)
        since = r->told + 1;
    return sim->disk.change_fault_order >= since || sim->disk.sync_fault_order >= since ||
           oracle_any_was_lost(&sim->oracle, r->told) || (sim->disk.sync_fault_order && sim_any_doubtful(sim));
}

/* A simple reply cannot take its good beginning back: a long READ that fails half-way ends the connection. */
static bool may_hang_up(const struct sim_client *c)
{
    for (uint32_t i = 0; i < SIM_REQUESTS; i++) {
        const struct sim_request *r = &c->request[i];
        if (r->used && r->command == NBD_CMD_READ && !c->structured && (disk_failed(c->sim, r) || page_lost(c->sim, r)))
            return true;
    }
    return c->gone || c->sim->stopping;
}

static void failed(struct sim *sim, const struct sim_request *r, uint32_t error)
{
    bool flush = r->command == NBD_CMD_FLUSH || (r->flags & NBD_CMD_FLAG_FUA);
    bool right = disk_failed(sim, r) || page_lost(sim, r) || (flush && flush_may_fail(sim, r));
    sim->met.errors++;
    if (!right)
        FAIL("command %u of sectors %llu + %llu, asked at %llu, is answered with error %u, but nothing was lost", r->command,
             (unsigned long long)r->first, (unsigned long long)r->sectors, (unsigned long long)r->sent, error);
}

static void release(struct sim_client *c, struct sim_request *r)
{
    free(r->got);
    r->got = NULL;
    r->used = false;
    c->out--;
}

static void note_oldest(struct sim *sim)
{
    sim->oracle.oldest = SIM_NEVER;
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        for (uint32_t k = 0; k < SIM_REQUESTS; k++)
            if (sim->client[i].request[k].used && sim->client[i].request[k].sent < sim->oracle.oldest)
                sim->oracle.oldest = sim->client[i].request[k].sent;
}

static void done(struct sim_client *c, struct sim_request *r, uint32_t error)
{
    struct sim *sim = c->sim;
    sim_trace(sim, "client %u hears of %u: error %u", c->number, (unsigned)(r - c->request), error);
    if (error)
        failed(sim, r, error);
    note_oldest(sim);
    for (uint64_t page = 0; !error && r->command == NBD_CMD_FLUSH && page < sim->oracle.pages; page++) {
        const struct oracle_page *p = &sim->oracle.page[page];
        if (p->doubtful && !p->lost && p->doubted > sim->life_order && p->doubted < c->answered)
            FAIL("a FLUSH succeeds, and page %llu is what a failed sync left", (unsigned long long)page);
    }
    if (r->command == NBD_CMD_FLUSH && r->sent > sim->flush_told)
        sim->flush_told = r->sent;
    if (r->write.sent)
        oracle_write_done(&sim->oracle, &r->write, !error, r->flags & NBD_CMD_FLAG_FUA);
    else if (!error && r->command == NBD_CMD_FLUSH)
        oracle_flushed(&sim->oracle, r->sent);
    else if (!error && r->command == NBD_CMD_READ && r->got_bytes != r->sectors * SIM_SECTOR)
        FAIL("a READ of %llu bytes is answered with %llu", (unsigned long long)r->sectors * SIM_SECTOR,
             (unsigned long long)r->got_bytes);
    else if (!error && r->command == NBD_CMD_READ)
        oracle_read(&sim->oracle, r->sent, r->first, r->sectors, r->got, "READ");
    release(c, r);
}

static struct sim_request *request_of(struct sim_client *c, const uint8_t *at)
{
    uint64_t cookie;
    memcpy(&cookie, at, sizeof cookie);
    uint32_t slot = (uint32_t)cookie;
    if (cookie >> 32 != c->generation || slot >= SIM_REQUESTS || !c->request[slot].used)
        FAIL("client %u hears an answer to what it did not ask (%llx)", c->number, (unsigned long long)cookie);
    return &c->request[slot];
}

static void extents(struct sim *sim, const struct sim_request *r, const uint8_t *data, uint32_t bytes)
{
    uint64_t at = r->first;
    CHECK(bytes >= 12 && bytes % 8 == 4 && nbd_get32(data) == ISW_CONTEXT_ALLOCATION);
    for (uint32_t i = 4; i < bytes; i += 8) {
        uint64_t sectors = nbd_get32(data + i) / SIM_SECTOR;
        CHECK(sectors && at + sectors <= r->first + r->sectors);
        if (nbd_get32(data + i + 4) & NBD_STATE_ZERO)
            oracle_read_hole(&sim->oracle, r->sent, at, sectors);
        at += sectors;
    }
}

/* One chunk of a structured reply; returns the bytes it takes, 0: it is not whole yet. */
static size_t chunk(struct sim_client *c, const uint8_t *data, size_t have)
{
    if (have < NBD_CHUNK_BYTES || have < NBD_CHUNK_BYTES + (size_t)nbd_get32(data + 16))
        return 0;
    struct sim_request *r = request_of(c, data + 8);
    uint16_t flags = nbd_get16(data + 4), type = nbd_get16(data + 6);
    uint32_t bytes = nbd_get32(data + 16), error = 0;
    const uint8_t *body = data + NBD_CHUNK_BYTES;
    if (type == NBD_REPLY_TYPE_OFFSET_DATA) {
        CHECK(r->command == NBD_CMD_READ && bytes > 8);
        uint64_t offset = nbd_get64(body) - r->first * SIM_SECTOR;
        CHECK(offset == r->got_bytes && offset + bytes - 8 <= r->sectors * SIM_SECTOR);
        memcpy(r->got + offset, body + 8, bytes - 8);
        r->got_bytes += bytes - 8;
    } else if (type == NBD_REPLY_TYPE_BLOCK_STATUS) {
        CHECK(r->command == NBD_CMD_BLOCK_STATUS);
        extents(c->sim, r, body, bytes);
    } else if (type == NBD_REPLY_TYPE_ERROR) {
        error = nbd_get32(body);
        CHECK(error && (flags & NBD_REPLY_FLAG_DONE));
    } else {
        CHECK(type == NBD_REPLY_TYPE_NONE);
    }
    if (flags & NBD_REPLY_FLAG_DONE)
        done(c, r, error);
    return NBD_CHUNK_BYTES + bytes;
}

static size_t simple(struct sim_client *c, const uint8_t *data, size_t have)
{
    struct sim_request *r = request_of(c, data + 8);
    uint32_t error = nbd_get32(data + 4);
    size_t bytes = r->command == NBD_CMD_READ && !error ? r->sectors * SIM_SECTOR : 0;
    if (have < NBD_SIMPLE_REPLY_BYTES + bytes)
        return 0;
    if (bytes)
        memcpy(r->got, data + NBD_SIMPLE_REPLY_BYTES, bytes);
    r->got_bytes = bytes;
    done(c, r, error);
    return NBD_SIMPLE_REPLY_BYTES + bytes;
}

/* Whoever hears no answer does not know what became of it. */
static void forget_requests(struct sim_client *c)
{
    for (uint32_t i = 0; i < SIM_REQUESTS; i++) {
        struct sim_request *r = &c->request[i];
        if (r->used && r->write.sent)
            oracle_write_done(&c->sim->oracle, &r->write, false, false);
        if (r->used)
            release(c, r);
    }
}

static void hang_up(struct sim_client *c)
{
    sim_forget(&c->sim->system, c->fd);
    c->fd = -1;
    c->outgoing.start = c->outgoing.end = c->incoming.start = c->incoming.end = 0;
    c->giving = c->looking = c->gone = false;
}

static void look(void *owner, uint64_t generation)
{
    struct sim_client *c = owner;
    struct sim_system *system = &c->sim->system;
    if (c->fd < 0 || c->generation != generation)
        return;
    c->looking = false;
    const uint8_t *data;
    size_t have = sim_sent(system, c->fd, &data), taken = 1;
    sim_bytes_add(&c->incoming, data, have);
    sim_take(system, c->fd, have);
    while (taken && (have = c->incoming.end - c->incoming.start) >= NBD_SIMPLE_REPLY_BYTES && !c->gone) {
        data = c->incoming.data + c->incoming.start;
        uint32_t magic = nbd_get32(data);
        CHECK(magic == NBD_SIMPLE_REPLY_MAGIC || magic == NBD_STRUCTURED_REPLY_MAGIC);
        taken = magic == NBD_SIMPLE_REPLY_MAGIC ? simple(c, data, have) : chunk(c, data, have);
        c->incoming.start += taken;
    }
    if (!sim_closed(system, c->fd))
        return;
    if (!may_hang_up(c))
        FAIL("the device hangs up on client %u", c->number);
    forget_requests(c);
    hang_up(c);
}

void sim_client_connect(struct sim_client *c)
{
    c->generation++;
    c->fd = sim_socket(&c->sim->system, OUT_MOST, moved, c, c->generation);
    uint32_t flags = c->structured ? ISW_CONNECTION_STRUCTURED | ISW_CONNECTION_ALLOCATION : 0;
    CHECK_EQUAL(isw_device_connection_add(c->sim->device, c->fd, flags, NULL, 0), 0);
}

void sim_client_leave(struct sim_client *c)
{
    sim_trace(c->sim, "client %u leaves", c->number);
    c->gone = true;
    sim_deliver_end(&c->sim->system, c->fd, chance_in(&c->chance, 2));
}

void sim_clients_cut(struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        struct sim_client *c = &sim->client[i];
        forget_requests(c);
        if (c->fd >= 0)
            hang_up(c);
        c->generation++;
    }
}

bool sim_clients_idle(const struct sim *sim)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        if (sim->client[i].out || sim->client[i].gone)
            return false;
    return true;
}

void sim_client_check_ages(const struct sim *sim, uint64_t limit_ns)
{
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        for (uint32_t k = 0; k < SIM_REQUESTS; k++) {
            const struct sim_request *r = &sim->client[i].request[k];
            if (r->used && sim->system.now_ns - r->sent_ns > limit_ns)
                FAIL("command %u of sectors %llu + %llu, asked at %llu, has no answer after %llu ms", r->command,
                     (unsigned long long)r->first, (unsigned long long)r->sectors, (unsigned long long)r->sent,
                     (unsigned long long)(sim->system.now_ns - r->sent_ns) / 1000000);
        }
}
