/* The loop, and what it is woken by. */
#ifndef ISW_LOOP_H
#define ISW_LOOP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct device;

/* What an epoll event is about: kind in the upper half, number in the lower. */
enum loop_source {
    LOOP_MAILBOX, LOOP_BACKUP, LOOP_CLIENT, LOOP_PEER_READ, LOOP_PEER_WRITE, LOOP_TRANSPORT
};

void *loop_run(void *device);
void loop_round(struct device *d); /* by itself: for tests that bring their own clock and no thread */
int loop_watch(struct device *d, int fd, enum loop_source source, uint32_t number);
uint64_t clock_ns(void);

#endif
