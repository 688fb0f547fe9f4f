/* Proves: calls from many threads run one at a time on the loop's thread, each gets its own answer, and a loop that has
 * ended keeps nobody waiting. */
#include "check.h"

#include "mailbox.h"

#include <errno.h>
#include <poll.h>

enum { CALLERS = 8, CALLS = 200 };

struct office {
    struct mailbox box;
    pthread_t loop_thread;
    int running;    /* calls under way: by the loop only */
    uint64_t calls;
    bool ending;
};

static int call_add(void *owner, void *argument)
{
    struct office *office = owner;
    CHECK(pthread_equal(pthread_self(), office->loop_thread));
    CHECK_EQUAL(office->running++, 0);
    office->calls++;
    office->running--;
    return *(int *)argument + 1;
}

static int call_end(void *owner, void *argument)
{
    (void)argument;
    ((struct office *)owner)->ending = true;
    return 0;
}

static void *run_loop(void *argument)
{
    struct office *office = argument;
    office->loop_thread = pthread_self();
    while (!office->ending) {
        struct pollfd wait = {.fd = office->box.event_fd, .events = POLLIN};
        if (poll(&wait, 1, 1000) == 1)
            mailbox_serve(&office->box, office);
    }
    mailbox_close(&office->box);
    return NULL;
}

static void *call_many(void *argument)
{
    struct office *office = argument;
    for (int i = 0; i < CALLS; i++)
        CHECK_EQUAL(mailbox_call(&office->box, call_add, &i), i + 1);
    return NULL;
}

static void *call_until_closed(void *argument)
{
    struct office *office = argument;
    int number = 1, result;
    while ((result = mailbox_call(&office->box, call_add, &number)) != -ESHUTDOWN)
        CHECK_EQUAL(result, 2);
    return NULL;
}

TEST(answers_go_to_their_callers)
{
    struct office office = {.calls = 0};
    pthread_t loop, caller[CALLERS];
    CHECK_EQUAL(mailbox_open(&office.box), 0);
    CHECK(pthread_create(&loop, NULL, run_loop, &office) == 0);
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&caller[i], NULL, call_many, &office) == 0);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(caller[i], NULL);
    CHECK_EQUAL(mailbox_call(&office.box, call_end, NULL), 0);
    pthread_join(loop, NULL);
    CHECK_EQUAL(office.calls, CALLERS * CALLS);
    mailbox_destroy(&office.box);
}

TEST(nobody_waits_for_an_ended_loop)
{
    struct office office = {.calls = 0};
    pthread_t loop, caller[CALLERS];
    CHECK_EQUAL(mailbox_open(&office.box), 0);
    CHECK(pthread_create(&loop, NULL, run_loop, &office) == 0);
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&caller[i], NULL, call_until_closed, &office) == 0);
    pause_us(20000);
    CHECK_EQUAL(mailbox_call(&office.box, call_end, NULL), 0);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(caller[i], NULL);
    pthread_join(loop, NULL);
    CHECK_EQUAL(mailbox_call(&office.box, call_add, NULL), -ESHUTDOWN);
    mailbox_destroy(&office.box);
}
