#include "sim_peer.h"

#include <errno.h>

enum { PAGE = ISW_PAGE_BYTES, OUT_MOST = 192 << 10 };

static void give_replies(void *owner, uint64_t number);
static void look(void *owner, uint64_t number);

static uint64_t name_of(const struct sim_link *link)
{
    return (uint64_t)link->generation << 1 | (link == &link->peer->link[1]);
}

/* The link that an event is about, NULL when that connection is no more. */
static struct sim_link *link_of(struct sim_peer *peer, uint64_t name)
{
    struct sim_link *link = &peer->link[name & 1];
    return link->fd >= 0 && link->generation == name >> 1 ? link : NULL;
}

static void look_soon(struct sim_link *link)
{
    struct sim_peer *peer = link->peer;
    if (link->looking)
        return;
    link->looking = true;
    sim_at(peer->system, peer->system->now_ns + 5000 + chance_below(&peer->chance, peer->manners.request_ns_max), look, peer,
           name_of(link));
}

static void moved(void *owner, uint64_t name)
{
    struct sim_link *link = link_of(owner, name);
    if (link)
        look_soon(link);
}

/* ---- answers ---- */

static void reply(struct sim_link *link, const uint8_t *data, size_t bytes)
{
    struct sim_peer *peer = link->peer;
    const struct sim_peer_manners *m = &peer->manners;
    CHECK(link->last - link->first < SIM_REPLIES);
    struct sim_reply *r = &link->reply[link->last++ % SIM_REPLIES];
    uint64_t due_ns = peer->system->now_ns + 5000 + chance_below(&peer->chance, m->request_ns_max);
    if (m->late_one_in && chance_in(&peer->chance, m->late_one_in)) {
        due_ns += chance_below(&peer->chance, m->late_ns);
        peer->harmed(peer->owner, peer->number, SIM_SLABS_MAX, "answers late");
    }
    if (due_ns < link->busy_ns)
        due_ns = link->busy_ns;
    link->busy_ns = due_ns;
    *r = (struct sim_reply){due_ns, bytes, 0, malloc(bytes)};
    CHECK(r->data);
    memcpy(r->data, data, bytes);
    if (link->last - link->first == 1)
        sim_at(peer->system, due_ns, give_replies, peer, name_of(link));
}

static void give_replies(void *owner, uint64_t name)
{
    struct sim_peer *peer = owner;
    struct sim_link *link = link_of(peer, name);
    while (link && link->first != link->last) {
        struct sim_reply *r = &link->reply[link->first % SIM_REPLIES];
        if (link->silent)
            return;
        if (r->due_ns > peer->system->now_ns) {
            sim_at(peer->system, r->due_ns, give_replies, peer, name);
            return;
        }
        size_t now = r->bytes - r->given;
        if (peer->manners.chopped && now > 1)
            now = 1 + chance_below(&peer->chance, now);
        sim_deliver(peer->system, link->fd, r->data + r->given, now);
        r->given += now;
        if (r->given < r->bytes) {
            sim_at(peer->system, peer->system->now_ns + 1 + chance_below(&peer->chance, 20000), give_replies, peer, name);
            return;
        }
        free(r->data);
        link->first++;
    }
}

static void answer(struct sim_link *link, uint64_t cookie, uint32_t error, const uint8_t *data, size_t bytes)
{
    static uint8_t whole[NBD_SIMPLE_REPLY_BYTES + ISW_OP_PAGES_MAX * PAGE];
    CHECK(bytes <= sizeof whole - NBD_SIMPLE_REPLY_BYTES);
    nbd_put32(whole, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(whole + 4, error);
    memcpy(whole + 8, &cookie, sizeof cookie);
    if (bytes)
        memcpy(whole + NBD_SIMPLE_REPLY_BYTES, data, bytes);
    reply(link, whole, NBD_SIMPLE_REPLY_BYTES + bytes);
}

/* ---- misbehaviour ---- */

/* What a fuzzer made up: bytes as they are, or behind the header of an answer to what was asked just now. */
static void say_script(struct sim_link *link)
{
    const struct sim_peer_manners *m = &link->peer->manners;
    uint8_t whole[NBD_SIMPLE_REPLY_BYTES + 256];
    const uint8_t *at = *m->script;
    bool headed = at[0] & 1;
    uint32_t error = at[0] & 2 ? at[0] >> 2 : 0;
    size_t bytes = at[1], head = headed ? NBD_SIMPLE_REPLY_BYTES : 0;
    at += 2;
    if (bytes > (size_t)(m->script_end - at))
        bytes = (size_t)(m->script_end - at);
    nbd_put32(whole, NBD_SIMPLE_REPLY_MAGIC);
    nbd_put32(whole + 4, error);
    memcpy(whole + 8, &link->cookie, sizeof link->cookie);
    memcpy(whole + head, at, bytes);
    *m->script = at + bytes;
    if (head + bytes)
        reply(link, whole, head + bytes);
}

static void garbage(struct sim_link *link)
{
    struct sim_peer *peer = link->peer;
    uint8_t junk[64];
    uint64_t cookie = chance_next(&peer->chance);
    peer->harmed(peer->owner, peer->number, SIM_SLABS_MAX, "answers what nobody asked");
    if (peer->manners.script && peer->manners.script_end - *peer->manners.script >= 2) {
        say_script(link);
        return;
    }
    switch (chance_below(&peer->chance, 3)) {
    case 0: /* to a request that was never sent */
        answer(link, cookie & 0xffffffff, 0, NULL, 0);
        break;
    case 1: /* no answer at all */
        for (uint32_t i = 0; i < sizeof junk; i++)
            junk[i] = (uint8_t)chance_next(&peer->chance);
        reply(link, junk, sizeof junk);
        break;
    default: /* of a wrong length: what follows is out of step, or nothing follows */
        answer(link, cookie & 0xffffffff, 0, peer->memory, 1 + chance_below(&peer->chance, PAGE));
    }
}

static void silence(struct sim_link *link)
{
    link->silent = true;
    link->peer->harmed(link->peer->owner, link->peer->number, SIM_SLABS_MAX, "falls silent");
}

/* False: the request is not carried out. */
static bool misbehave(struct sim_link *link, uint32_t slab, bool *flip)
{
    struct sim_peer *peer = link->peer;
    const struct sim_peer_manners *m = &peer->manners;
    uint32_t one_in[SIM_FAIL_KINDS] = {m->refuses_one_in, m->dies_one_in, m->silent_one_in, m->flips_one_in, m->garbage_one_in};
    uint64_t kind = SIM_FAIL_KINDS;
    peer->requests++;
    if (m->restarts_one_in && chance_in(&peer->chance, m->restarts_one_in)) {
        sim_peer_restart(peer, chance_in(&peer->chance, 2));
        return false;
    }
    for (uint32_t i = 0; i < SIM_FAIL_KINDS; i++)
        if (one_in[i] && chance_in(&peer->chance, one_in[i]))
            kind = i;
    if (peer->requests == m->fail_nth)
        kind = m->fail_kind;
    switch (kind) {
    case SIM_FAIL_REFUSE:
        peer->harmed(peer->owner, peer->number, slab, "refuses a slab");
        sim_peer_take_back(peer, slab);
        return true;
    case SIM_FAIL_DIE:
        sim_peer_die(peer);
        return false;
    case SIM_FAIL_SILENT:
        silence(link);
        return true;
    case SIM_FAIL_FLIP:
        peer->harmed(peer->owner, peer->number, slab, "flips a bit");
        *flip = true;
        return true;
    case SIM_FAIL_GARBAGE:
        garbage(link);
        return true;
    default:
        return true;
    }
}

/* ---- requests ---- */

static void flip_bit(struct sim_peer *peer, uint64_t at, uint32_t bytes)
{
    peer->memory[at + chance_below(&peer->chance, bytes)] ^= (uint8_t)(1 << chance_below(&peer->chance, 8));
}

/* Whole pages only, or the last piece: as the memory daemon does.  Returns how many bytes it took. */
static size_t take_payload(struct sim_link *link, const uint8_t *data, size_t bytes)
{
    size_t taken = 0;
    while (link->write_left) {
        uint32_t piece = PAGE - (uint32_t)(link->write_at % PAGE);
        piece = piece < link->write_left ? piece : link->write_left;
        if (bytes - taken < piece)
            return taken;
        link->peer->used = true;
        if (!link->write_error)
            memcpy(link->peer->memory + link->write_at, data + taken, piece);
        taken += piece;
        link->write_at += piece;
        link->write_left -= piece;
    }
    link->writing = false;
    answer(link, link->write_cookie, link->write_error, NULL, 0);
    return taken;
}

/* False: the peer, or this connection of it, is no more. */
static bool request(struct sim_link *link, const uint8_t *head)
{
    struct sim_peer *peer = link->peer;
    uint64_t cookie, offset = nbd_get64(head + 16);
    uint32_t bytes = nbd_get32(head + 24), slab = (uint32_t)(offset / peer->slab_bytes);
    uint16_t command = nbd_get16(head + 6);
    bool flip = false;
    memcpy(&cookie, head + 8, sizeof cookie);
    link->cookie = cookie;
    CHECK(nbd_get32(head) == NBD_REQUEST_MAGIC && bytes && offset + bytes <= peer->size_bytes);
    CHECK((offset + bytes - 1) / peer->slab_bytes == slab);
    if (!misbehave(link, slab, &flip))
        return false;
    bool refused = !peer->lent[slab];
    if (flip && !refused && command != NBD_CMD_TRIM)
        flip_bit(peer, offset, bytes);
    switch (command) {
    case NBD_CMD_READ:
        CHECK(link == &peer->link[0]);
        answer(link, cookie, refused ? NBD_ESHUTDOWN : 0, peer->memory + offset, refused ? 0 : bytes);
        break;
    case NBD_CMD_WRITE:
        CHECK(link == &peer->link[1]);
        link->writing = true;
        link->write_cookie = cookie;
        link->write_at = offset;
        link->write_left = bytes;
        link->write_error = refused ? NBD_ESHUTDOWN : 0;
        break;
    case NBD_CMD_TRIM:
        if (!refused)
            memset(peer->memory + offset, 0, bytes);
        answer(link, cookie, refused ? NBD_ESHUTDOWN : 0, NULL, 0);
        break;
    default:
        FAIL("the device asks a peer for command %u", command);
    }
    return true;
}

static void look(void *owner, uint64_t name)
{
    struct sim_peer *peer = owner;
    struct sim_link *link = link_of(peer, name);
    const uint8_t *data;
    if (!link)
        return;
    link->looking = false;
    for (;;) {
        size_t have = sim_sent(peer->system, link->fd, &data), taken;
        if (link->writing) {
            taken = take_payload(link, data, have);
        } else if (have >= NBD_REQUEST_BYTES) {
            if (!request(link, data))
                return;
            taken = NBD_REQUEST_BYTES;
        } else {
            break;
        }
        sim_take(peer->system, link->fd, taken);
        if (!taken && link->writing)
            break;
    }
    if (!sim_closed(peer->system, link->fd))
        return;
    sim_forget(peer->system, link->fd); /* what was left of an unfinished request counts for nothing */
    link->fd = -1;
}

/* ---- its life ---- */

void sim_peer_open(struct sim_peer *peer, struct sim_system *system, uint32_t number, uint64_t size_bytes,
                   uint64_t slab_bytes, struct chance chance)
{
    *peer = (struct sim_peer){.system = system, .number = number, .chance = chance, .size_bytes = size_bytes,
                              .slab_bytes = slab_bytes, .alive = true};
    peer->memory = calloc(1, size_bytes);
    CHECK(peer->memory);
    peer->manners.request_ns_max = 50000;
    for (int i = 0; i < 2; i++) {
        peer->link[i].peer = peer;
        peer->link[i].fd = -1;
    }
}

static void drop(struct sim_link *link)
{
    for (; link->first != link->last; link->first++)
        free(link->reply[link->first % SIM_REPLIES].data);
    link->writing = link->looking = link->silent = false;
    link->busy_ns = 0;
    if (link->fd >= 0)
        sim_forget(link->peer->system, link->fd);
    link->fd = -1;
}

void sim_peer_drop_links(struct sim_peer *peer)
{
    drop(&peer->link[0]);
    drop(&peer->link[1]);
}

void sim_peer_close(struct sim_peer *peer)
{
    sim_peer_drop_links(peer);
    free(peer->memory);
}

void sim_peer_connect(struct sim_peer *peer, int fds[2])
{
    for (int i = 0; i < 2; i++) {
        struct sim_link *link = &peer->link[i];
        drop(link);
        link->generation++;
        link->fd = fds[i] = sim_socket(peer->system, OUT_MOST, moved, peer, name_of(link));
    }
}

void sim_peer_end_lease(struct sim_peer *peer)
{
    sim_peer_drop_links(peer);
    peer->leased = false;
    memset(peer->lent, 0, sizeof peer->lent);
    if (peer->used)
        memset(peer->memory, 0xdd, peer->size_bytes);
    peer->used = false;
}

void sim_peer_die(struct sim_peer *peer)
{
    peer->harmed(peer->owner, peer->number, SIM_SLABS_MAX, "dies");
    peer->alive = false;
    sim_peer_end_lease(peer);
}

void sim_peer_restart(struct sim_peer *peer, bool alive)
{
    peer->harmed(peer->owner, peer->number, SIM_SLABS_MAX, "restarts");
    peer->alive = alive;
    sim_peer_drop_links(peer);
}

bool sim_peer_drained(struct sim_peer *peer)
{
    return peer->link[0].fd < 0 && peer->link[1].fd < 0;
}

bool sim_peer_owes(const struct sim_peer *peer)
{
    for (int i = 0; i < 2; i++)
        if (peer->link[i].silent || peer->link[i].first != peer->link[i].last)
            return true;
    return false;
}

void sim_peer_take_back(struct sim_peer *peer, uint32_t slab)
{
    uint64_t at = slab * peer->slab_bytes;
    peer->used = true;
    peer->lent[slab] = false;
    memset(peer->memory + at, 0xee, at + peer->slab_bytes < peer->size_bytes ? peer->slab_bytes : peer->size_bytes - at);
}
