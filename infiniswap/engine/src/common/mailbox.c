#include "mailbox.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

int mailbox_open(struct mailbox *box)
{
    box->function = NULL;
    box->closed = false;
    box->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (box->event_fd < 0)
        return -errno;
    pthread_mutex_init(&box->callers, NULL);
    pthread_mutex_init(&box->lock, NULL);
    pthread_cond_init(&box->answered, NULL);
    return 0;
}

void mailbox_destroy(struct mailbox *box)
{
    close(box->event_fd);
    pthread_cond_destroy(&box->answered);
    pthread_mutex_destroy(&box->lock);
    pthread_mutex_destroy(&box->callers);
}

int mailbox_call(struct mailbox *box, mailbox_function *function, void *argument)
{
    int result;
    pthread_mutex_lock(&box->callers);
    pthread_mutex_lock(&box->lock);
    if (box->closed) {
        result = -ESHUTDOWN;
    } else {
        box->function = function;
        box->argument = argument;
        eventfd_write(box->event_fd, 1);
        while (box->function)
            pthread_cond_wait(&box->answered, &box->lock);
        result = box->result;
    }
    pthread_mutex_unlock(&box->lock);
    pthread_mutex_unlock(&box->callers);
    return result;
}

void mailbox_serve(struct mailbox *box, void *owner)
{
    eventfd_t ignored;
    eventfd_read(box->event_fd, &ignored);
    pthread_mutex_lock(&box->lock);
    if (box->function) {
        box->result = box->function(owner, box->argument);
        box->function = NULL;
        pthread_cond_signal(&box->answered);
    }
    pthread_mutex_unlock(&box->lock);
}

void mailbox_close(struct mailbox *box)
{
    pthread_mutex_lock(&box->lock);
    box->closed = true;
    if (box->function) {
        box->result = -ESHUTDOWN;
        box->function = NULL;
        pthread_cond_signal(&box->answered);
    }
    pthread_mutex_unlock(&box->lock);
}
