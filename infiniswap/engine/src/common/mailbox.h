/* One call at a time from a control thread into a loop thread, answered there: the only way in. */
#ifndef ISW_MAILBOX_H
#define ISW_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

typedef int mailbox_function(void *owner, void *argument);

struct mailbox {
    pthread_mutex_t callers; /* held for a whole call: callers queue here */
    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t answered;
    mailbox_function *function; /* NULL: no call waits */
    void *argument;
    int result;
    bool closed; /* the loop has ended: calls answer -ESHUTDOWN */
    int event_fd;
};

int mailbox_open(struct mailbox *box);
void mailbox_destroy(struct mailbox *box);
/* Runs function(owner, argument) on the loop's thread and returns its result. */
int mailbox_call(struct mailbox *box, mailbox_function *function, void *argument);
/* For the loop: run what waits.  Call when event_fd is readable. */
void mailbox_serve(struct mailbox *box, void *owner);
/* For the loop, at its end: nobody waits for ever. */
void mailbox_close(struct mailbox *box);

#endif
