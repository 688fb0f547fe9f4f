/* The loop: one thread that owns the data path.  A round takes what has come, lets operations go as far as they can, and
 * only then sends: so each socket and the backup see one system call for all that a round produced. */
#include "client.h"
#include "device.h"
#include "flush.h"
#include "invariants.h"
#include "loop.h"
#include "moving.h"
#include "op.h"
#include "op_lend.h"
#include "op_move.h"
#include "op_resync.h"
#include "op_scrub.h"
#include "peer.h"
#include "peer_slow.h"
#include "prefetch.h"
#include "slab.h"
#include "transport.h"
#include "trims.h"
#include "writeback.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>

enum { EPOLL_EVENTS = 128, IDLE_MS = 1000, STOOD_STILL_MS = 3 * IDLE_MS, /* between two rounds: it was us who did not run */
       BACKUP_LOOK_MS = 1 /* how often is seen what the backup has done, while more is to follow and nobody waits */ };

uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int loop_watch(struct device *d, int fd, enum loop_source source, uint32_t number)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)source << 32 | number};
    if (source == LOOP_BACKUP)
        event.events |= EPOLLET;
    if (source == LOOP_CLIENT || source == LOOP_PEER_READ || source == LOOP_PEER_WRITE)
        event.events |= EPOLLOUT | EPOLLRDHUP | EPOLLET;
    return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static bool busy(const struct device *d)
{
    return d->counters[ISW_DEVICE_in_flight] || d->counters[ISW_DEVICE_pending_pages] || d->punches.first || movers_wait(&d->movers) ||
           d->movers.in_flight || d->moves.first || d->resync.held || d->peers_held || d->scrub.running || d->stop.begun ||
           d->prefetch.flying || loans_out(&d->loans) || d->trims.first || transports_busy(d);
}

/* What the next round could go on with at once: it was made possible after its turn in this one. */
static bool left_over(const struct device *d)
{
    return d->turns.ready || d->backup_done || d->punches.more || d->writeback.more || d->schedule.runnable || d->schedule.scanning || d->called || d->peers_unsent ||
           d->forgetting.first || d->resync.more || d->moves.more || (d->loans.left && !d->loans.in_flight) ||
           (d->resources_freed && d->turns.starved) || transfer_waiters_may(d);
}

/* Somebody waits for what the backup does; else it is enough to look now and then. */
static bool backup_awaited(const struct device *d)
{
    return d->late.first || d->turns.starved || d->flush.waiting.first || d->flush.syncing.first || d->direct_in_flight ||
           d->writes_through || d->draining || d->stop.begun;
}

/* Has it done anything that is worth a look now? */
static bool backup_attend(struct device *d)
{
    bool awaited = backup_awaited(d), due = awaited || d->now_ns - d->backup_seen_ns >= BACKUP_LOOK_MS * 1000000ull;
    return d->backup->methods->attend && d->backup->methods->attend(d->backup, awaited) && due;
}

static int timeout_ms(const struct device *d)
{
    if (left_over(d))
        return 0;
    int most_ms = d->writeback.in_flight && d->dirty.first && d->backup->methods->attend ? BACKUP_LOOK_MS : busy(d) ? TICK_MS : IDLE_MS;
    uint64_t left_ns = d->hedging.due_ns > d->now_ns ? d->hedging.due_ns - d->now_ns : 0;
    return left_ns / 1000000 < (uint64_t)most_ms ? (int)((left_ns + 999999) / 1000000) : most_ms;
}

static void tick(struct device *d)
{
    if (d->now_ns - d->tick_ns < TICK_MS * 1000000ull)
        return;
    bool anew = d->now_ns - d->tick_ns > STOOD_STILL_MS * 1000000ull;
    d->tick_ns = d->now_ns;
    peers_check_time(d, anew);
    clients_check_time(d, anew);
    late_requests_drop_dead(d);
    prefetch_tick(d);
    trims_run(d);
}

static void dispatch(struct device *d, const struct epoll_event *event)
{
    uint32_t number = (uint32_t)event->data.u64;
    switch ((enum loop_source)(event->data.u64 >> 32)) {
    case LOOP_MAILBOX:
        d->called = true;
        break;
    case LOOP_BACKUP:
        backup_reap(d);
        break;
    case LOOP_CLIENT: {
        struct client *client = &d->clients[number];
        if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            client->connection.hung_up = true;
        if (client->connection.hung_up || (event->events & EPOLLIN))
            client->connection.readable = true;
        if (event->events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            client->connection.writable = true;
        client_make_ready(d, client);
        break;
    }
    case LOOP_PEER_READ:
        peer_event(d, number, false, event->events);
        break;
    case LOOP_PEER_WRITE:
        peer_event(d, number, true, event->events);
        break;
    case LOOP_TRANSPORT:
        transports_event(d, number);
        break;
    }
}

/* The last of an orderly stop: all clients are gone, all is on the backup; one more fdatasync and it is over. */
static void stop_if_done(struct device *d)
{
    if (d->clients_used || d->stop.flushing || !everything_on_backup(d) || d->movers.in_flight || d->resync.in_flight ||
        d->scrub.in_flight || d->moves.in_flight || d->moves.overdue || d->prefetch.flying || d->forgetting.first || loans_out(&d->loans) ||
        (d->backup->methods->busy && d->backup->methods->busy(d->backup)))
        return;
    if (!d->stop.flush.cookie) {
        d->stop.flushing = true;
        flush_add(d, &d->stop.flush);
        flush_run(d);
        return;
    }
    pthread_mutex_lock(&d->stop.lock);
    d->stop.done = true;
    pthread_cond_signal(&d->stop.signal);
    pthread_mutex_unlock(&d->stop.lock);
}

void loop_round(struct device *d)
{
    struct epoll_event events[EPOLL_EVENTS];
    int wait_ms = timeout_ms(d);
    if (wait_ms && transports_await(d))
        wait_ms = 0;
    int count = epoll_wait(d->epoll_fd, events, EPOLL_EVENTS, wait_ms);
    d->called = false;
    d->now_ns = clock_ns();
    tally(d, ISW_DEVICE_loops, 1);
    if (backup_attend(d)) {
        d->backup_seen_ns = d->now_ns;
        backup_reap(d);
    }
    for (int i = 0; i < count; i++)
        dispatch(d, &events[i]);
    transports_poll(d);
    peers_take_down(d);
    ops_run(d);
    late_requests_answer(d); /* before others take the room that they wait for */
    clients_serve(d);
    ops_scan(d);
    tick(d);
    if (d->resync.first)
        resync_start(d);
    if (d->now_ns >= d->hedging.due_ns)
        peers_hedge(d);
    if (movers_wait(&d->movers) && !d->stop.begun)
        movers_start(d);
    if (d->moves.first)
        moves_run(d);
    if (d->scrub.running && !d->stop.begun)
        scrub_run(d);
    if (d->prefetch.any_wanted)
        prefetch_run(d);
    if (d->loans.left)
        loans_run(d);
    writeback_run(d);
    peers_send(d);
    peers_take_down(d);
    slabs_forget(d);
    late_requests_answer(d);
    clients_send(d);
    if (d->called) /* after all events: what a call changes, none of this round may still name */
        mailbox_serve(&d->mailbox, d);
    flush_run(d);
    if (d->stop.begun && !d->stop.done)
        stop_if_done(d);
    d->backup->methods->kick(d->backup); /* last: all the others hand requests in */
    d->backup_done = backup_attend(d);
#ifdef ISW_CHECKED
    invariants_check(d);
#endif
}

void *loop_run(void *argument)
{
    struct device *d = argument;
    while (!d->stop.ending)
        loop_round(d);
    mailbox_close(&d->mailbox);
    return NULL;
}
