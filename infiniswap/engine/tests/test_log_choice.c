/* Proves that the cleaner of a large log does not look through all segments for each batch, and that what it chose before does not keep
 * it from cleaning: what is no victim any more is passed over, and when nothing is left it looks again; and that it soon knows which
 * pages live in what it chose. */
#include "check.h"

#include "log.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (100ull << 30)
enum { SEGMENT_LIVE = 200, STEP = 64 /* segments, of which one is worth more than the others */ };

static void submit(struct backup *backup, struct backup_request *request)
{
    (void)backup, (void)request; /* nothing is read: what a victim holds is not looked at here */
}

static void kick(struct backup *backup)
{
    (void)backup;
}

static struct backup_request *reap(struct backup *backup)
{
    (void)backup;
    return NULL;
}

static const struct backup_methods methods = {submit, kick, reap, NULL, NULL, backup_image_wants, NULL, NULL, NULL, NULL};

/* All segments are in use, and as old; some have few pages left. */
static isw_log *open_used(int *fd)
{
    uint64_t bytes;
    char error[128] = "";
    CHECK_EQUAL(isw_log_file_bytes(SIZE, &bytes), 0);
    *fd = memfd_create("log", MFD_CLOEXEC);
    CHECK(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0 && isw_log_format(*fd, SIZE) == 0);
    isw_log *log = isw_log_open(*fd, 0, error, sizeof error);
    if (!log)
        FAIL("the log cannot be opened: %s", error);
    log->sequence = 1000;
    log->free_segments = 2 * LOG_KEPT_FOR_CLEANING; /* few, and writers need not wait */
    for (uint32_t i = 0; i < log->geometry.segments; i++)
        if (log->segment[i].state == LOG_FREE)
            log->segment[i] = (struct log_segment){.state = LOG_CLOSED, .live = i % STEP ? SEGMENT_LIVE : SEGMENT_LIVE / 2, .last = 1};
    return log;
}

/* The victim that the next batch begins with; the batch is given up. */
static uint32_t next_victim(isw_log *log)
{
    log_clean_run(log);
    struct log_batch *b = log->clean.fills;
    CHECK(b && log->clean.reading && b->victims == 1);
    uint32_t victim = b->victim[0];
    log->clean.reading = false;
    log_clean_abort(log);
    CHECK(!log->clean.fills && !log->segment[victim].taken);
    log->clean.rest_ns = 0;
    return victim;
}

static void close_used(isw_log *log, int fd)
{
    log->inner = NULL;
    log->alive = false; /* nothing of this is to be signed */
    isw_log_close(log);
    close(fd);
}

TEST(one_look_is_for_many_batches)
{
    int fd;
    isw_log *log = open_used(&fd);
    struct backup inner = {&methods, ISW_BACKUP_URING, -1, -1, false, 0};
    log_backup_create(log, &inner);
    CHECK(log->geometry.segments / STEP > 3 * LOG_CHOICES);
    for (uint32_t i = 0; i < LOG_CHOICES; i++) {
        uint32_t victim = next_victim(log);
        CHECK_EQUAL(victim % STEP, 0); /* the best */
        CHECK_EQUAL(log->clean.choice, i + 1);
        log->segment[victim].live = SEGMENT_LIVE * 2; /* not worth it any more */
    }
    CHECK_EQUAL(next_victim(log) % STEP, 0); /* all were taken: it has looked again */
    CHECK_EQUAL(log->clean.choice, 1);
    for (uint32_t i = 0; i < log->clean.choices; i++) /* what it found dies by itself */
        log->segment[log->clean.chosen[i]].state = LOG_OPEN;
    CHECK_EQUAL(next_victim(log) % STEP, 0); /* passes over them, and does not rest */
    CHECK_EQUAL(log->clean.choice, 1);
    log->sequence += 4 * log->geometry.segments; /* much was written since */
    uint32_t best = log->clean.chosen[log->clean.choices - 1] + STEP + 1;
    log->segment[best].live = 1;
    CHECK_EQUAL(next_victim(log), best);
    close_used(log, fd);
}

static void lend(void *owner, struct backup_loan *loans, uint32_t count)
{
    (void)owner, (void)loans, (void)count;
}

/* While writers wait each victim is read at once, and one takes as long as many rounds of the loop: a map of so many slices would not be
 * through before other victims are chosen, and it is begun anew. */
TEST(the_map_is_looked_through_while_a_victim_is_read)
{
    int fd;
    isw_log *log = open_used(&fd);
    struct backup inner = {&methods, ISW_BACKUP_URING, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), -1, false, 0};
    struct backup *backup = log_backup_create(log, &inner);
    backup->methods->lender(backup, &(struct backup_lender){.when = ISW_BORROW_ALWAYS, .lend = lend});
    log->free_segments = LOG_KEPT_FOR_CLEANING;
    backup->methods->kick(backup);
    CHECK(log->clean.reading && !log->clean.borrow.asked && log->clean.listing.runs);
    eventfd_t told;
    while (log->clean.listing.runs) {
        uint64_t before = log->clean.listing.at;
        CHECK_EQUAL(eventfd_read(inner.event_fd, &told), 0); /* or the loop would sleep till the disk is done */
        backup->methods->kick(backup);
        CHECK(log->clean.listing.at > before);
    }
    CHECK(log->clean.listing.is_there && log->clean.reading);
    CHECK_EQUAL(eventfd_read(inner.event_fd, &told), -1); /* and it may sleep again */
    close(inner.event_fd);
    close_used(log, fd);
}
