/* What the transports to a peer share. */
#ifndef ISW_PEER_H
#define ISW_PEER_H

#include "device.h"
#include "peer_slow.h"

#include <errno.h>

/* Behind before; NULL: as the first. */
static inline void list_insert(struct transfer_list *list, struct transfer *before, struct transfer *t)
{
    t->previous = before;
    t->next = before ? before->next : list->first;
    if (t->next)
        t->next->previous = t;
    else
        list->last = t;
    if (before)
        before->next = t;
    else
        list->first = t;
    list->count++;
}

static inline void list_append(struct transfer_list *list, struct transfer *t)
{
    t->next = NULL;
    t->previous = list->last;
    if (list->last)
        list->last->next = t;
    else
        list->first = t;
    list->last = t;
    list->count++;
}

static inline void list_remove(struct transfer_list *list, struct transfer *t)
{
    if (t->previous)
        t->previous->next = t->next;
    else
        list->first = t->next;
    if (t->next)
        t->next->previous = t->previous;
    else
        list->last = t->previous;
    list->count--;
}

static inline struct isw_peer_view *view_of(struct peer *peer)
{
    return &peer->device->peer_views[peer->number];
}

/* The peer is taken down at the end of the round. */
static inline void peer_fail(struct peer_link *link, int error)
{
    if (!link->peer->failed)
        link->peer->failed = error ? error : ECONNRESET;
}

/* A transfer of in_flight has come to its end; error: errno, 0 when it went well. */
void peer_answered(struct device *d, struct peer_link *link, struct transfer *t, int error);
/* Its connections are closed, and what was on its way has failed. */
void peer_disconnect(struct device *d, struct peer *peer);
void peer_opened(struct peer *peer, const struct transport *transport);

void peer_event(struct device *d, uint32_t peer, bool write, uint32_t events); /* write: of its second link */
void peer_submit(struct device *d, uint32_t peer, struct transfer *transfer);
void peers_send(struct device *d);
void peers_take_down(struct device *d);
void peers_check_time(struct device *d, bool anew); /* anew: this process stood still */
void peer_down(struct device *d, struct peer *peer, int error, bool tell);
/* News about a peer say which of its attachments they mean: Python may hear of them when there is another one. */
void peer_tell(struct device *d, uint32_t kind, uint32_t peer, uint32_t slab, uint64_t value);

#endif
