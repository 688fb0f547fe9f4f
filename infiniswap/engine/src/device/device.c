/* The device's calls that reach into the loop, and what may be read from outside at any time. */
#include "client.h"
#include "device.h"
#include "events.h"
#include "flush.h"
#include "loop.h"
#include "moving.h"
#include "op_scrub.h"
#include "peer.h"
#include "peer_tcp.h"
#include "pool.h"
#include "slab.h"
#include "transport.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *const counter_names[] = {
#define ISW_X(name) #name,
    ISW_DEVICE_COUNTERS(ISW_X)
#undef ISW_X
};

uint64_t isw_histogram_bucket_floor_ns(uint32_t bucket)
{
    if (bucket < 8)
        return bucket;
    uint32_t octave = bucket / 8 + 2;
    return (8ull + bucket % 8) << (octave - 3);
}

/* ---- calls, on the loop's thread ---- */

struct arguments {
    bool verify;
    uint32_t slab, peer, flags;
    int fds[2];
    const void *early;
    size_t early_bytes;
    uint64_t ticket;
    uint32_t limit_ms;
    bool region; /* the peer is reached over RDMA: */
    uint64_t address;
    uint32_t rkey;
};

static int call_connection(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (d->stop.begun)
        return -ESHUTDOWN;
    for (uint32_t i = 0; i < d->config.connections_max; i++) {
        struct client *client = &d->clients[i];
        if (client->used)
            continue;
        int result = loop_watch(d, a->fds[0], LOOP_CLIENT, i);
        if (result < 0)
            return result;
        nbd_connection_open(&client->connection, a->fds[0], a->flags, d->config.size_bytes, a->early, a->early_bytes);
        client->used = true;
        client->starved = false;
        client->writing = NULL;
        d->clients_used++;
        tally(d, ISW_DEVICE_connections, 1);
        tally(d, ISW_DEVICE_connections_total, 1);
        client_make_ready(d, client);
        return 0;
    }
    return -EMFILE;
}

static int call_attach(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (d->peers[a->peer].attached)
        return -EBUSY;
    int result = loop_watch(d, a->fds[0], LOOP_PEER_READ, a->peer);
    if (!result)
        result = loop_watch(d, a->fds[1], LOOP_PEER_WRITE, a->peer);
    if (!result)
        peer_open_tcp(&d->peers[a->peer], a->fds[0], a->fds[1]);
    return result;
}

static int call_detach(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (!d->peers[a->peer].attached && !d->peers[a->peer].hold.until_ns)
        return -ENOTCONN;
    peer_down(d, &d->peers[a->peer], 0, false);
    return 0;
}

static int call_hold(void *owner, void *argument)
{
    struct device *d = owner;
    struct peer *peer = &d->peers[((const struct arguments *)argument)->peer];
    if (!peer->attached && !peer->hold.until_ns)
        return -ENOTCONN;
    if (!peer_may_be_held(d, peer, ECONNRESET))
        return peer->hold.until_ns ? 0 : -EAGAIN;
    peer_hold(d, peer, ECONNRESET);
    return 0;
}

static int call_resume(void *owner, void *argument)
{
    struct device *d = owner;
    return peer_resume(d, &d->peers[((const struct arguments *)argument)->peer]);
}

static int call_region(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (d->slab_views[a->slab].peer != (int32_t)a->peer || !d->peers[a->peer].hold.until_ns)
        return -ENOTCONN;
    struct slab *slab = &d->slab[a->slab];
    slab->place[slab->at].address = a->address;
    slab->place[slab->at].key = a->rkey;
    return 0;
}

static int call_gone(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (d->slab_views[a->slab].peer != (int32_t)a->peer || !d->peers[a->peer].hold.until_ns)
        return -ENOTCONN;
    slab_lost(d, a->slab, ESHUTDOWN);
    return 0;
}

static int takes(const struct device *d, const struct arguments *a)
{
    if (!d->peers[a->peer].attached || !peer_up(&d->peers[a->peer]))
        return -ENOTCONN;
    return a->region == d->peers[a->peer].transport->takes_regions ? 0 : -EINVAL;
}

static int call_forget(void *owner, void *argument)
{
    struct device *d = owner;
    uint32_t slab = ((const struct arguments *)argument)->slab;
    if (d->slab_views[slab].state != ISW_SLAB_UNMAPPED)
        return -EBUSY;
    slab_forget_remote(d, slab);
    return 0;
}

static int call_map(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    int result = takes(d, a);
    return result ? result : slab_map(d, a->slab, a->peer, a->flags, a->address, a->rkey);
}

static int call_move(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    int result = takes(d, a);
    return result ? result : moving_begin(d, a->slab, a->peer, a->address, a->rkey, a->limit_ms);
}

static int call_move_cancel(void *owner, void *argument)
{
    return moving_cancel(owner, ((const struct arguments *)argument)->slab);
}

static int call_settle(void *owner, void *argument)
{
    return moving_settle(owner, ((const struct arguments *)argument)->slab);
}

static int call_adoption_end(void *owner, void *argument)
{
    (void)argument;
    slabs_adoption_end(owner);
    return 0;
}

static int call_unmap(void *owner, void *argument)
{
    return slab_unmap(owner, ((const struct arguments *)argument)->slab);
}

static int call_flush(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    struct request *request = request_take(d);
    if (!request)
        return -EAGAIN;
    request->cookie = a->ticket;
    flush_add(d, request);
    return 0;
}

static int call_scrub(void *owner, void *argument)
{
    struct device *d = owner;
    const struct arguments *a = argument;
    if (a->flags && (d->scrub.running || d->scrub.in_flight))
        return -EBUSY;
    scrub_begin(d, a->flags, a->verify);
    return 0;
}

/* ---- calls, from outside ---- */

static struct device *inside(isw_device *device)
{
    return (struct device *)device;
}

int isw_device_connection_add(isw_device *device, int fd, uint32_t flags, const void *early, size_t early_bytes)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on UNIX sockets, which need it not */
    struct arguments a = {.flags = flags, .fds = {fd, -1}, .early = early, .early_bytes = early_bytes};
    int result = early_bytes > ISW_EARLY_BYTES_MAX ? -EINVAL : mailbox_call(&inside(device)->mailbox, call_connection, &a);
    if (result < 0)
        close(fd);
    return result;
}

int isw_device_peer_attach(isw_device *device, uint32_t peer, int read_fd, int write_fd)
{
    int one = 1;
    setsockopt(read_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(write_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct arguments a = {.peer = peer, .fds = {read_fd, write_fd}};
    int result = peer >= inside(device)->config.peers_max ? -EINVAL
                                                          : mailbox_call(&inside(device)->mailbox, call_attach, &a);
    if (result < 0) {
        close(read_fd);
        close(write_fd);
    }
    return result;
}

static int call_about_peer(isw_device *device, uint32_t peer, mailbox_function *function)
{
    struct arguments a = {.peer = peer};
    return peer >= inside(device)->config.peers_max ? -EINVAL : mailbox_call(&inside(device)->mailbox, function, &a);
}

int isw_device_peer_detach(isw_device *device, uint32_t peer)
{
    return call_about_peer(device, peer, call_detach);
}

int isw_device_peer_hold(isw_device *device, uint32_t peer)
{
    return call_about_peer(device, peer, call_hold);
}

int isw_device_peer_resume(isw_device *device, uint32_t peer)
{
    return call_about_peer(device, peer, call_resume);
}

static int call_about_slab(isw_device *device, mailbox_function *function, struct arguments *a)
{
    struct device *d = inside(device);
    return a->slab >= d->slabs || a->peer >= d->config.peers_max ? -EINVAL : mailbox_call(&d->mailbox, function, a);
}

int isw_device_slab_forget(isw_device *device, uint32_t slab)
{
    return call_about_slab(device, call_forget, &(struct arguments){.slab = slab});
}

int isw_device_slab_map(isw_device *device, uint32_t slab, uint32_t peer, uint32_t adopt)
{
    return call_about_slab(device, call_map, &(struct arguments){.slab = slab, .peer = peer, .flags = adopt});
}

int isw_device_slab_map_region(isw_device *device, uint32_t slab, uint32_t peer, uint32_t adopt, uint64_t address,
                               uint32_t rkey)
{
    return call_about_slab(device, call_map, &(struct arguments){.slab = slab, .peer = peer, .flags = adopt, .region = true,
                                                            .address = address, .rkey = rkey});
}

int isw_device_slab_move(isw_device *device, uint32_t slab, uint32_t peer, uint32_t limit_ms)
{
    return call_about_slab(device, call_move, &(struct arguments){.slab = slab, .peer = peer, .limit_ms = limit_ms});
}

int isw_device_slab_move_region(isw_device *device, uint32_t slab, uint32_t peer, uint32_t limit_ms, uint64_t address,
                                uint32_t rkey)
{
    return call_about_slab(device, call_move, &(struct arguments){.slab = slab, .peer = peer, .limit_ms = limit_ms, .region = true,
                                                             .address = address, .rkey = rkey});
}

int isw_device_slab_move_cancel(isw_device *device, uint32_t slab)
{
    return call_about_slab(device, call_move_cancel, &(struct arguments){.slab = slab});
}

int isw_device_slab_settle(isw_device *device, uint32_t slab)
{
    return call_about_slab(device, call_settle, &(struct arguments){.slab = slab});
}

int isw_device_slab_region(isw_device *device, uint32_t slab, uint32_t peer, uint64_t address, uint32_t rkey)
{
    return call_about_slab(device, call_region, &(struct arguments){.slab = slab, .peer = peer, .address = address, .rkey = rkey});
}

int isw_device_slab_gone(isw_device *device, uint32_t slab, uint32_t peer)
{
    return call_about_slab(device, call_gone, &(struct arguments){.slab = slab, .peer = peer});
}

int isw_device_slab_unmap(isw_device *device, uint32_t slab)
{
    return call_about_slab(device, call_unmap, &(struct arguments){.slab = slab});
}

int isw_device_flush(isw_device *device, uint64_t ticket)
{
    struct arguments a = {.ticket = ticket};
    return mailbox_call(&inside(device)->mailbox, call_flush, &a);
}

int isw_device_scrub(isw_device *device, uint32_t pages_per_s)
{
    struct arguments a = {.flags = pages_per_s};
    return mailbox_call(&inside(device)->mailbox, call_scrub, &a);
}

int isw_device_verify(isw_device *device, uint32_t pages_per_s)
{
    struct arguments a = {.flags = pages_per_s, .verify = true};
    return mailbox_call(&inside(device)->mailbox, call_scrub, &a);
}

int isw_device_adoption_end(isw_device *device)
{
    return mailbox_call(&inside(device)->mailbox, call_adoption_end, NULL);
}

int isw_device_event_fd(isw_device *device)
{
    return inside(device)->events.fd;
}

int isw_device_events(isw_device *device, struct isw_event *events, uint32_t events_max)
{
    return event_take(&inside(device)->events, events, events_max);
}

const struct isw_slab_view *isw_device_slabs(isw_device *device, uint32_t *count)
{
    *count = inside(device)->slabs;
    return inside(device)->slab_views;
}

const struct isw_peer_view *isw_device_peers(isw_device *device, uint32_t *count)
{
    *count = inside(device)->config.peers_max;
    return inside(device)->peer_views;
}

const uint64_t *isw_device_counters(isw_device *device, uint32_t *count)
{
    *count = ISW_DEVICE_COUNTER_COUNT;
    return inside(device)->counters;
}

const char *isw_device_counter_name(uint32_t counter)
{
    return counter < ISW_DEVICE_COUNTER_COUNT ? counter_names[counter] : "";
}

const struct isw_histogram *isw_device_histograms(isw_device *device)
{
    return inside(device)->histograms;
}

const struct isw_histogram *isw_device_peer_histograms(isw_device *device)
{
    return &inside(device)->peer_histograms[0][0];
}

void isw_device_trace_least(isw_device *device, uint64_t least_ns)
{
    set64(&inside(device)->trace.least_ns, least_ns);
}

uint32_t isw_device_traces(isw_device *device, uint64_t after, struct isw_trace *out, uint32_t most)
{
    return trace_take(&inside(device)->trace, after, out, most);
}

int isw_device_backup_engine(isw_device *device)
{
    return inside(device)->backup->engine;
}
