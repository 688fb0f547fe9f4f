#include "events.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int event_ring_open(struct event_ring *events)
{
    events->head = events->tail = 0;
    events->overflowed = false;
    events->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (events->fd < 0)
        return -errno;
    pthread_mutex_init(&events->lock, NULL);
    return 0;
}

void event_ring_close(struct event_ring *events)
{
    close(events->fd);
    pthread_mutex_destroy(&events->lock);
}

void event_post(struct event_ring *events, struct isw_event event)
{
    pthread_mutex_lock(&events->lock);
    if (events->tail - events->head == ISW_EVENTS)
        events->overflowed = true;
    else
        events->ring[events->tail++ % ISW_EVENTS] = event;
    pthread_mutex_unlock(&events->lock);
    eventfd_write(events->fd, 1);
}

int event_take(struct event_ring *events, struct isw_event *out, uint32_t most)
{
    uint32_t count = 0;
    eventfd_t ignored;
    pthread_mutex_lock(&events->lock);
    if (events->overflowed && most) {
        events->overflowed = false;
        out[count++] = (struct isw_event){.kind = ISW_EVENT_OVERFLOW};
    }
    while (count < most && events->head != events->tail)
        out[count++] = events->ring[events->head++ % ISW_EVENTS];
    if (events->head == events->tail)
        eventfd_read(events->fd, &ignored);
    pthread_mutex_unlock(&events->lock);
    return (int)count;
}
